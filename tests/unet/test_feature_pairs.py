"""Which nodes of a teacher answer to which of a student: BK-SDM's pairs, from a block's end, or a clear refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asdm_cli.errors import ModelError
from asdm_cli.training.distillation import FeatureRecorder
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import per_level, preset
from asdm_cli.unet.feature_pairs import FeaturePair, feature_pairs
from asdm_cli.unet.flops import inputs
from asdm_cli.unet.surgery import remove
from tests import tiny

BLOCKS = ["down.?", "up.?"]
EIGHT = [f"{side}_blocks.{i}" for side in ("down", "up") for i in range(4)]


def student(shape: str, removed: Any) -> Anatomy:
    return Anatomy.of(remove(preset(shape), removed).config)


def pairs(found: list[FeaturePair]) -> list[tuple[str, str]]:
    """Modules of student and teacher, one by one."""
    return [pair for tap in found for pair in zip(tap.student_modules, tap.teacher_modules, strict=True)]


SIX = [
    ("down_blocks.0", "down_blocks.0"),
    ("down_blocks.1", "down_blocks.1"),
    ("down_blocks.2.attentions.0.proj_out", "down_blocks.2.attentions.1.proj_out"),
    ("up_blocks.0", "up_blocks.1"),
    ("up_blocks.1", "up_blocks.2"),
    ("up_blocks.2", "up_blocks.3"),
]
INNER = "down_blocks.2.attentions.{}.transformer_blocks.{}.attn1"


@pytest.mark.parametrize(
    ("shape", "removed", "patterns", "wanted"),
    [
        *((shape, removed, BLOCKS, [(name, name) for name in EIGHT]) for shape in ("sd15", "sd21")
          for removed in ("base", "small")),
        *((shape, "tiny", BLOCKS, SIX) for shape in ("sd15", "sd21")),
        ("sdxl", "base", BLOCKS, [(f"{side}_blocks.{i}",) * 2 for side in ("down", "up") for i in range(3)]),
        ("sd15", "base", ["down.1.?", "up.2.?"], [
            ("down_blocks.1.attentions.0", "down_blocks.1.attentions.1"),
            ("up_blocks.2.attentions.0", "up_blocks.2.attentions.1"),
            ("up_blocks.2.attentions.1", "up_blocks.2.attentions.2"),
        ]),
        ("sdxl", "base", "down.2.*.self", [(INNER.format(0, k), INNER.format(1, k)) for k in range(10)]),
        ("sdxl", "koala-1b", ["down.2.0.self", "down.2.0.attn.5"], [
            *((INNER.format(0, k), INNER.format(1, k + 4)) for k in range(6)),
            (INNER.format(0, 5).removesuffix(".attn1"), INNER.format(1, 9).removesuffix(".attn1")),
        ]),
        ("sd15", "base", ["down.0.sampler", "down.3.0.resnet", "mid"], [
            ("down_blocks.0.downsamplers.0", "down_blocks.0.downsamplers.0"),
            ("down_blocks.3.resnets.0", "down_blocks.3.resnets.1"),
            ("mid_block", "mid_block"),
        ]),
    ],
)  # fmt: skip
def test_pairs(shape: str, removed: str, patterns: Any, wanted: list[tuple[str, str]]) -> None:
    """BK-SDM's own eight and six; layers and depths from the end; parts of transformers one by one; resamplers and
    resnets."""
    assert pairs(feature_pairs(student(shape, removed), Anatomy.of(preset(shape)), patterns)) == wanted


def config(**changes: Any) -> dict[str, Any]:
    return {**preset("sd15"), **changes}


@pytest.mark.parametrize(
    ("other", "patterns", "fault"),
    [
        (config(block_out_channels=[320, 512, 1280, 1280]), BLOCKS, r"down\.1: is 640 channels wide .* down\.1 512;"),
        (config(mid_block_type=None), ["mid"], "mid: the teacher has no mid block of level 3"),
        (config(layers_per_block=1), ["down.0.0"], r"down\.0\.0: the teacher's down\.0 has 1 layer\(s\), .* end"),
        (config(), ["down.9"], r"down\.9"),
        (
            config(down_block_types=["DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"],
                   up_block_types=["UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"]),
            ["down.0.1.attn"],
            r"down\.0\.1\.attn: the teacher's down\.0 has no 1\.attn",
        ),
    ],
)  # fmt: skip
def test_what_has_no_answer_is_refused_by_its_address(other: dict[str, Any], patterns: list[str], fault: str) -> None:
    with pytest.raises(ModelError, match=fault):
        feature_pairs(Anatomy.of(preset("sd15")), Anatomy.of(other), patterns)


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("mid.0.self", r"mid\.0\.self: has 10 .* the teacher has 6"),
        ("mid.0.attn.3", r"mid\.0\.attn\.3: the teacher's mid\.0\.attn has 6 block\(s\), .* end"),
    ],
)
def test_a_depth_beyond_the_teachers_is_refused(pattern: str, fault: str) -> None:
    with pytest.raises(ModelError, match=fault):
        feature_pairs(Anatomy.of(preset("sdxl")), student("sdxl", "koala-1b"), pattern)


def test_a_block_that_ends_with_a_transformer_on_one_side_only_is_compared_by_its_last_layers() -> None:
    kinds = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]
    ours = config(
        block_out_channels=[320, 640, 1280],
        down_block_types=kinds,
        up_block_types=[kind.replace("Down", "Up") for kind in reversed(kinds)],
    )
    found = pairs(feature_pairs(Anatomy.of(ours), Anatomy.of(preset("sd15")), "down.2"))
    assert found == [("down_blocks.2.resnets.1", "down_blocks.2.attentions.1")]


KINDS = st.sampled_from(["CrossAttnDownBlock2D", "DownBlock2D"])


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """UNets of two or three levels of any widths, depths and block types."""
    levels = draw(st.integers(2, 3))
    kinds = draw(st.lists(KINDS, min_size=levels, max_size=levels))
    return tiny.shape(
        "sd15",
        block_out_channels=draw(st.lists(st.sampled_from([4, 8]), min_size=levels, max_size=levels)),
        layers_per_block=draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels)),
        transformer_layers_per_block=draw(st.lists(st.integers(1, 2), min_size=levels, max_size=levels)),
        mid_block_type=draw(st.sampled_from([None, "UNetMidBlock2DCrossAttn"])),
        down_block_types=kinds,
        up_block_types=[kind.replace("Down", "Up") for kind in reversed(kinds)],
    )


WANTED = st.lists(
    st.sampled_from(["down.?", "up.?", "mid", "down.?.?", "up.?.?", "*.resnet", "*.attn", "*.self", "*.ff"]),
    min_size=1,
    max_size=3,
    unique=True,
)  # fmt: skip
REMOVED = st.lists(st.sampled_from(["down.0.1", "up.2.1", "down.1.0", "up.1.0", "mid", "down.2", "up.0"]), unique=True)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_every_pair_has_equal_shapes_or_is_refused(data: st.DataObject) -> None:
    teacher = data.draw(configs())
    other = data.draw(st.one_of(configs(), st.just(teacher)))
    try:
        gone = data.draw(REMOVED)
        other = remove(other, gone).config if gone else other
        found = feature_pairs(Anatomy.of(other), Anatomy.of(teacher), data.draw(WANTED))
    except ModelError:
        return
    assert found
    assert outputs(other, [name for name, _ in pairs(found)]) == outputs(teacher, [name for _, name in pairs(found)])


def outputs(config: dict[str, Any], modules: list[str]) -> list[torch.Size]:
    """Shapes of these modules' outputs in a forward."""
    assert per_level(config, "block_out_channels")
    with torch.device("meta"):
        unet = tiny.UNet2DConditionModel.from_config(config)
        features = FeatureRecorder(unet, modules)
        with features.recorded() as kept:
            unet(**inputs(config, batch=1, size=16, tokens=3))
    return [kept[name].shape for name in modules]
