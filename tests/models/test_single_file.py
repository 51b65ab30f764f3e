"""Single files of the original layout: diffusers reads from them just the tensors that were written."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch

from asdm_cli.models import single_file
from asdm_cli.models.directory import find
from asdm_cli.unet import surgery
from asdm_cli.unet.weights import write_tensors
from tests import families, tiny

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
PRUNED = [
    *((kind, name) for kind in ("sd15", "sd21") for name in ("base", "small", "tiny")),
    *(("sdxl", name) for name in ("base", "small")),
]


def written(model: Path, target: Path, unet_only: bool = False) -> Path:
    write_tensors(single_file.pieces(find(str(model)), unet_only), target)
    return target


def unlike(model: Path, file: Path) -> list[str]:
    """What diffusers' own conversion reads from the file that is not as in the directory, to the bit."""
    index = find(str(model)).index
    kind = getattr(diffusers, index["_class_name"])
    there = kind.from_pretrained(model, use_safetensors=True)
    try:
        back = kind.from_single_file(str(file), config=str(model), local_files_only=True)
    except NotImplementedError as error:  # a tensor was not found
        return [str(error)]
    wrong, seen = [], 0
    for part in PARTS:
        wanted, found = (
            each.state_dict() if each else {} for each in (getattr(pipe, part, None) for pipe in (there, back))
        )
        assert wanted.keys() == found.keys()
        seen += len(wanted)
        wrong += [f"{part}: {key}" for key in wanted if not same(wanted[key], found[key])]
    assert seen > 500, "the check saw the tensors"
    return wrong


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not other.is_meta and one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("kind", families.KINDS)
def test_diffusers_reads_back_what_was_written(kind: str, tmp_path: Path) -> None:
    model = families.pipeline(kind, tmp_path / "model")
    assert unlike(model, written(model, tmp_path / "x.safetensors")) == []


@pytest.mark.parametrize(("kind", "name"), PRUNED)
def test_so_it_does_of_a_pruned_unet(kind: str, name: str, tmp_path: Path) -> None:
    left = surgery.remove(tiny.shape(kind), name).config
    model = families.pipeline(kind, tmp_path / "model", **left)
    assert unlike(model, written(model, tmp_path / "x.safetensors")) == []


@pytest.mark.parametrize(
    ("table", "ours"),
    [(single_file.RESNET, "conv1"), (single_file.UNET_MODULES, "conv_out"), (single_file.VAE_ATTENTION, "to_k"),
     (single_file.OPEN_CLIP_LAYER, "mlp.fc1")],
)  # fmt: skip
def test_a_name_that_is_not_theirs_is_seen(
    table: dict[str, str], ours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families.pipeline("sdxl", tmp_path / "model")
    monkeypatch.setitem(table, ours, f"{table[ours]}_renamed")
    assert unlike(model, written(model, tmp_path / "x.safetensors"))
