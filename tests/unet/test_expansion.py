"""Which convolutions become banks of experts, whose kernels they may inherit, and how a config says so."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from asdm_cli.errors import ModelError
from asdm_cli.experts.spec import Spec
from asdm_cli.unet.cost import macs, parameters, shapes
from asdm_cli.unet.expansion import expand
from asdm_cli.unet.expert_config import specs, with_specs
from asdm_cli.unet.presets import preset
from asdm_cli.unet.surgery import remove
from tests import tiny

SPEC = Spec(4, "features", "softmax")


def base(shape: str = "sd15") -> dict[str, Any]:
    return remove(tiny.shape(shape), "base").config


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_compressed_blocks_are_those_that_lost_layers(shape: str) -> None:
    expansion = expand(base(shape), SPEC, None, tiny.shape(shape))
    blocks = {".".join(name.split(".")[:2]) for name in expansion.siblings}
    levels = len(tiny.shape(shape)["block_out_channels"])
    assert blocks == {f"{side}_blocks.{index}" for side in ("down", "up") for index in range(levels)}
    resnets = levels * (1 + 2)
    assert len(expansion.siblings) == 2 * resnets
    assert specs(expansion.config) == dict.fromkeys(expansion.siblings, SPEC)
    assert expansion.config["_class_name"] == "ExpertUNet"


def test_only_levels_that_are_compressed() -> None:
    mixed = remove(tiny.shape("sd15"), ["down.0.1", "up.3.1"]).config
    names = expand(mixed, SPEC, None, tiny.shape("sd15")).siblings
    assert {".".join(name.split(".")[:2]) for name in names} == {"down_blocks.0", "up_blocks.3"}


def test_siblings_are_what_pruning_removed_of_the_block() -> None:
    siblings = expand(base(), SPEC, None, tiny.shape("sd15")).siblings
    assert siblings["down_blocks.1.resnets.0.conv1"] == ("down_blocks.1.resnets.1.conv1",)
    for number in (0, 1):
        assert siblings[f"up_blocks.2.resnets.{number}.conv2"] == ("up_blocks.2.resnets.1.conv2",)
    assert expand(base(), SPEC, ["mid"], tiny.shape("sd15")).siblings["mid_block.resnets.0.conv1"] == ()
    assert all(others == () for others in expand(base(), SPEC, ["up.?"], None).siblings.values())


def test_siblings_stand_nearest_first() -> None:
    """Of a deeper donor: what a block of four layers leaves to one of two."""
    deep, small = tiny.shape("sd15", layers_per_block=4), tiny.shape("sd15", layers_per_block=2)
    siblings = expand(small, SPEC, None, deep).siblings
    numbers = {
        name: [int(each.split(".")[3]) for each in others]
        for name, others in siblings.items()
        if name.startswith(("down_blocks.0", "up_blocks.1")) and name.endswith("conv1")
    }
    assert numbers == {
        "down_blocks.0.resnets.0.conv1": [2, 3],
        "down_blocks.0.resnets.1.conv1": [2, 3],
        "up_blocks.1.resnets.0.conv1": [2, 3],
        "up_blocks.1.resnets.1.conv1": [2, 3],
        "up_blocks.1.resnets.2.conv1": [3, 2],
    }


@pytest.mark.parametrize(
    ("at", "names"),
    [
        (["down.0.0.resnet"], ["down_blocks.0.resnets.0"]),
        (["mid"], ["mid_block.resnets.0", "mid_block.resnets.1"]),
        (["up.3.1", "up.3.1.resnet"], ["up_blocks.3.resnets.1"]),
        (["level.3"], ["down_blocks.3.resnets.0", "up_blocks.0.resnets.0", "up_blocks.0.resnets.1"]),
    ],
)
def test_addresses_name_resnets(at: list[str], names: list[str]) -> None:
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


@pytest.mark.parametrize("router", ["features", "time", "both"])
def test_parameters_by_hand(router: str) -> None:
    """Banks, and a router of one number per expert and thing that it looks at."""
    config = expand(base(), Spec(4, router, "softmax"), ["down.1.0"], None).config
    before, after = parameters(base()), parameters(config)
    looked_at = {"features": (8 + 16), "time": 2 * 32, "both": (8 + 16) + 2 * 32}[router]
    banks = 3 * ((8 * 16 * 9 + 16) + (16 * 16 * 9 + 16))
    assert after["down.1"] - before["down.1"] == banks + 4 * looked_at + 2 * 4
    assert sum(after.values()) - sum(before.values()) == after["down.1"] - before["down.1"]
    assert shapes(config)["down_blocks.1.resnets.0.conv1.weight"] == (4 * 16, 8, 3, 3)


@pytest.mark.parametrize("router", ["features", "time"])
@pytest.mark.parametrize("weights", ["softmax", "sigmoid"])
def test_macs_by_hand(router: str, weights: str) -> None:
    """The convolutions stay; kernels and biases are mixed for every row, or once where only the time is looked at.

    Interpolating goes over all but the first of the experts, a plain weighted sum over all.
    """
    config = expand(base(), Spec(4, router, weights), ["down.1.0"], None).config
    before, after = macs(base(), batch=2), macs(config, batch=2)
    elements = (8 * 16 * 9 + 16) + (16 * 16 * 9 + 16)
    steps = 3 if weights == "softmax" else 4
    mixing = (1 if router == "time" else 2) * steps * elements
    # every row is asked, whatever the kernels: the time embedding of all rows goes through the router
    routers = 2 * 4 * (8 + 16) if router == "features" else 2 * 2 * 4 * 32
    assert after.blocks["down.1"] - before.blocks["down.1"] == mixing + routers
    assert after.total - before.total == after.plain - before.plain == mixing + routers


def test_experts_of_real_size_hardly_cost() -> None:
    """BK-SDM's Base with guidance, four experts in every 3x3 convolution of its blocks."""
    donor = preset("sd15")
    config = remove(donor, "base").config
    plain = macs(config, batch=2).total
    for router, limit in {"time": 0.002, "features": 0.004}.items():
        more = macs(expand(config, Spec(4, router, "softmax"), None, donor).config, batch=2).total / plain - 1
        assert 0 < more < limit


def test_configs_without_experts_are_stock_again() -> None:
    config = expand(base(), SPEC, ["mid"], None).config
    stock = with_specs(config, {})
    assert stock == {**base(), "_class_name": "UNet2DConditionModel"}
    assert specs(stock) == specs(base()) == {}


@pytest.mark.parametrize("entry", [{"experts": 2}, {"experts": 2, "router": "time", "weights": "x", "more": 1}, 3, []])
def test_entries_that_are_none(entry: Any) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        specs({"experts": {"mid_block.resnets.0.conv1": entry}})


@pytest.mark.parametrize("count", [0, -1, True, 2.5, "4", None])
def test_counts_that_are_none(count: Any) -> None:
    with pytest.raises(ModelError, match=r"mid_block\.resnets\.0\.conv1 has .* experts"):
        specs({"experts": {"mid_block.resnets.0.conv1": {"experts": count, "router": "time", "weights": "softmax"}}})


def test_planning_takes_no_torch() -> None:
    code = "import sys, asdm_cli.unet.expansion; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
