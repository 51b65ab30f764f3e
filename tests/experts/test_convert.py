"""Which convolutions become experts, whose kernels they inherit, what that costs, and the files that come of it."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.experts.convert import Expansion, Init, expand, first_experts
from asdm_cli.experts.layer import SUM_TO_ONE
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
SPEC = Spec(4, "features", "softmax")
BANK = "mid_block.resnets.0.conv1"
INITS = {"copies": Init("copies"), "noise": Init("noise", noise=0.5), "inherited": Init("inherited")}


def base(shape: str = "sd15") -> dict[str, Any]:
    return remove(tiny.shape(shape), "base").config


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_compressed_blocks_are_those_that_lost_layers(shape: str) -> None:
    expansion = expand(base(shape), SPEC, "compressed", tiny.shape(shape))
    assert expansion == expand(base(shape), SPEC, None, tiny.shape(shape))
    levels = len(tiny.shape(shape)["block_out_channels"])
    blocks = {".".join(name.split(".")[:2]) for name in expansion.siblings}
    assert blocks == {f"{side}_blocks.{index}" for side in ("down", "up") for index in range(levels)}
    assert len(expansion.siblings) == 2 * levels * (1 + 2)
    assert specs(expansion.config) == dict.fromkeys(expansion.siblings, SPEC)
    assert expansion.config["_class_name"] == "ExpertUNet"
    assert with_experts(expansion.config, {}) == {**base(shape), "_class_name": "UNet2DConditionModel"}


def test_siblings_are_what_pruning_removed_of_the_block() -> None:
    siblings = expand(base(), SPEC, None, tiny.shape("sd15")).siblings
    assert siblings["down_blocks.1.resnets.0.conv1"] == ("down_blocks.1.resnets.1.conv1",)
    for number in (0, 1):
        assert siblings[f"up_blocks.2.resnets.{number}.conv2"] == ("up_blocks.2.resnets.1.conv2",)
    assert expand(base(), SPEC, ["mid"], tiny.shape("sd15")).siblings[BANK] == ()
    assert all(others == () for others in expand(base(), SPEC, ["up.?"], None).siblings.values())
    mixed = remove(tiny.shape("sd15"), ["down.0.1", "up.3.1"]).config
    names = expand(mixed, SPEC, None, tiny.shape("sd15")).siblings
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
    assert list(expansion.siblings) == [f"{name}.{conv}" for name in names for conv in ("conv1", "conv2")]


REFUSED: dict[str, tuple[Any, ...]] = {
    "nowhere": (base(), SPEC, ["nowhere"], None),
    "has no resnet": (base(), SPEC, ["down.0.sampler"], None),
    "no block has fewer layers": (tiny.shape("sd15"), SPEC, None, tiny.shape("sd15")),
    "made of experts already": (expand(base(), SPEC, ["mid"], None).config, SPEC, ["mid"], None),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_expanded(words: str) -> None:
    with pytest.raises(ModelError, match=words):
        expand(*REFUSED[words])


ENTRY = {"experts": 2, "router": "time", "weights": "softmax"}


@pytest.mark.parametrize(
    ("entry", "words"),
    [({"experts": 2}, "cannot be read"), ({**ENTRY, "more": 1}, "cannot be read"), (3, "cannot be read")]
    + [({**ENTRY, "experts": count}, r"conv1 has .* experts") for count in (0, True, 2.5, "4", None)],
)
def test_entries_that_are_none(entry: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        specs({"experts": {BANK: entry}})


@pytest.mark.parametrize("router", ["features", "time", "both"])
def test_parameters_by_hand(router: str) -> None:
    """Banks, and a router of one number per expert and thing that it looks at."""
    config = expand(base(), Spec(4, router, "softmax"), ["down.1.0"], None).config
    before, after = parameters(base()), parameters(config)
    looked_at = {"features": (8 + 16), "time": 2 * 32, "both": (8 + 16) + 2 * 32}[router]
    banks = 3 * ((8 * 16 * 9 + 16) + (16 * 16 * 9 + 16))
    assert after["down.1"] - before["down.1"] == banks + 4 * looked_at + 2 * 4
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


def expansion(pair: tuple[Path, Path], spec: Spec) -> Expansion:
    whole, base = (find(str(each)).config("unet") for each in pair)
    return expand(base, spec, None, whole)


def experts(pair: tuple[Path, Path], spec: Spec, init: Init, seed: int = 0) -> dict[str, Tensor]:
    whole, base = (open_checkpoint(each).tensors for each in pair)
    return first_experts(expansion(pair, spec), base, whole, init, seed)


def write(made: Expansion, own: Path, changed: dict[str, Tensor], folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(made.config))
    kept = {name: entry for name, entry in open_checkpoint(own).tensors.items() if name not in changed}
    write_shards(kept, changed, folder)


KINDS = [kind for kind in product(INITS, (*SUM_TO_ONE, "sigmoid")) if kind != ("copies", "sigmoid")]
WAYS = [(*kind, ("features", "time", "both")[number % 3]) for number, kind in enumerate(KINDS)]
"""All starts with all kinds of weights, the routers in turn; tests/verbs has the same of SD 1.5, as typed."""


@pytest.mark.parametrize(("init", "weights", "router"), WAYS)
def test_begins_as_what_it_was(pair: tuple[Path, Path], tmp_path: Path, init: str, weights: str, router: str) -> None:
    spec = Spec(4, router, weights)
    changed = experts(pair, spec, INITS[init])
    write(expansion(pair, spec), pair[1], changed, tmp_path / "unet")
    unet, plain = (expanding.unet(each) for each in (tmp_path / "unet", pair[1]))
    for rows in (1, 2):
        got, wanted = expanding.answer(unet, rows), expanding.answer(plain, rows)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
        assert torch.equal(got, wanted) or init != "copies" or (rows > 1 and router != "time")


def test_the_rest_is_copied_byte_for_byte(pair: tuple[Path, Path], tmp_path: Path) -> None:
    spec, folder = Spec(2, "both", "softmax"), tmp_path / "unet"
    write(expansion(pair, spec), pair[1], experts(pair, spec, INITS["noise"]), folder)
    own, places = load_file(pair[1] / WEIGHTS), json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    shards = sorted(folder.glob("*.safetensors"))
    first, second = (load_file(shard) for shard in shards)
    assert places == {name: shard.name for shard, held in zip(shards, (first, second), strict=True) for name in held}
    assert {name.partition(".router.")[0].rpartition(".")[2] for name in second} <= {"weight", "bias", "conv1", "conv2"}
    assert all(torch.equal(first[name], own[name]) for name in first)
    assert {*first, *second} >= own.keys()
    assert json.loads((folder / "config.json").read_text())["_class_name"] == "ExpertUNet"


@pytest.fixture
def wide(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, dict[str, Tensor], dict[str, Tensor]]:
    """A UNet folder with experts, its new tensors, and the stock UNet's; of the dtype that a test asks for."""
    unet = tiny.unet(tiny.shape("sd15")).to(getattr(request, "param", torch.float32))
    unet.save_pretrained(tmp_path / "whole")
    made = expand(dict(unet.config), Spec(3, "time", "softmax"), ["mid"], None)
    changed = first_experts(made, open_checkpoint(tmp_path / "whole").tensors, {}, INITS["noise"], 0)
    write(made, tmp_path / "whole", changed, tmp_path / "unet")
    return tmp_path / "unet", changed, unet.state_dict()


@pytest.mark.parametrize("wide", [torch.float16, torch.bfloat16], indirect=True)
def test_banks_have_the_kernels_number_format(wide: Any) -> None:
    folder, changed, was = wide
    dtype = was["conv_in.weight"].dtype
    assert {each.dtype for key, each in changed.items() if ".router." not in key} == {dtype}
    assert {each.dtype for key, each in changed.items() if ".router." in key} == {torch.float32}
    read = load_unet(find(str(folder)), CPU, dtype)
    assert len(expert_layers(read)) == 4
    for name, tensor in read.state_dict().items():
        assert torch.equal(tensor, changed[name].to(dtype) if name in changed else was[name]), name
