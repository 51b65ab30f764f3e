"""UNets with experts on disk: where they begin, what is copied and what is new, and files that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.experts.router import ROUTINGS, SUM_TO_ONE
from asdm_cli.experts.spec import Spec
from asdm_cli.experts.start import Start
from asdm_cli.models.directory import find
from asdm_cli.models.experts import INDEX_FILE, first_experts, write_changed
from asdm_cli.models.load import load_unet, random_unet
from asdm_cli.models.write import write_unet
from asdm_cli.unet.checkpoint import WEIGHTS, open_checkpoint
from asdm_cli.unet.expansion import Expansion, expand
from asdm_cli.unet.expert_unet import ExpertUNet, expert_layers
from asdm_cli.unet.surgery import remove
from tests import expanding, tiny

CPU = torch.device("cpu")
STARTS = {"copies": Start("copies"), "noise": Start("noise", noise=0.5), "inherited": Start("inherited", share=1e-6)}
WAYS = [
    (start, weights, router)
    for number, (start, weights) in enumerate(
        (start, weights)
        for start in STARTS
        for weights in (*SUM_TO_ONE, "sigmoid")
        if (start, weights) != ("copies", "sigmoid")
    )
    for router in [("features", "time", "both")[number % 3]]
]
"""All starts with all kinds of weights, the routers in turn; test_condconv has the same of SD 1.5, as typed."""


@pytest.fixture(scope="module", params=tiny.SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny UNet of every shape, and what base leaves of it."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny.unet(tiny.shape(request.param)).save_pretrained(folder / "whole")
    tensors = open_checkpoint(folder / "whole").tensors
    surgery = remove(tiny.shape(request.param), "base")
    kept = {new: tensors[old] for new, old in surgery.key_map(tensors).items()}
    write_unet(surgery.config, kept, folder / "base")
    return folder / "whole", folder / "base"


def expansion(pair: tuple[Path, Path], spec: Spec) -> Expansion:
    whole, base = (find(str(each)).config("unet") for each in pair)
    return expand(base, spec, None, whole)


def experts(pair: tuple[Path, Path], spec: Spec, start: Start, seed: int = 0) -> dict[str, Tensor]:
    whole, base = (open_checkpoint(each).tensors for each in pair)
    return first_experts(expansion(pair, spec), base, whole, start, seed)


def written(pair: tuple[Path, Path], folder: Path, spec: Spec, start: Start) -> Path:
    changed = experts(pair, spec, start)
    kept = {name: entry for name, entry in open_checkpoint(pair[1]).tensors.items() if name not in changed}
    write_changed(expansion(pair, spec).config, kept, changed, folder)
    return folder


@pytest.mark.parametrize(("start", "weights", "router"), WAYS)
@pytest.mark.parametrize("pair", ["sd21", "sdxl"], indirect=True)
def test_begins_as_what_it_was(pair: tuple[Path, Path], tmp_path: Path, start: str, weights: str, router: str) -> None:
    folder = written(pair, tmp_path / "unet", Spec(4, router, weights), STARTS[start])
    unet, plain = (expanding.unet(each) for each in (folder, pair[1]))
    for rows in (1, 2):
        got, wanted = expanding.answer(unet, rows), expanding.answer(plain, rows)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
        if start == "copies" and (rows == 1 or router == "time"):
            assert torch.equal(got, wanted)


def test_all_ways_are_tried() -> None:
    assert len(WAYS) == 8
    assert {router for _, _, router in WAYS} == {"features", "time", "both"}


def test_noise_is_of_the_size_that_was_asked_for(pair: tuple[Path, Path]) -> None:
    spec, noise = Spec(8, "time", "softmax"), 0.25
    tensors, own = experts(pair, spec, Start("noise", noise=noise)), load_file(pair[1] / WEIGHTS)
    name = "down_blocks.1.resnets.0.conv2.weight"
    each = tensors[name].reshape(8, *own[name].shape)
    torch.testing.assert_close(each.mean(0), own[name], atol=1e-6, rtol=1e-5)
    spread = float((each - own[name]).std() / own[name].std(correction=0))
    assert spread == pytest.approx(noise * (7 / 8) ** 0.5, rel=0.05)
    routers = [tensor for key, tensor in tensors.items() if ".router." in key]
    assert len(routers) == 2 * len(expansion(pair, spec).siblings)
    assert not any(bool(tensor.any()) for tensor in routers), "experts that differ begin with equal weights"


def test_routers_of_copies_begin_at_random(pair: tuple[Path, Path]) -> None:
    tensors = experts(pair, Spec(3, "both", "softmax"), Start("copies"))
    looking = {key: tensor for key, tensor in tensors.items() if ".router." in key and key.endswith(".weight")}
    assert len(looking) == 2 * len(expansion(pair, Spec(3, "both", "softmax")).siblings)
    for tensor in looking.values():
        bound = tensor.shape[1] ** -0.5
        assert bound / 2 < float(tensor.abs().max()) <= bound


@pytest.mark.parametrize("weights", [*SUM_TO_ONE, "sigmoid"])
def test_inherited_kernels_weigh_their_share(pair: tuple[Path, Path], weights: str) -> None:
    """Where what the router looks at is nothing."""
    tensors = experts(pair, Spec(4, "features", weights), Start("inherited", share=0.3))
    bias = tensors["down_blocks.0.resnets.0.conv1.router.bias"]
    given = ROUTINGS[weights](bias[None])[0]
    assert given[1:].tolist() == pytest.approx([0.1] * 3)
    assert float(given[0]) == pytest.approx(0.5 if weights == "sigmoid" else 0.7)
    assert not tensors["down_blocks.0.resnets.0.conv1.router.features.weight"][0].any()
    assert tensors["down_blocks.0.resnets.0.conv1.router.features.weight"][1:].all()


def test_seeds_make_noise_and_routers(pair: tuple[Path, Path]) -> None:
    spec = Spec(2, "time", "softmax")
    for start in STARTS.values():
        first, again, other = (experts(pair, spec, start, seed) for seed in (1, 1, 2))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_rest_is_copied_byte_for_byte(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = written(pair, tmp_path / "unet", Spec(2, "both", "softmax"), STARTS["noise"])
    own, places = load_file(pair[1] / WEIGHTS), json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    shards = sorted(folder.glob("*.safetensors"))
    assert set(places.values()) == {shard.name for shard in shards}
    assert len(shards) == 2
    first, second = (load_file(shard) for shard in shards)
    assert not first.keys() & second.keys()
    assert {name.partition(".router.")[0].rpartition(".")[2] for name in second} <= {"weight", "bias", "conv1", "conv2"}
    assert all(torch.equal(first[name], own[name]) for name in first)
    assert {*first, *second} >= own.keys()
    assert json.loads((folder / "config.json").read_text())["_class_name"] == "ExpertUNet"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_banks_have_the_kernels_number_format(tmp_path: Path, dtype: torch.dtype) -> None:
    unet = tiny.unet(tiny.shape("sd15")).to(dtype)
    unet.save_pretrained(tmp_path / "whole")
    wide = expand(dict(unet.config), Spec(3, "time", "softmax"), ["mid"], None)
    own = open_checkpoint(tmp_path / "whole").tensors
    changed = first_experts(wide, own, {}, STARTS["noise"], 0)
    assert {each.dtype for key, each in changed.items() if ".router." not in key} == {dtype}
    assert {each.dtype for key, each in changed.items() if ".router." in key} == {torch.float32}
    kept = {name: entry for name, entry in own.items() if name not in changed}
    write_changed(wide.config, kept, changed, tmp_path / "unet")
    read = load_unet(find(str(tmp_path / "unet")), CPU, dtype)
    assert len(expert_layers(read)) == 4
    was = unet.state_dict()
    for name, tensor in read.state_dict().items():
        held = changed[name].to(dtype) if name in changed else was[name]
        assert torch.equal(tensor, held), name


def test_random_weights_by_seed_alone() -> None:
    config = expand(tiny.shape("sd15"), Spec(3, "time", "softmax"), ["mid"], None).config
    first, again, other = (random_unet(config, CPU, torch.bfloat16, seed).state_dict() for seed in (0, 0, 1))
    assert len(first) > 300
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert isinstance(random_unet(config, CPU, torch.float32), ExpertUNet)


def lost(folder: Path) -> None:
    (folder / INDEX_FILE).unlink()


def a_shard_less(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[0].unlink()


def exchanged(folder: Path) -> None:
    """The experts of a model with more of them."""
    shard = sorted(folder.glob("*.safetensors"))[1]
    tensors = {name: torch.cat([each, each]) for name, each in load_file(shard).items()}
    save_file(tensors, shard, {"format": "pt"})


def no_kernel(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    tensors = load_file(shard)
    del tensors["mid_block.resnets.0.conv1.bias"]
    save_file(tensors, shard, {"format": "pt"})


DAMAGE: dict[str, tuple[Any, str]] = {
    "index": (lost, "no weights"),
    "shard": (a_shard_less, "is missing"),
    "experts": (exchanged, "where config.json asks for"),
    "bias": (no_kernel, "lack"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_told(tmp_path: Path, how: str) -> None:
    unet = tiny.unet(tiny.shape("sd15"))
    unet.save_pretrained(tmp_path / "whole")
    wide = expand(dict(unet.config), Spec(2, "time", "softmax"), ["mid"], None)
    own = open_checkpoint(tmp_path / "whole").tensors
    changed = first_experts(wide, own, {}, STARTS["copies"], 0)
    kept = {name: entry for name, entry in own.items() if name not in changed}
    write_changed(wide.config, kept, changed, tmp_path / "unet")
    load_unet(find(str(tmp_path / "unet")), CPU, torch.float32)
    spoil, words = DAMAGE[how]
    spoil(tmp_path / "unet")
    with pytest.raises(ModelError, match=words):
        load_unet(find(str(tmp_path / "unet")), CPU, torch.float32)
