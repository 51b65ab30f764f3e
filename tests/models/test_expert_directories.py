"""Models with experts as directories: loaded as they were saved, never taken for something else, and damage is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

import asdm_cli
from asdm_cli.errors import ModelError
from asdm_cli.experts.unet import ExpertUNet, expert_layers
from asdm_cli.models.directory import find
from asdm_cli.models.load import DTYPES
from tests.expanding import answer, picture, unet
from tests.forking import plain

STOCK = """
import sys
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel

kinds = ((DiffusionPipeline, ""), (StableDiffusionPipeline, ""), (UNet2DConditionModel, "/unet"))
for kind, inner in kinds:
    try:
        kind.from_pretrained(sys.argv[1] + inner)
    except Exception as error:
        print("refused:", type(error).__name__, str(error).splitlines()[0])
assert not any(name.startswith("asdm") for name in sys.modules)
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loads_as_it_was_saved(tiny_experts: Path, tmp_path: Path, dtype: str) -> None:
    """By this package, and by diffusers where asdm_cli is imported; the second time from files that diffusers wrote."""
    pipe: Any = asdm_cli.load(str(tiny_experts), "cpu", dtype)
    assert type(pipe.unet) is ExpertUNet
    assert {each.dtype for each in pipe.unet.state_dict().values()} == {DTYPES[dtype]}
    wanted = answer(pipe.unet)
    assert torch.equal(answer(unet(tiny_experts, DTYPES[dtype])), wanted)
    pipe.save_pretrained(tmp_path / "again")
    again = asdm_cli.load(str(tmp_path / "again"), "cpu", dtype).unet
    theirs: Any = DiffusionPipeline.from_pretrained(tmp_path / "again", dtype=DTYPES[dtype], safety_checker=None)
    for other in (again, theirs.unet):
        assert type(other) is ExpertUNet
        assert len(expert_layers(other)) == 24
        assert not other.training
        assert torch.equal(answer(other), wanted)
        held = other.state_dict()
        assert all(torch.equal(tensor, held[name]) for name, tensor in pipe.unet.state_dict().items())
    if dtype == "float32":
        assert torch.equal(picture(pipe), picture(theirs))


def test_plain_diffusers_refuses_it(tiny_experts: Path, tmp_path: Path) -> None:
    """Never other weights without a word; in a process that never sees this package."""
    told = plain(STOCK, tiny_experts, cwd=tmp_path)
    assert told.code == 0, told.err[-2000:]
    lines = told.out.splitlines()
    assert [line.split()[0] for line in lines] == ["refused:"] * 3, told.out
    assert all("asdm_cli is not one of the libraries" in line for line in lines[:2])
    assert "import asdm_cli before calling" in lines[0]
    assert "expected shape" in lines[2]


def test_the_package_serves_what_an_index_names() -> None:
    assert asdm_cli.ExpertUNet is ExpertUNet
    assert ExpertUNet.__module__ == "asdm_cli"
    assert issubclass(ExpertUNet, asdm_cli.ModelMixin)
    with pytest.raises(AttributeError, match="no attribute 'ExpertNet'"):
        _ = asdm_cli.ExpertNet


def replaced(file: Path, text: str) -> None:
    file.unlink()  # it may be a link
    file.write_text(text)


def config(change: Callable[[dict[str, Any], str], object]) -> Callable[[Path], None]:
    """Spoils the UNet's config; `change` is told the first convolution of experts as well."""

    def spoil(model: Path) -> None:
        held = json.loads((model / "unet/config.json").read_text())
        change(held, next(iter(held["experts"])))
        replaced(model / "unet/config.json", json.dumps(held))

    return spoil


def field(**changes: Any) -> Callable[[Path], None]:
    """Spoils what is said of one convolution."""
    return config(lambda held, first: held["experts"][first].update(changes))


def elsewhere(name: str) -> Callable[[Path], None]:
    return config(lambda held, first: held["experts"].update({name: held["experts"].pop(first)}))


def index(model: Path) -> None:
    held = json.loads((model / "model_index.json").read_text())
    replaced(model / "model_index.json", json.dumps({**held, "unet": ["diffusers", "UNet2DConditionModel"]}))


def tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Spoils the file of the experts."""

    def spoil(model: Path) -> None:
        shard = sorted((model / "unet").glob("*.safetensors"))[1]
        held = load_file(shard)
        change(held)
        shard.unlink()
        save_file(held, shard, {"format": "pt"})

    return spoil


def no_bank(held: dict[str, Any]) -> None:
    del held[sorted(held)[0]]


def cut(model: Path) -> None:
    shard = sorted((model / "unet").glob("*.safetensors"))[1]
    held = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(held[:-100])


MIXED_UP = "is not of the UNet beside it"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "the index knows no experts": (index, MIXED_UP),
    "the config knows no experts": (config(lambda held, _: held.pop("experts")), MIXED_UP),
    "experts of nothing": (config(lambda held, _: held.update(experts={})), MIXED_UP),
    "more experts": (field(experts=5), "where config.json asks for"),
    "no experts": (field(experts=0), "has 0 experts"),
    "no timesteps": (field(timesteps=0), "has 0 timesteps"),
    "of an earlier version": (field(router="time", weights="softmax"), "a router mixes them, as an earlier version"),
    "unknown field": (field(more=1), "cannot be read"),
    "no convolution": (elsewhere("down_blocks.0.resnets.0.norm1"), "norm1 is no convolution of this UNet"),
    "another convolution": (elsewhere("conv_in"), "where config.json asks for"),
    "a bank less": (tensors(no_bank), "the weights lack"),
    "cut short": (cut, "is not a whole safetensors file"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_told(tiny_experts: Path, tmp_path: Path, how: str) -> None:
    model = Path(shutil.copytree(tiny_experts, tmp_path / "model"))
    spoil, message = DAMAGE[how]
    spoil(model)
    with pytest.raises(ModelError, match=message):
        asdm_cli.load(str(model), "cpu")


def test_folders_of_other_models(tiny_experts: Path, tiny_base: Path, tmp_path: Path) -> None:
    """The UNet folder of one in the place of the other's, both ways."""
    pairs = {
        "experts inside": (tiny_base / "model", tiny_experts),
        "experts outside": (tiny_experts, tiny_base / "model"),
    }
    for name, (outer, inner) in pairs.items():
        model = Path(shutil.copytree(outer, tmp_path / name))
        shutil.rmtree(model / "unet")
        shutil.copytree(inner / "unet", model / "unet")
        with pytest.raises(ModelError, match=MIXED_UP):
            find(str(model))
    model = Path(shutil.copytree(tiny_experts, tmp_path / "weights"))
    for file in (model / "unet").glob("*.safetensors*"):
        file.unlink()
    shutil.copy(tiny_base / "model/unet/diffusion_pytorch_model.safetensors", model / "unet")
    with pytest.raises(ModelError, match=r"where config.json asks for|the weights lack"):
        asdm_cli.load(str(model), "cpu")
