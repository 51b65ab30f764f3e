"""What is left after a removal: golden counts and weight maps of BK-SDM, and what is refused."""

from __future__ import annotations

from itertools import product

import pytest

from asdm_cli.errors import ModelError
from asdm_cli.unet.blocks import preset
from asdm_cli.unet.flops import parameters
from asdm_cli.unet.shapes import tensor_shapes
from asdm_cli.unet.surgery import Surgery, apply, remove
from tests import tiny
from tests.stock import LEVELS, MID, millions

COUNTS = {"": 859_520_964, "base": 579_384_964, "small": 482_346_884, "tiny": 323_384_964}
"""Parameters of SD 1.x and of BK-SDM's UNets (arXiv 2305.15798), counted from their published configs."""
COMBINATIONS = list(product((1, 2), repeat=4))
assert len(LEVELS.keys() & set(COMBINATIONS)) == 12


def patterns(layers: tuple[int, ...]) -> list[str]:
    """The pair that a level with one layer lacks."""
    return [
        name for level, count in enumerate(layers) if count == 1 for name in (f"down.{level}.1", f"up.{3 - level}.1")
    ]


def moved(surgery: Surgery) -> dict[str, str]:
    return {new: old for new, old in surgery.sources.items() if new != old}


def assert_fits(surgery: Surgery, donor: dict[str, tuple[int, ...]]) -> None:
    """The derived map gives the result's config each tensor that it promises, of its shape, and no other."""
    mapped = {new: donor[old] for new, old in surgery.key_map(donor).items()}
    assert mapped == tensor_shapes(surgery.config)
    assert len(mapped) > 300


@pytest.fixture(scope="module")
def donor() -> dict[str, tuple[int, ...]]:
    return tensor_shapes(preset("sd15"))


@pytest.mark.parametrize("name", COUNTS)
def test_golden_counts(name: str) -> None:
    config = remove(preset("sd15"), name).config if name else preset("sd15")
    assert sum(parameters(config).values()) == COUNTS[name]


@pytest.mark.parametrize(("layers", "mid"), [*((each, True) for each in COMBINATIONS), ((2, 1, 2, 1), False)])
def test_all_level_combinations(layers: tuple[int, ...], mid: bool, donor: dict[str, tuple[int, ...]]) -> None:
    surgery = remove(preset("sd15"), patterns(layers) + ([] if mid else ["mid"]))
    count = sum(parameters(surgery.config).values()) + (0 if mid else MID)
    assert count / 1e6 == pytest.approx(millions(layers), abs=0.005 if layers in LEVELS else 0.03)
    assert surgery.config["layers_per_block"] == (layers[0] if len(set(layers)) == 1 else list(layers))
    assert (surgery.config["mid_block_type"] is None) is not mid
    assert_fits(surgery, donor)


def _bk_map(name: str) -> dict[str, str]:
    """BK-SDM's own initialisation (arXiv 2305.15798, reference code), written out: renumbered modules, new <- old."""
    both = ("resnets", "attentions")
    if name == "tiny":
        kept = {0: 0, 1: 2}
        pairs = {
            f"up_blocks.{i}.{unit}.{new}": f"up_blocks.{i + 1}.{unit}.{old}"
            for i in range(3)
            for unit in both
            for new, old in kept.items()
        }
        return pairs | {f"up_blocks.{i}.upsamplers.0": f"up_blocks.{i + 1}.upsamplers.0" for i in range(2)}
    pairs = {f"up_blocks.{i}.{unit}.1": f"up_blocks.{i}.{unit}.2" for i in (1, 2, 3) for unit in both}
    return pairs | {"up_blocks.0.resnets.1": "up_blocks.0.resnets.2"}


@pytest.mark.parametrize("name", ["base", "small", "tiny"])
def test_weight_map_is_bk_sdms(name: str, donor: dict[str, tuple[int, ...]]) -> None:
    surgery = remove(preset("sd15"), name)
    assert moved(surgery) == _bk_map(name)
    assert_fits(surgery, donor)


def test_removing_nothing_changes_nothing() -> None:
    config = tiny.shape("sdxl")
    tensors = tiny.unet(config).state_dict()
    result, left = apply(config, tensors, [])
    assert result == config
    assert list(left) == list(tensors)
    assert all(left[key] is tensors[key] for key in tensors)
    assert len(left) > 300


def test_config_keeps_its_form() -> None:
    """Only what the removal changes is changed: unknown keys stay, tuples and one-for-all values too."""
    config = tiny.shape("sd21", made_elsewhere="yes", block_out_channels=(8, 16, 32, 32))
    result = remove(config, "base").config
    assert {key for key in result if result[key] != config[key]} == {"layers_per_block"}
    shorter = remove(config, "tiny").config
    assert shorter["block_out_channels"] == [8, 16, 32]
    assert shorter["attention_head_dim"] == [1, 2, 4]
    assert shorter["made_elsewhere"] == "yes"


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("down.0.0", "one layer more"),
        ("up.*.1", "one layer more"),
        (["down.0.*", "up.3.*"], "resampler"),
        ("up.1.sampler", "resampler"),
        (["down.0.1", "up.3.1", "down.1.sampler"], "resampler"),
        ("down.3", "go together"),
        ("level.3", "resampler"),
        ("level.1", "640 -> 1280"),
        ("down.0.0.attn", "without transformer"),
        ("mid.0.self", "cannot leave its transformer"),
        ("down.1.0.resnet", "without its resnet"),
        (["down.*", "up.*"], "nothing would be left"),
    ],
)
def test_what_no_stock_config_expresses_is_refused(wanted: str | list[str], reason: str) -> None:
    with pytest.raises(ModelError, match=f"no stock UNet lacks just that: .*{reason}"):
        remove(preset("sd15"), wanted)
