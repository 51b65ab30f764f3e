"""Tiny pipelines of every family that single files are written for, with random weights, as diffusers saves them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
)

from tests import tiny

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
XL_WIDTHS = (6, 10)
"""Of SDXL's two text encoders: diffusers tells them apart by their widths."""
KINDS: dict[str, dict[str, Any]] = {
    "sd15": {"shape": "sd15"},
    "sd15-inpaint": {"shape": "sd15", "in_channels": 9, "pipeline": "StableDiffusionInpaintPipeline"},
    "sd15-pix2pix": {"shape": "sd15", "in_channels": 8, "pipeline": "StableDiffusionInstructPix2PixPipeline"},
    "sd21": {"shape": "sd21", "prediction_type": "v_prediction"},
    "sd21-inpaint": {"shape": "sd21", "in_channels": 9, "pipeline": "StableDiffusionInpaintPipeline"},
    "sdxl": {"shape": "sdxl", "pipeline": "StableDiffusionXLPipeline"},
    "sdxl-v": {"shape": "sdxl", "pipeline": "StableDiffusionXLPipeline", "prediction_type": "v_prediction"},
    "sdxl-inpaint": {"shape": "sdxl", "in_channels": 9, "pipeline": "StableDiffusionXLInpaintPipeline"},
    "sdxl-refiner": {"shape": "refiner", "pipeline": "StableDiffusionXLImg2ImgPipeline"},
}
OTHERS: dict[str, dict[str, Any]] = {
    "sd15-image": {"shape": "sd15", "pipeline": "StableDiffusionImg2ImgPipeline"},
    "sd21-depth": {"shape": "sd21", "in_channels": 5, "pipeline": "StableDiffusionDepth2ImgPipeline"},
    "sd21-upscale": {"shape": "sd21", "in_channels": 7, "pipeline": "StableDiffusionUpscalePipeline"},
    "sdxl-image": {"shape": "sdxl", "pipeline": "StableDiffusionXLImg2ImgPipeline"},
    "sdxl-pix2pix": {"shape": "sdxl", "in_channels": 8, "pipeline": "StableDiffusionXLInstructPix2PixPipeline"},
    "lcm": {"shape": "sd15", "pipeline": "LatentConsistencyModelPipeline", "scheduler": diffusers.LCMScheduler},
}
"""Pipelines that no single file is written for."""
UNETS = {"sd21-upscale": {"num_class_embeds": 1000}, "lcm": {"time_cond_proj_dim": 8}}
REFINER = tiny.shape("sdxl", projection_class_embeddings_input_dim=5 * 4 + 8, cross_attention_dim=XL_WIDTHS[1])


def kept(kinds: dict[str, str], folders: pytest.TempPathFactory) -> Callable[[str], Path]:
    """(a name of `kinds`) -> its pipeline's directory, made once; its UNet has two levels, for it draws a lot."""

    def make(name: str) -> Path:
        shallow = tiny.SHALLOW["sdxl" if "XL" in name else "sd15"]
        return pipeline(kinds[name], folders.mktemp("models") / "model", **shallow)

    return cache(make)


def pipeline(kind: str, folder: Path, **unet: Any) -> Path:
    """The pipeline's directory; `unet` replaces settings of its UNet."""
    torch.manual_seed(0)
    told = {**KINDS, **OTHERS}[kind].copy()
    scheduler = told.get("scheduler", diffusers.DDIMScheduler)
    shape, name = told.pop("shape"), told.pop("pipeline", "StableDiffusionPipeline")
    config = REFINER if shape == "refiner" else tiny.shape(shape)
    words = tiny.tokenizer(folder / "tokenizer")
    parts: dict[str, Any] = {
        "unet": tiny.unet({**config, "in_channels": told.get("in_channels", 4), **UNETS.get(kind, {}), **unet}),
        "vae": vae(),
        "scheduler": scheduler(**BETAS, prediction_type=told.get("prediction_type", "epsilon")),
    }
    if shape.startswith("sd1") or shape.startswith("sd2"):
        parts |= {"text_encoder": encoder(words, tiny.WIDTH, shape == "sd21"), "tokenizer": words}
        parts |= _besides(name)
    else:
        both = shape == "sdxl"
        parts |= {"text_encoder": encoder(words, XL_WIDTHS[0], False) if both else None}
        parts |= {"tokenizer": words if both else None, "tokenizer_2": words}
        parts |= {"text_encoder_2": encoder(words, XL_WIDTHS[1], True, projected=True)}
        asks = inspect.signature(getattr(diffusers, name).__init__).parameters
        parts |= {"requires_aesthetics_score": not both} if "requires_aesthetics_score" in asks else {}
    parts["vae"].register_to_config(scaling_factor=0.08333 if kind.endswith("upscale") else 0.18215)
    kind_of_pipeline = getattr(diffusers, name)
    kind_of_pipeline(**parts).save_pretrained(folder)
    return folder


def _besides(name: str) -> dict[str, Any]:
    """What pipelines around SD 1.x and 2.x have, or are told, besides."""
    if name == "StableDiffusionDepth2ImgPipeline":
        return {"depth_estimator": _depth_estimator(), "feature_extractor": DPTImageProcessorPil(size=SEEN)}
    if name == "StableDiffusionUpscalePipeline":
        return {"low_res_scheduler": diffusers.DDPMScheduler(**BETAS), "max_noise_level": 350}
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


SEEN = {"height": 32, "width": 32}


def _depth_estimator() -> DPTForDepthEstimation:
    """That of MiDaS in small, which looks at pictures of `SEEN`."""
    torch.manual_seed(0)  # whatever was drawn before: some see the same depth everywhere
    config = DPTConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=4, num_attention_heads=1, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[4, 4, 4, 4], fusion_hidden_size=4, is_hybrid=False,
    )  # fmt: skip
    made = DPTForDepthEstimation(config).eval()
    for name, parameter in made.head.named_parameters():  # deep enough for its last layer to see something
        torch.nn.init.constant_(parameter, 1.0) if name.endswith("bias") else torch.nn.init.normal_(parameter)
    return stirred(made)


def encoder(words: Any, width: int, open_clip: bool, projected: bool = False) -> Any:
    """A text encoder that is shaped like CLIP's, or like open_clip's."""
    text = tiny._text(words) | {
        "hidden_size": width,
        "projection_dim": 8,
        "hidden_act": "gelu" if open_clip else "quick_gelu",
    }
    model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**text)).eval()
    return stirred(model)


def vae() -> Any:
    """With attention in the middle, as those of SD have."""
    return stirred(
        AutoencoderKL(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=2,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=32,
        ).eval()
    )


def stirred(model: Any) -> Any:
    """Nothing at its initial zero or one, so that no tensor can stand for another."""
    generator = torch.Generator().manual_seed(sum(map(ord, type(model).__name__)))
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model
