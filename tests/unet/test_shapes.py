"""Shapes that a config promises, said without diffusers, against those of the UNet that diffusers builds."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from diffusers import UNet2DConditionModel
from hypothesis import given, settings

from asdm_cli.errors import ModelError
from asdm_cli.models.families import configs
from asdm_cli.unet import shapes
from asdm_cli.unet.blocks import plain, preset
from asdm_cli.unet.flops import built_shapes
from asdm_cli.unet.shapes import tensor_shapes
from asdm_cli.unet.surgery import remove
from tests import stock, tiny
from tests.foreign.models import KINDS
from tests.foreign.models import config as foreign

FAMILY = ("sd15", "sd21", "sdxl")
WHOLE = {f"preset {name}": preset(name) for name in FAMILY}
WHOLE |= {f"shipped {name}": configs(name)["unet/config.json"] for name in FAMILY}
WHOLE |= {f"{name} {what}": remove(preset(name), [what]).config for name in FAMILY[:2] for what in ("base", "tiny")}
WHOLE |= {f"tiny {name}": tiny.shape(name) for name in FAMILY}
FOREIGN = {name: foreign(name) for name in KINDS if name not in ("kandinsky22", "uncond-unet2d")}
VALUES: tuple[Any, ...] = (None, True, 0, 2, 0.5, -1, "gelu", "text_time", [1, 2], {"a": 1})
SETTINGS = [*inspect.signature(UNet2DConditionModel.__init__).parameters][1:]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of diffusers."""
    monkeypatch.setattr("asdm_cli.unet.flops.built_shapes", lambda _: pytest.fail("asked"))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", WHOLE)
def test_the_familys_tensors_are_known_without_diffusers(name: str) -> None:
    assert tensor_shapes(WHOLE[name]) == built_shapes(WHOLE[name])


@pytest.mark.parametrize("name", FOREIGN)
def test_of_others_every_tensor_is_right(name: str) -> None:
    assert tensor_shapes(FOREIGN[name]) == built_shapes(FOREIGN[name])


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("key", SETTINGS)
def test_whatever_a_setting_says_the_answer_is_diffusers(family: str, key: str) -> None:
    """The same tensors, or an error where it builds nothing."""
    asked = 0
    for value in VALUES:
        config = {**tiny.shape(family), key: plain(value)}
        try:
            alone = shapes._usual(config)
        except ModelError:
            continue
        if alone:
            asked += 1
            assert tensor_shapes(config) == built_shapes(config), value
    assert asked or key.endswith(("_types", "block_out_channels", "act_fn")) or key in shapes.USUAL


@given(stock.shapes())
@settings(max_examples=20, deadline=None)
def test_random_shapes(config: dict[str, Any]) -> None:
    assert tensor_shapes(config) == built_shapes(config)
