"""What is left after a removal: golden counts and weight maps of BK-SDM, and what is refused."""

from __future__ import annotations

from itertools import product

import pytest

from asdm_cli.errors import ModelError
from asdm_cli.unet.addresses import DEPTH
from asdm_cli.unet.blocks import preset
from asdm_cli.unet.flops import parameters
from asdm_cli.unet.shapes import tensor_shapes
from asdm_cli.unet.surgery import Surgery, apply, remove
from tests import tiny
from tests.stock import LEVELS, MID, millions

COUNTS = {"": 859_520_964, "base": 579_384_964, "small": 482_346_884, "tiny": 323_384_964}
"""Parameters of SD 1.x and of BK-SDM's UNets (arXiv 2305.15798), counted from their published configs."""
XL = {
    "ssd-1b": (1_331_334_404, 1.33), "vega": (745_225_604, 0.745),
    "koala-1b": (1_161_184_324, 1.16), "koala-700m": (782_822_724, 0.782),
}  # fmt: skip
"""Parameters of SDXL's students, and the published billions: SSD-1B's "1.3 B" and Vega's "0.74 B" are cut off, as their
own configs have 1.33 and 0.745 (arXiv 2401.02677); KOALA's are of arXiv 2312.04005."""
COMBINATIONS = list(product((1, 2), repeat=4))
assert len(LEVELS.keys() & set(COMBINATIONS)) == 12


def patterns(layers: tuple[int, ...]) -> list[str]:
    """The pair that a level with one layer lacks."""
    return [
        name for level, count in enumerate(layers) if count == 1 for name in (f"down.{level}.1", f"up.{3 - level}.1")
    ]


def moved(surgery: Surgery) -> dict[str, str]:
    """Units that are renumbered; the blocks of their depths go with them."""
    return {new: old for new, old in surgery.sources.items() if new != old and DEPTH not in new}


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


@pytest.mark.parametrize("name", XL)
def test_golden_counts_of_sdxl(name: str) -> None:
    surgery, (count, published) = remove(preset("sdxl"), name), XL[name]
    assert sum(parameters(surgery.config).values()) == count
    assert count / 1e9 == pytest.approx(published, rel=0.01)
    assert_fits(surgery, tensor_shapes(preset("sdxl")))
    assert remove(preset("sdxl"), surgery.removed).config == surgery.config
    with pytest.raises(ModelError, match=f"{name}: this UNet lacks all of it already"):
        remove(surgery.config, name)


@pytest.mark.parametrize(
    ("model", "name"), [*(("sd15", name) for name in XL), ("sdxl", "ssd-1b"), ("sdxl", "koala-700m")]
)
def test_sets_of_sdxl_are_refused_elsewhere(model: str, name: str) -> None:
    with pytest.raises(ModelError, match=f"{name}: a set for SDXL's shape, .* name addresses instead"):
        remove(tiny.shape(model), name)


DEPTHS, UP_DEPTHS = "transformer_layers_per_block", "reverse_transformer_layers_per_block"


@pytest.mark.parametrize(
    ("wanted", "down", "up", "said"),
    [
        ("down.2.1.attn.[3-9]", [1, 2, [10, 3]], [10, 2, 1], ["down.2.1.attn.[3-9]"]),
        ("*.attn.[4-9]", [1, 2, 4], None, ["down.2.*.attn.[4-9]", "mid.0.attn.[4-9]", "up.0.*.attn.[4-9]"]),
        (["up.1.*.attn.1", "up.0.2.attn.0"], [1, 2, 10], [[10, 10, 9], 1, 1], ["up.0.2.attn.0", "up.1.*.attn.1"]),
        ("up.1.0.attn.*", [1, 2, 10], [10, [0, 2, 2], 1], ["up.1.0.attn.*"]),
        (["mid.0.attn.*", "down.2.*.attn.*", "up.0.1.attn.[1357]"], [1, 2, 0], [[10, 6, 10], 2, 1],
         ["down.2.*.attn.*", "mid.0.attn.*", "up.0.1.attn.[1357]"]),
        (["down.1.1", "up.1.1", "up.1.2.attn.0"], [1, 2, 10], [10, [2, 1], 1], ["down.1.1", "up.1.1", "up.1.2.attn.0"]),
    ],
)  # fmt: skip
def test_depths(wanted: str | list[str], down: list, up: list | None, said: list[str]) -> None:
    """As stock configs say them, and as few words as say what went."""
    surgery = remove(preset("sdxl"), wanted)
    assert (surgery.config[DEPTHS], surgery.config.get(UP_DEPTHS)) == (down, up)
    assert list(surgery.removed) == said
    assert_fits(surgery, tensor_shapes(preset("sdxl")))


def test_the_depth_of_a_mid_block_below_plain_blocks() -> None:
    """SD's coarsest blocks have no transformers: nobody else reads their entry."""
    config = remove(preset("sd15"), "mid.0.attn.0").config
    assert (config[DEPTHS], config.get(UP_DEPTHS)) == ([1, 1, 1, 0], None)


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
        (["down.0.0.attn", "down.0.1.attn.0"], "without transformer"),
        ("mid.0.self", "cannot leave its transformer"),
        ("down.1.0.resnet", "without its resnet"),
        (["down.*", "up.*"], "nothing would be left"),
    ],
)
def test_what_no_stock_config_expresses_is_refused(wanted: str | list[str], reason: str) -> None:
    with pytest.raises(ModelError, match=f"no stock UNet lacks just that: .*{reason}"):
        remove(preset("sd15"), wanted)


@pytest.mark.parametrize("wanted", ["mid.0.attn.9", "down.2.0.attn.[5-9]"])
def test_mid_and_the_coarsest_down_block_share_a_depth(wanted: str) -> None:
    with pytest.raises(ModelError, match=r"in mid .* one depth for mid and for the first layer of the coarsest down"):
        remove(preset("sdxl"), wanted)
