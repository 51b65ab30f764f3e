"""UNets as small as they come, for tests that need many of them: every kind of block and of unevenness."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from tests import tiny

SHORT = {"block_out_channels": [8, 16], "layers_per_block": 1}
SD = {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
SHAPES: dict[str, dict[str, Any]] = {
    "two levels": tiny.shape("sd15", **SHORT, **SD),
    "no mid": tiny.shape("sd15", **SHORT, **SD, mid_block_type=None),
    "uneven": tiny.shape("sd15", **{**SHORT, **SD, "layers_per_block": [1, 2]}),
    "one level": tiny.shape(
        "sd15",
        block_out_channels=[8],
        down_block_types=["CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D"],
    ),
    "deep": tiny.shape(
        "sdxl",
        **SHORT,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        attention_head_dim=[1, 2],
        transformer_layers_per_block=[1, 2],
    ),
}


@cache
def unet(shape: str) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny.unet(SHAPES[shape])
