"""Addresses name what diffusers builds: every module and every tensor of the blocks, none other."""

from __future__ import annotations

import pytest

from asdm_cli.errors import ModelError
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import PRESETS, preset
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
        block = anatomy.node(anatomy.block(address).address).modules[0]
        assert key.startswith(f"{block}.")
        seen += 1
    assert seen > 150


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
        ("mid.*.attn.*", {"mid.0.attn.0"}),
        ("*.1.attn.0", {f"down.{i}.1.attn.0" for i in range(3)} | {f"up.{i}.1.attn.0" for i in (1, 2, 3)}),
        ("*.0.cross", {"down.0.0.cross", "down.1.0.cross", "down.2.0.cross", "mid.0.cross"}
         | {f"up.{i}.0.cross" for i in (1, 2, 3)}),
    ],
)  # fmt: skip
def test_patterns(pattern: str, expected: set[str]) -> None:
    assert Anatomy.of(preset("sd15")).match(pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("dwn.0.1", "did you mean 'down.0.1'"),
        ("down.3.0.attn", "did you mean"),
        ("level.4", "levels 0 to 3"),
        ("bse", "did you mean 'base'"),
        ("", "its blocks are"),
        ("*", r"name its blocks: \['down\.\?', mid, 'up\.\?'\]"),
        ("down..1", "did you mean"),
        ("*.*.*.*.*.*", "its blocks are"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused_with_a_hint(pattern: str, hint: str) -> None:
    with pytest.raises(ModelError, match=hint):
        Anatomy.of(preset("sd15")).match(pattern)


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
