"""Stock UNet configs at their real sizes, so that costs can be measured without any download. No torch."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from asdm_cli.errors import ModelError

_COMMON: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
}
_SD: dict[str, Any] = {
    **_COMMON,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
PRESETS: dict[str, dict[str, Any]] = {
    "sd15": {**_SD, "attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
    "sd21": {
        **_SD,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "sample_size": 96,
        "upcast_attention": True,
        "use_linear_projection": True,
    },
    "sdxl": {
        **_COMMON,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    },
}
"""Stable Diffusion 1.x, 2.1 (768 px) and XL base."""


def preset(name: str) -> dict[str, Any]:
    """A fresh copy of the config called `name`."""
    if name in PRESETS:
        return deepcopy(PRESETS[name])
    raise ModelError(f"{name}: no such UNet preset; use one of {', '.join(PRESETS)}")
