"""Addresses name what diffusers builds: every module and every tensor of the blocks, none other."""

from __future__ import annotations

import pytest

from asdm_cli.errors import ModelError
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.presets import PRESETS, preset
from asdm_cli.unet.surgery import remove
from tests import tiny

OUTSIDE = {"conv_in", "time_embedding", "add_embedding", "conv_norm_out", "conv_out"}
CONFIGS = {
    **tiny.SHAPES,
    "base": remove(tiny.shape("sd15"), "base").config,
    "tiny": remove(tiny.shape("sd21"), "tiny").config,
    "uneven": tiny.shape("sd15", layers_per_block=[1, 3, 2, 1]),
    "plain mid": tiny.shape("sd15", mid_block_type="UNetMidBlock2D"),
    "transformers of no blocks": tiny.shape("sdxl", transformer_layers_per_block=[0, 2, 0]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_address_names_modules_that_exist(name: str) -> None:
    anatomy, modules = Anatomy.of(CONFIGS[name]), dict(tiny.unet(CONFIGS[name]).named_modules())
    missing = [module for node in anatomy.nodes for module in node.modules if module not in modules]
    assert missing == []
    assert len(anatomy.nodes) > 20


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_of_a_block_has_an_owner_whose_block_it_is_in(name: str) -> None:
    anatomy, seen = Anatomy.of(CONFIGS[name]), 0
    for key in tiny.unet(CONFIGS[name]).state_dict():
        address = anatomy.address_of_key(key)
        if address is None:
            assert key.split(".")[0] in OUTSIDE
            continue
        block = anatomy.module(".".join(address.split(".")[: 1 if address.startswith("mid") else 2]))
        assert key.startswith(f"{block}.")
        seen += 1
    assert seen > 150


def test_owner_of_a_tensor_is_the_most_specific() -> None:
    anatomy = Anatomy.of(preset("sdxl"))
    inside = "down_blocks.1.attentions.0.transformer_blocks.1"
    owners = {
        "conv_in.weight": None,
        "add_embedding.linear_1.weight": None,
        "down_blocks.1.resnets.0.conv_shortcut.weight": "down.1.0.resnet",
        "down_blocks.1.downsamplers.0.conv.bias": "down.1.sampler",
        "down_blocks.1.attentions.0.proj_in.weight": "down.1.0.attn",
        "down_blocks.1.attentions.0.norm.weight": "down.1.0.attn",
        f"{inside}.attn1.to_q.weight": "down.1.0.self",
        f"{inside}.norm1.weight": "down.1.0.self",
        f"{inside}.attn2.to_out.0.bias": "down.1.0.cross",
        f"{inside}.norm3.bias": "down.1.0.ff",
        f"{inside}.ff.net.0.proj.weight": "down.1.0.ff",
        "mid_block.resnets.1.norm1.weight": "mid.1.resnet",
        "up_blocks.0.upsamplers.0.conv.weight": "up.0.sampler",
    }
    assert {key: anatomy.address_of_key(key) for key in owners} == owners


def test_module_names() -> None:
    anatomy = Anatomy.of(preset("sdxl"))
    assert anatomy.module("up.0") == "up_blocks.0"
    assert anatomy.module("mid") == "mid_block"
    assert anatomy.module("down.0.1") == "down_blocks.0.resnets.1"
    assert anatomy.module("down.1.1") == ("down_blocks.1.resnets.1", "down_blocks.1.attentions.1")
    assert anatomy.module("up.1.sampler") == "up_blocks.1.upsamplers.0"
    assert anatomy.module("down.1.0.cross") == tuple(
        f"down_blocks.1.attentions.0.transformer_blocks.{k}.attn2" for k in range(2)
    )


def test_forward_order_and_levels() -> None:
    anatomy = Anatomy.of(preset("sd15"))
    blocks = [(node.address, node.level) for node in anatomy.nodes if node.kind == "block"]
    down = [(f"down.{i}", i) for i in range(4)]
    assert blocks == [*down, ("mid", 3), *((f"up.{i}", 3 - i) for i in range(4))]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("down.0", {"down.0"}),
        ("up.*.1", {"up.0.1", "up.1.1", "up.2.1", "up.3.1"}),
        ("level.0", {"down.0", "up.3"}),
        ("level.3", {"down.3", "up.0"}),
        ("down.[01].0.attn", {"down.0.0.attn", "down.1.0.attn"}),
        ("*.sampler", {*(f"down.{i}.sampler" for i in range(3)), *(f"up.{i}.sampler" for i in range(3))}),
        ("mid.*", {"mid.0", "mid.1"}),
        ("mid.0.self", {"mid.0.self"}),
        ("*.0.cross", {"down.0.0.cross", "down.1.0.cross", "down.2.0.cross", "mid.0.cross"}
         | {f"up.{i}.0.cross" for i in (1, 2, 3)}),
    ],
)  # fmt: skip
def test_patterns(pattern: str, expected: set[str]) -> None:
    assert Anatomy.of(preset("sd15")).match(pattern) == expected


def test_patterns_add_up_and_units_are_found_anywhere() -> None:
    anatomy = Anatomy.of(preset("sd15"))
    assert anatomy.match(["mid", "down.3"]) == {"mid", "down.3"}
    assert len(anatomy.match("*.self")) == 16
    assert len(anatomy.match("*.resnet")) == 22
    assert anatomy.match([]) == frozenset()


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("dwn.0.1", "did you mean 'down.0.1'"),
        ("down.3.0.attn", "did you mean"),
        ("level.4", "levels 0 to 3"),
        ("bse", "did you mean 'base'"),
        ("", "its blocks are"),
        ("down..1", "did you mean"),
        ("*.*.*.*.*", "its blocks are"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused_with_a_hint(pattern: str, hint: str) -> None:
    with pytest.raises(ModelError, match=hint):
        Anatomy.of(preset("sd15")).match(pattern)


def test_a_tensor_without_a_place_is_refused() -> None:
    with pytest.raises(ModelError, match="has no place"):
        Anatomy.of(preset("sd15")).address_of_key("down_blocks.0.resnets.2.conv1.weight")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"down_block_types": ["KDownBlock2D"] * 4}, "down_block_types 'KDownBlock2D'"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type"),
        ({"layers_per_block": [2, 2]}, "layers_per_block has 2 entries for 4 levels"),
        ({"layers_per_block": 0}, "layers_per_block holds 0"),
        ({"transformer_layers_per_block": -1}, "transformer_layers_per_block holds -1; whole numbers from 0 to 1000"),
        ({"reverse_transformer_layers_per_block": [1, "2", 1, 1]}, "reverse_transformer_layers_per_block holds '2'"),
        ({"block_out_channels": [8, "16", 32, 32]}, "block_out_channels holds '16'"),
        ({"dual_cross_attention": True}, "dual_cross_attention"),
    ],
)
def test_a_config_of_another_family_is_refused(changes: dict, fault: str) -> None:
    with pytest.raises(ModelError, match=fault):
        Anatomy.of({**preset("sd15"), **changes})


def test_presets_are_copies() -> None:
    preset("sd15")["block_out_channels"].append(1)
    assert set(PRESETS) == {"sd15", "sd21", "sdxl"}
    assert preset("sd15")["block_out_channels"] == [320, 640, 1280, 1280]
    with pytest.raises(ModelError, match="sd15, sd21, sdxl"):
        preset("sd3")


PAIRS = {*(f"down.{i}.1" for i in range(4)), *(f"up.{i}.1" for i in range(4))}
SETS = {
    "base": PAIRS,
    "small": PAIRS | {"mid"},
    "tiny": (PAIRS - {"down.3.1", "up.0.1"}) | {"mid", "down.3", "up.0", "down.2.sampler"},
}
"""BK-SDM's lists of removed modules (arXiv 2305.15798), in addresses."""


@pytest.mark.parametrize("name", SETS)
def test_named_sets(name: str) -> None:
    """On SD as published, and by the same rule on other shapes; what is left lacks the set."""
    for model in ("sd15", "sd21"):
        assert Anatomy.of(preset(model)).match(name) == SETS[name]
    for model in tiny.SHAPES if name != "tiny" else ("sd15", "sd21"):
        config = remove(tiny.SHAPES[model], name).config
        assert config["layers_per_block"] == 1
        with pytest.raises(ModelError, match="lacks all of it already"):
            Anatomy.of(config).match("base")


def test_named_sets_on_other_shapes() -> None:
    xl = Anatomy.of(preset("sdxl"))
    base = {f"{side}.{i}.1" for side in ("down", "up") for i in range(3)}
    assert (xl.match("base"), xl.match("small")) == (base, base | {"mid"})
    uneven = Anatomy.of(tiny.shape("sd15", layers_per_block=[3, 1, 2, 1]))
    assert uneven.match("base") == {"down.0.1", "down.0.2", "up.3.1", "up.3.2", "down.2.1", "up.1.1"}
    with pytest.raises(ModelError, match=r"2560|1920"):  # its deepest levels differ in width
        remove(preset("sdxl"), "tiny")
    one = tiny.shape("sd15", block_out_channels=[8], down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"])
    with pytest.raises(ModelError, match="one level only"):
        Anatomy.of(one).match("tiny")
