"""What does not learn: by address, by module outside the blocks, by the donor that it came from."""

from __future__ import annotations

import pytest

from asdm_cli.errors import ModelError
from asdm_cli.training.plan import frozen_keys
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.cost import shapes
from asdm_cli.unet.presets import preset

KEYS = list(shapes(preset("sd15")))
TAKEN = {
    "original": ["down.2", "down.3", "mid", "up.0", "up.1", "time_embedding"],
    "base": ["down.0", "down.1", "up.2", "up.3", "conv_in", "conv_norm_out", "conv_out"],
}


def frozen(patterns: str | list[str], taken: dict[str, list[str]] | None = None) -> frozenset[str]:
    return frozen_keys(Anatomy.of(preset("sd15")), KEYS, patterns, taken or {})


def beginning(*prefixes: str) -> set[str]:
    return {key for key in KEYS if key.startswith(prefixes)}


@pytest.mark.parametrize(
    ("patterns", "prefixes"),
    [
        ("mid", ("mid_block.",)),
        (["down.0", "up.3.1"], ("down_blocks.0.", "up_blocks.3.resnets.1.", "up_blocks.3.attentions.1.")),
        ("level.3", ("down_blocks.3.", "up_blocks.0.")),
        (["conv_in", "time_embedding"], ("conv_in.", "time_embedding.")),
        (["conv_norm_out", "mid.0.resnet"], ("conv_norm_out.", "mid_block.resnets.0.")),
        ("down.?.sampler", tuple(f"down_blocks.{i}.downsamplers." for i in range(3))),
    ],
)
def test_patterns_freeze_what_they_name(patterns: str | list[str], prefixes: tuple[str, ...]) -> None:
    found = frozen(patterns)
    assert found == beginning(*prefixes)
    assert 0 < len(found) < len(KEYS)


def test_parts_of_a_transformer_go_with_their_norms() -> None:
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    assert frozen("down.0.0.self") == beginning(f"{block}.attn1.", f"{block}.norm1.")
    whole = frozen("down.0.0.attn")
    assert whole == beginning("down_blocks.0.attentions.0.")


def test_a_donors_share_is_frozen() -> None:
    found = frozen("from original", TAKEN)
    assert found == beginning(
        "down_blocks.2.", "down_blocks.3.", "mid_block.", "up_blocks.0.", "up_blocks.1.", "time_embedding."
    )
    assert found | frozen(["from base"], TAKEN) == set(KEYS)
    assert frozen(["from original", "conv_in"], TAKEN) == found | beginning("conv_in.")


@pytest.mark.parametrize(
    ("patterns", "taken", "fault"),
    [
        ("from nobody", TAKEN, "'from nobody': the student has nothing from 'nobody'; its donors are original, base"),
        ("from original", {}, "'from original': the student has nothing from 'original'; it was not made by asdm as"),
        ("down.7", {}, r"down\.7"),
        (
            ["mid", "conv_inn"],
            {},
            "conv_inn: .*; outside the blocks are conv_in, conv_norm_out, conv_out, time_embedding$",
        ),
    ],
)
def test_what_names_nothing_is_refused(patterns: str | list[str], taken: dict[str, list[str]], fault: str) -> None:
    with pytest.raises(ModelError, match=fault):
        frozen(patterns, taken)
