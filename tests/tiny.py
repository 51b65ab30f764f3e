"""Tiny models with random weights, shaped like the real ones, for every test that needs a model on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

from asdm_cli.unet.blocks import preset

TOKENS = 16
WIDTH = 16
IMAGE_WIDTH = 12
START, END = "<|startoftext|>", "<|endoftext|>"

_SMALL = {"norm_num_groups": 4, "sample_size": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "sd15": {
        **preset("sd15"),
        **_SMALL,
        "block_out_channels": [8, 16, 32, 32],
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
    },
    "sd21": {
        **preset("sd21"),
        **_SMALL,
        "block_out_channels": [8, 16, 32, 32],
        "cross_attention_dim": WIDTH,
        "attention_head_dim": [1, 2, 4, 4],
    },
    "sdxl": {
        **preset("sdxl"),
        **_SMALL,
        "block_out_channels": [8, 16, 32],
        "cross_attention_dim": WIDTH,
        "attention_head_dim": [1, 2, 4],
        "transformer_layers_per_block": [1, 2, 3],
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 8,
    },
}
"""UNet configs with the block structure of the presets, a few thousand times smaller."""
SHALLOW: dict[str, dict[str, Any]] = {
    "sd15": {
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [8, 16],
        "attention_head_dim": 2,
    },
    "sdxl": {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [8, 16],
        "attention_head_dim": 2,
        "transformer_layers_per_block": [1, 2],
    },
}
"""What leaves a shape's first and last level; that of sd15 is good for sd21, too. Half of the modules, half of the
time."""


def shape(name: str, **changes: Any) -> dict[str, Any]:
    return {**SHAPES[name], **changes}


def unet(config: dict[str, Any], seed: int = 0) -> UNet2DConditionModel:
    """Random weights that leave nothing at its initial zero or one, so that no tensor's absence goes unseen."""
    generator = torch.Generator().manual_seed(seed)
    model = UNet2DConditionModel.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


def image_adapter(unet: UNet2DConditionModel) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of an image-prompt adapter (IP-Adapter) for this UNet; `IMAGE_WIDTH` wide is what it is told of a
    picture."""
    context = unet.config.cross_attention_dim
    projection = {"proj.weight": (4 * context, IMAGE_WIDTH), "proj.bias": (4 * context,)}
    projection |= {"norm.weight": (context,), "norm.bias": (context,)}
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    widths = [unet.get_submodule(name.removesuffix(".processor")).to_k.out_features for name in names]
    keys = [2 * number + 1 for number, name in enumerate(names)]
    attention = {
        f"{key}.to_{part}_ip.weight": torch.zeros(width, context)
        for key, width in zip(keys, widths, strict=True)
        for part in "kv"
    }
    return {"image_proj": {name: torch.zeros(shape) for name, shape in projection.items()}, "ip_adapter": attention}


def tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's file format with single bytes for words: letters, their word-final forms, the two marks; no merges."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    made = CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)
    made.save_pretrained(folder)
    return made


def pipeline(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A whole StableDiffusionPipeline directory with the extra `clip/`: 32 x 32 pixels, latents 4 x 8 x 8; `changes`
    replaces settings of its UNet."""
    torch.manual_seed(seed)
    words = tokenizer(folder / "tokenizer")
    StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**_text(words))).eval(),
        tokenizer=words,
        unet=unet(shape("sd15", **changes), seed),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    clip(folder / "clip", words)
    return folder


def probe(folder: Path, classes: Sequence[str]) -> None:
    """A probe for labels that takes everything for the first class."""
    folder.mkdir(parents=True)
    target = {"classes": list(classes), "inputs": ["pooled"]}
    (folder / "config.json").write_text(json.dumps({"network": "efficientnet_lite0", "targets": {"label": target}}))
    bias = torch.eye(len(classes))[0]
    save_file({"label.weight": torch.zeros(len(classes), 1280), "label.bias": bias}, folder / "model.safetensors")


def clip(folder: Path, words: CLIPTokenizer) -> None:
    vision = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=_text(words), vision_config={**vision, "image_size": 32, "patch_size": 8}, projection_dim=WIDTH
    )
    CLIPModel(config).eval().save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    words.save_pretrained(folder)


def _text(words: CLIPTokenizer) -> dict[str, Any]:
    return {
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS,
        "projection_dim": WIDTH,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=False,
        sample_size=32,
    ).eval()


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
