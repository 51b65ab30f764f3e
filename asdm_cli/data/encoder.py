"""What a UNet is trained on: pictures -> latents, captions -> what cross-attention reads, with the parts of a pipeline
that distillation keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from torch import Tensor

from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.directory import ModelDirectory
from asdm_cli.models.load import cut_captions, load_pipeline

PARTS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
"""Components whose files say what latents and text states are."""
PIXELS = 2**21
"""Of pictures that are encoded at once: eight of 512 px, two of 1024 px, some 5 GB of what a VAE has between layers."""


@dataclass(frozen=True)
class Condition:
    """`text` [n, tokens, width]: what cross-attention reads; `added`: SDXL's `text_embeds` [n, width] and `time_ids`
    [n, 6], empty for others. float32, on the CPU."""

    text: Tensor
    added: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """`latents` [n, channels, height, width], scaled to the UNet's variance, float32 on the CPU."""

    latents: Tensor
    condition: Condition


def check_resolution(model: ModelDirectory, resolution: int) -> None:
    """ModelError unless latents of pictures of this size have a whole number of rows."""
    factor = 2 ** (len(model.config("vae").get("block_out_channels", [0])) - 1)
    if resolution <= 0 or resolution % factor:
        below = max(factor, resolution // factor * factor)
        raise ModelError(f"resolution {resolution}: this VAE needs a multiple of {factor}; take {below}")


class Encoder:
    """VAE and text encoders of one pipeline, for square pictures of `resolution` pixels. Not in inference mode: what
    comes out takes part in training."""

    def __init__(self, pipe: Any, resolution: int):
        self.pipe, self.resolution, self.vae = pipe, resolution, pipe.vae

    @classmethod
    def load(cls, model: ModelDirectory, resolution: int, device: torch.device) -> Encoder:
        check_resolution(model, resolution)
        return cls(load_pipeline(model, device, torch.float32, with_unet=False), resolution)

    @torch.no_grad()
    def latents(self, pictures: Sequence[numpy.ndarray], flipped: bool = False) -> Tensor:
        """uint8 [h, w, 3] each -> the posterior's means [n, c, h, w], scaled as the UNet learned them; float32, CPU."""
        few = max(1, PIXELS // self.resolution**2)
        found = []
        for start in range(0, len(pictures), few):
            pixels = (
                torch.from_numpy(numpy.stack(pictures[start : start + few])).permute(0, 3, 1, 2).float() / 127.5 - 1
            )
            pixels = pixels.flip(-1) if flipped else pixels
            encoded = self.vae.encode(pixels.to(self.pipe.device, self.vae.dtype))
            found.append(self.scaled(retrieve_latents(encoded, sample_mode="argmax").float()).cpu())
        return _finite(torch.cat(found), "the VAE")

    def scaled(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor
        mean, std = (latents.new_tensor(each).view(1, -1, 1, 1) for each in (mean, std))
        return (latents - mean) * config.scaling_factor / std

    @torch.no_grad()
    def condition(self, captions: Sequence[str]) -> Condition:
        """As the pipeline itself encodes its prompts."""
        text, _, *pooled = self.pipe.encode_prompt(
            prompt=list(captions), device=self.pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        text = _finite(text.float().cpu(), "the text encoder")
        if not pooled:
            return Condition(text)
        side = float(self.resolution)
        sizes = torch.tensor([[side, side, 0.0, 0.0, side, side]]).repeat(len(captions), 1)
        return Condition(text, {"text_embeds": _finite(pooled[0].float().cpu(), "the text encoder"), "time_ids": sizes})

    def cut(self, captions: Iterable[str]) -> int:
        """How many are longer than what the text encoder takes in."""
        return cut_captions(self.pipe, captions)[0]

    def empty(self) -> Condition:
        """What the pipeline puts in a missing prompt's place: "" encoded, or zeros where SDXL says so."""
        condition = self.condition([""])
        if not self.pipe.config.get("force_zeros_for_empty_prompt"):
            return condition
        zeros = torch.zeros_like(condition.added["text_embeds"])
        return Condition(torch.zeros_like(condition.text), {**condition.added, "text_embeds": zeros})


def _finite(values: Tensor, what: str) -> Tensor:
    if torch.isfinite(values).all():
        return values
    raise RunError(f"{what} gives values that are not finite; fetch it again, or put in the one that it was made with")
