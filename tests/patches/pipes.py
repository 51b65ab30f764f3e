"""Whole pipelines around the tiny UNets, in memory, and what they draw: all that a plan can be put on."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from asdm_cli.models.schedulers import set_sampler
from tests import tiny

KINDS = {
    "text": StableDiffusionPipeline,
    "image": StableDiffusionImg2ImgPipeline,
    "inpaint": StableDiffusionInpaintPipeline,
    "control": StableDiffusionControlNetPipeline,
    "xl": StableDiffusionXLPipeline,
    "xl-image": StableDiffusionXLImg2ImgPipeline,
}
HALF = 8
"""Width of each of SDXL's two text encoders; the UNet reads both."""
SCALE = 4
"""Pixels of the tiny autoencoder per latent pixel, and so of the ControlNet's picture."""


def pipe(kind: str = "text", sampler: str = "ddim", unet: UNet2DConditionModel | None = None) -> Any:
    """A pipeline with a scheduler and, if none is given, a UNet of its own; all else is shared."""
    xl = kind.startswith("xl")
    unet = unet or copy.deepcopy(_unet("sdxl" if xl else "sd15"))
    parts: dict[str, Any] = {"unet": unet, "vae": _vae(), "scheduler": tiny._scheduler(), "tokenizer": _tokenizer()}
    if xl:
        parts |= {"text_encoder": _encoder(HALF), "text_encoder_2": _projecting_encoder(HALF)}
        parts |= {"tokenizer_2": _tokenizer(), "add_watermarker": False}
    else:
        parts |= {"text_encoder": _encoder(tiny.WIDTH), "safety_checker": None, "feature_extractor": None}
        parts |= {"requires_safety_checker": False}
    if kind == "control":
        parts["controlnet"] = _controlnet(unet)
    made: Any = KINDS[kind](**parts)
    made.set_progress_bar_config(disable=True)
    set_sampler(made, sampler)
    return made


def shallow(kind: str = "text", sampler: str = "ddim") -> Any:
    """One whose UNet has two levels: it draws in half of the time."""
    return pipe(kind, sampler, copy.deepcopy(_shallow("sdxl" if kind.startswith("xl") else "sd15")))


def draw(pipe: Any, steps: int = 3, size: int = 32, count: int = 1, seed: int = 0, **settings: Any) -> Tensor:
    """Latents, one for each of `count` prompts; a seed each."""
    noise = [torch.Generator().manual_seed(seed + index) for index in range(count)]
    given = {"prompt": ["a red fox", "two owls", "cup"][:count], "num_inference_steps": steps, "output_type": "latent"}
    return pipe(**given, generator=noise, **{**_pictures(type(pipe).__name__, size, count), **settings}).images


def of_a_thread(pipe: Any) -> Any:
    """As sampling.generate has it: the same networks, and a scheduler and a tokenizer of its own, which have states."""
    made = copy.copy(pipe)
    made.scheduler, made.tokenizer = copy.deepcopy(pipe.scheduler), copy.deepcopy(pipe.tokenizer)
    return made


def _pictures(pipeline: str, size: int, count: int) -> dict[str, Any]:
    """What else the pipelines of this name are given: sizes, or pictures of that size."""
    picture = torch.linspace(0, 1, 3 * size * size).reshape(1, 3, size, size).expand(count, -1, -1, -1)
    if pipeline == "StableDiffusionInpaintPipeline":
        mask = (torch.arange(size) < size // 2).float().expand(count, 1, size, size)
        return {"image": picture, "mask_image": mask, "strength": 1.0, "height": size, "width": size}
    if pipeline == "StableDiffusionControlNetPipeline":
        return {"image": picture, "height": size, "width": size}
    return {"image": picture, "strength": 0.7} if "Img2Img" in pipeline else {"height": size, "width": size}


@cache
def _tokenizer() -> CLIPTokenizer:
    with TemporaryDirectory() as folder:
        return tiny.tokenizer(Path(folder))


@cache
def _unet(shape: str) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny.unet(tiny.SHAPES[shape])


@cache
def _shallow(shape: str) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny.unet(tiny.shape(shape, **tiny.SHALLOW[shape]))


@cache
def _vae() -> AutoencoderKL:
    torch.manual_seed(1)
    return tiny._vae()


@cache
def _encoder(width: int) -> CLIPTextModel:
    torch.manual_seed(2)
    return CLIPTextModel(CLIPTextConfig(**{**tiny._text(_tokenizer()), "hidden_size": width})).eval()


@cache
def _projecting_encoder(width: int) -> CLIPTextModelWithProjection:
    torch.manual_seed(3)
    config = {**tiny._text(_tokenizer()), "hidden_size": width, "projection_dim": width}
    return CLIPTextModelWithProjection(CLIPTextConfig(**config)).eval()


def _controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Its closing convolutions start at zero; random ones make it matter."""
    channels = tuple(8 * each for each in range(1, SCALE.bit_length() + 1))
    made = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels[: SCALE.bit_length()]).eval()
    generator = torch.Generator().manual_seed(4)
    for parameter in made.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return made
