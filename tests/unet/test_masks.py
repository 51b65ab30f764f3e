"""Named sets: BK-SDM's lists on SD 1.x, and the same rule on other shapes."""

from __future__ import annotations

import pytest

from asdm_cli.errors import ModelError
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.presets import preset
from asdm_cli.unet.surgery import remove
from tests import tiny

PAIRS = {*(f"down.{i}.1" for i in range(4)), *(f"up.{i}.1" for i in range(4))}
SETS = {
    "base": PAIRS,
    "small": PAIRS | {"mid"},
    "tiny": (PAIRS - {"down.3.1", "up.0.1"}) | {"mid", "down.3", "up.0", "down.2.sampler"},
}
"""BK-SDM's lists of removed modules (arXiv 2305.15798), in addresses."""


@pytest.mark.parametrize("model", ["sd15", "sd21"])
@pytest.mark.parametrize("name", SETS)
def test_sets_of_sd(model: str, name: str) -> None:
    assert Anatomy.of(preset(model)).match(name) == SETS[name]


def test_sets_of_sdxl() -> None:
    anatomy = Anatomy.of(preset("sdxl"))
    assert anatomy.match("base") == {f"{side}.{i}.1" for side in ("down", "up") for i in range(3)}
    assert anatomy.match("small") == anatomy.match("base") | {"mid"}


def test_tiny_is_refused_where_the_deepest_levels_differ_in_width() -> None:
    """SDXL's up blocks take 1280 channels from the deepest level; no stock UNet without it takes them."""
    with pytest.raises(ModelError, match=r"2560|1920.* nearest sets"):
        remove(preset("sdxl"), "tiny")


def test_rule_on_uneven_layers() -> None:
    anatomy = Anatomy.of(tiny.shape("sd15", layers_per_block=[3, 1, 2, 1]))
    assert anatomy.match("base") == {"down.0.1", "down.0.2", "up.3.1", "up.3.2", "down.2.1", "up.1.1"}


@pytest.mark.parametrize(
    ("model", "name"), [(model, name) for model in tiny.SHAPES for name in SETS if (model, name) != ("sdxl", "tiny")]
)
def test_result_has_one_layer_per_level_and_lacks_the_set(model: str, name: str) -> None:
    config = remove(tiny.SHAPES[model], name).config
    assert config["layers_per_block"] == 1
    with pytest.raises(ModelError, match="lacks all of it already"):
        Anatomy.of(config).match("base")


def test_tiny_needs_a_level_to_give() -> None:
    config = tiny.shape("sd15", block_out_channels=[8], down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"])
    with pytest.raises(ModelError, match="one level only"):
        Anatomy.of(config).match("tiny")
