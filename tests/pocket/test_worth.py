"""What blocks are worth: taken out for a moment, and back again."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from pocket.worth import blocks, zeroed
from tests import tiny


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel.from_config(tiny.SHAPES["sd15"]).eval()


def call(unet: UNet2DConditionModel) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return unet(torch.randn(1, 4, 8, 8), 500, torch.randn(1, 3, tiny.WIDTH)).sample


def test_a_block_hands_on_nothing_and_is_there_again(unet: UNet2DConditionModel) -> None:
    whole = call(unet)
    for name, block in blocks(unet).items():
        with zeroed(block):
            without = call(unet)
        assert not torch.equal(without, whole), name
        assert torch.equal(call(unet), whole), name
