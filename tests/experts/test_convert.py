"""Which convolutions become experts, what that costs, the files that come of it, and what folding makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.experts.convert import Expansion, expand, first_experts, folded
from asdm_cli.experts.unet import expert_layers
from asdm_cli.models.directory import find
from asdm_cli.models.load import load_unet
from asdm_cli.unet.blocks import Spec, specs, with_experts
from asdm_cli.unet.flops import parameters
from asdm_cli.unet.shapes import tensor_shapes
from asdm_cli.unet.surgery import remove
from asdm_cli.unet.weights import INDEX_FILE, WEIGHTS, copy_tensors, open_checkpoint, write_shards
from tests import expanding, tiny

CPU = torch.device("cpu")
SPEC = Spec(4)
BANK = "mid_block.resnets.0.conv1"


def base(shape: str = "sd15") -> dict[str, Any]:
    return remove(tiny.shape(shape), "base").config


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_compressed_blocks_are_those_that_lost_layers(shape: str) -> None:
    expansion = expand(base(shape), SPEC, "compressed", tiny.shape(shape))
    assert expansion == expand(base(shape), SPEC, None, tiny.shape(shape))
    levels = len(tiny.shape(shape)["block_out_channels"])
    blocks = {".".join(name.split(".")[:2]) for name in expansion.convolutions}
    assert blocks == {f"{side}_blocks.{index}" for side in ("down", "up") for index in range(levels)}
    assert len(expansion.convolutions) == 2 * levels * (1 + 2)
    assert specs(expansion.config) == dict.fromkeys(expansion.convolutions, SPEC)
    assert expansion.config["_class_name"] == "ExpertUNet"
    assert with_experts(expansion.config, {}) == {**base(shape), "_class_name": "UNet2DConditionModel"}


def test_blocks_that_lost_nothing_are_left_alone() -> None:
    mixed = remove(tiny.shape("sd15"), ["down.0.1", "up.3.1"]).config
    names = expand(mixed, SPEC, None, tiny.shape("sd15")).convolutions
    assert {".".join(name.split(".")[:2]) for name in names} == {"down_blocks.0", "up_blocks.3"}


@pytest.mark.parametrize(
    ("at", "names"),
    [
        ("down.0.0.resnet", ["down_blocks.0.resnets.0"]),
        (["mid"], ["mid_block.resnets.0", "mid_block.resnets.1"]),
        (["up.3.1", "up.3.1.resnet"], ["up_blocks.3.resnets.1"]),
        (["level.3"], ["down_blocks.3.resnets.0", "up_blocks.0.resnets.0", "up_blocks.0.resnets.1"]),
    ],
)
def test_addresses_name_resnets(at: str | list[str], names: list[str]) -> None:
    expansion = expand(base(), SPEC, at, None)
    assert list(expansion.convolutions) == [f"{name}.{conv}" for name in names for conv in ("conv1", "conv2")]


REFUSED: dict[str, tuple[Any, ...]] = {
    "nowhere": (base(), SPEC, ["nowhere"], None),
    "has no resnet": (base(), SPEC, ["down.0.sampler"], None),
    "up.1.0.attn has no resnet": (base(), SPEC, ["mid", "up.1.0.attn"], None),
    "no block has fewer layers": (tiny.shape("sd15"), SPEC, None, tiny.shape("sd15")),
    "made of experts already": (expand(base(), SPEC, ["mid"], None).config, SPEC, ["mid"], None),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_expanded(words: str) -> None:
    with pytest.raises(ModelError, match=words):
        expand(*REFUSED[words])


ENTRY = {"experts": 2, "timesteps": 1000}
OLD = {"experts": 2, "router": "time", "weights": "softmax"}


@pytest.mark.parametrize(
    ("entry", "words"),
    [({}, "cannot be read"), ({**ENTRY, "more": 1}, "cannot be read"), (3, "cannot be read")]
    + [(OLD, "a router mixes them, as an earlier version of asdm had it.*; expand the plain model again")]
    + [({**ENTRY, key: count}, rf"conv1 has .* {key}") for key in ENTRY for count in (0, True, 2.5, "4", None)],
)
def test_entries_that_are_none(entry: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        specs({"experts": {BANK: entry}})


def test_parameters_by_hand() -> None:
    config = expand(base(), SPEC, ["down.1.0"], None).config
    before, after = parameters(base()), parameters(config)
    assert after["down.1"] - before["down.1"] == 3 * ((8 * 16 * 9 + 16) + (16 * 16 * 9 + 16))
    assert sum(after.values()) - sum(before.values()) == after["down.1"] - before["down.1"]
    assert tensor_shapes(config)["down_blocks.1.resnets.0.conv1.weight"] == (4 * 16, 8, 3, 3)


@pytest.fixture(scope="module", params=["sdxl"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny UNet, and what base leaves of it."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny.unet(tiny.shape(request.param)).save_pretrained(folder / "whole")
    tensors = open_checkpoint(folder / "whole").tensors
    surgery = remove(tiny.shape(request.param), "base")
    kept = {new: tensors[old] for new, old in surgery.key_map(tensors).items()}
    (folder / "base").mkdir()
    (folder / "base/config.json").write_text(json.dumps(surgery.config))
    copy_tensors(kept, folder / "base" / WEIGHTS)
    return folder / "whole", folder / "base"


def expansion(pair: tuple[Path, Path], spec: Spec = SPEC) -> Expansion:
    whole, base = (find(str(each)).config("unet") for each in pair)
    return expand(base, spec, None, whole)


def write(made: Expansion, own: Path, changed: dict[str, Tensor], folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(made.config))
    kept = {name: entry for name, entry in open_checkpoint(own).tensors.items() if name not in changed}
    write_shards(kept, changed, folder)


def test_begins_as_what_it_was(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """tests/verbs has the same of SD 1.5, as typed."""
    made, own = expansion(pair), open_checkpoint(pair[1]).tensors
    write(made, pair[1], first_experts(made, own), tmp_path / "unet")
    unet, plain = (expanding.unet(each) for each in (tmp_path / "unet", pair[1]))
    for rows in (1, 2):
        assert torch.equal(expanding.answer(unet, rows), expanding.answer(plain, rows))


def test_the_rest_is_copied_byte_for_byte(pair: tuple[Path, Path], tmp_path: Path) -> None:
    made, folder = expansion(pair), tmp_path / "unet"
    write(made, pair[1], first_experts(made, open_checkpoint(pair[1]).tensors), folder)
    own, places = load_file(pair[1] / WEIGHTS), json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    first, second = (load_file(shard) for shard in sorted(folder.glob("*.safetensors")))
    assert places.keys() == own.keys() == {*first, *second}
    assert set(second) == {f"{name}.{part}" for name in made.convolutions for part in ("weight", "bias")}
    assert all(torch.equal(first[name], own[name]) for name in first)
    assert all(torch.equal(part, own[name]) for name in second for part in second[name].chunk(4))
    assert json.loads((folder / "config.json").read_text())["_class_name"] == "ExpertUNet"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_banks_have_the_kernels_number_format(tmp_path: Path, dtype: torch.dtype) -> None:
    unet = tiny.unet(tiny.shape("sd15")).to(dtype)
    unet.save_pretrained(tmp_path / "whole")
    made = expand(dict(unet.config), Spec(3), ["mid"], None)
    changed = first_experts(made, open_checkpoint(tmp_path / "whole").tensors)
    write(made, tmp_path / "whole", changed, tmp_path / "unet")
    assert {each.dtype for each in changed.values()} == {dtype}
    read, was = load_unet(find(str(tmp_path / "unet")), CPU, dtype), unet.state_dict()
    assert len(expert_layers(read)) == 4
    for name, tensor in read.state_dict().items():
        assert torch.equal(tensor, changed.get(name, was[name])), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_folding_is_the_inverse_of_expanding(pair: tuple[Path, Path], tmp_path: Path, dtype: torch.dtype) -> None:
    """Copies come back to the bit, others as their mean, rounded once."""
    made, own = expansion(pair, Spec(3)), load_file(pair[1] / WEIGHTS)
    save_file({name: each.to(dtype) for name, each in own.items()}, tmp_path / WEIGHTS)
    write(made, tmp_path, first_experts(made, open_checkpoint(tmp_path).tensors), tmp_path / "wide")
    kernels, equal = folded(specs(made.config), open_checkpoint(tmp_path / "wide").tensors)
    assert equal
    assert all(torch.equal(each, own[name].to(dtype)) for name, each in kernels.items())
    (shard,) = (file for file in (tmp_path / "wide").glob("*.safetensors") if set(load_file(file)) == set(kernels))
    moved = load_file(shard)
    draws = torch.Generator().manual_seed(0)
    name = f"{made.convolutions[3]}.bias"
    moved[name] += torch.randn(moved[name].shape, generator=draws)
    save_file(moved, shard)
    again, equal = folded(specs(made.config), open_checkpoint(tmp_path / "wide").tensors)
    assert not equal
    assert torch.equal(again.pop(name), moved[name].double().reshape(3, -1).mean(0).to(dtype))
    assert all(torch.equal(each, kernels[key]) for key, each in again.items())
