"""Model directories around the UNet configurations here, of the pipelines that the published models have."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests import tiny

HERE = Path(__file__).parent
WIDTH, HALF = 32, 16
"""Of the text that these UNets take in, and of what each of SDXL's two encoders gives."""
XL = "StableDiffusionXLPipeline"
DEPTH = 3


@dataclass(frozen=True)
class Kind:
    """Of what pipeline a published model is, with which scheduler, and which text encoders it has."""

    pipeline: str = "StableDiffusionPipeline"
    scheduler: str = "DDIMScheduler"
    encoders: tuple[str, ...] = ("text_encoder",)


_XL = Kind(XL, "EulerDiscreteScheduler", ("text_encoder_xl", "text_encoder_2"))
KINDS = {
    "bk-tiny": Kind(),
    "gligen-sd-class": Kind(),
    "ip-saved": Kind(),
    "kandinsky22": Kind("KandinskyV22Pipeline", encoders=()),
    "lcm-dreamshaper": Kind(scheduler="LCMScheduler"),
    "marigold": Kind("MarigoldDepthPipeline"),
    "playground-v25": Kind(XL, "EDMDPMSolverMultistepScheduler", _XL.encoders),
    "sd-x4-upscaler": Kind("StableDiffusionUpscalePipeline"),
    "sd15-inpaint": Kind("StableDiffusionInpaintPipeline", "PNDMScheduler"),
    "sd21-unclip": Kind("StableUnCLIPImg2ImgPipeline"),
    "sdxl-refiner": Kind("StableDiffusionXLImg2ImgPipeline", "EulerDiscreteScheduler", ("text_encoder_refiner",)),
    "ssd1b": _XL,
    "uncond-unet2d": Kind("DDPMPipeline", encoders=()),
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def config(name: str) -> dict[str, Any]:
    """As it lies here, but for transformers deeper than `DEPTH`: more blocks of the same take time and tell nothing."""
    held = json.loads((HERE / f"{name}.json").read_text())
    return {key: _shallow(value) if "transformer_layers" in key else value for key, value in held.items()}


def _shallow(depths: Any) -> Any:
    return [_shallow(each) for each in depths] if isinstance(depths, list) else depths and min(depths, DEPTH)


def parts(folder: Path) -> Path:
    """Everything but UNets and schedulers, once for all models."""
    words = tiny.tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    tiny._vae().save_pretrained(folder / "vae")
    text = tiny._text(words)
    wide, half = {**text, "hidden_size": WIDTH}, {**text, "hidden_size": HALF, "projection_dim": HALF}
    CLIPTextModel(CLIPTextConfig(**wide)).eval().save_pretrained(folder / "text_encoder")
    CLIPTextModel(CLIPTextConfig(**half)).eval().save_pretrained(folder / "text_encoder_xl")
    CLIPTextModelWithProjection(CLIPTextConfig(**half)).eval().save_pretrained(folder / "text_encoder_2")
    refiner = CLIPTextConfig(**{**wide, "projection_dim": HALF})
    CLIPTextModelWithProjection(refiner).eval().save_pretrained(folder / "text_encoder_refiner")
    return folder


def directory(name: str, parts: Path, folder: Path, **changes: Any) -> Path:
    """The model directory; `changes` to what its index says."""
    kind, network = KINDS[name], unet(name)
    network.save_pretrained(folder / "unet")
    scheduler = getattr(diffusers, kind.scheduler)
    settings: dict[str, Any] = {} if kind.scheduler.startswith("EDM") else dict(BETAS)
    settings |= {"skip_prk_steps": True} if kind.scheduler == "PNDMScheduler" else {}
    scheduler(**settings).save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {"_class_name": kind.pipeline, "_diffusers_version": "0.42.1"}
    index |= {"unet": ["diffusers", type(network).__name__], "scheduler": ["diffusers", kind.scheduler]}
    for part in ("vae", *(("tokenizer", *kind.encoders) if kind.encoders else ())):
        home = "text_encoder_2" if part == "text_encoder_refiner" else part.removesuffix("_xl")
        shutil.copytree(parts / part, folder / home, copy_function=os.link)
        index[home] = ["diffusers", "AutoencoderKL"] if part == "vae" else ["transformers", _class_of(home)]
        if home == "text_encoder_2":
            shutil.copytree(parts / "tokenizer", folder / "tokenizer_2", copy_function=os.link)
            index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    index |= {"requires_aesthetics_score": True} if name == "sdxl-refiner" else {}
    (folder / "model_index.json").write_text(json.dumps({**index, **changes}))
    return folder


def _class_of(home: str) -> str:
    return {"tokenizer": "CLIPTokenizer", "text_encoder": "CLIPTextModel"}.get(home, "CLIPTextModelWithProjection")


def unet(name: str) -> Any:
    held = config(name)
    torch.manual_seed(0)
    made = getattr(diffusers, held["_class_name"]).from_config(held).eval()
    if name == "ip-saved":
        made._load_ip_adapter_weights([tiny.image_adapter(made)])
    return made
