"""Filling picture sets: a contestant's share of the prompts, the real pictures, what the VAE makes of those."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from PIL import Image
from torch import Tensor

from asdm_cli.console import track
from asdm_cli.data.images import cut
from asdm_cli.measure.contestants import blame, image_call, networks
from asdm_cli.measure.generate import ROWS, pictures
from asdm_cli.measure.pictures import PictureSet, read, to_picture
from asdm_cli.measure.trajectory import count
from asdm_cli.models.load import load_pipeline
from asdm_cli.models.schedulers import set_sampler
from asdm_cli.models.source import ModelDirectory


@dataclass(frozen=True)
class Style:
    """How one contestant draws; `size` in pixels."""

    steps: int
    guidance: float
    size: int
    seed: int
    sampler: str
    batch: int
    device: torch.device
    dtype: torch.dtype
    alone: bool = False
    """One call at a time, as `pictures` has it."""


@dataclass(frozen=True)
class Share:
    """Which of `count` processes draws what: stretches of prompts in turn, by index alone."""

    rank: int
    count: int

    def of(self, indices: Iterable[int], batch: int) -> list[int]:
        stretch = -(-batch // ROWS) * ROWS  # whole UNet calls only
        return [index for index in indices if index // stretch % self.count == self.rank]


def painter(directory: ModelDirectory, style: Style) -> DiffusionPipeline:
    pipe = load_pipeline(directory, style.device, style.dtype)
    set_sampler(pipe, style.sampler)
    return pipe


def draw(
    name: str, pipe: DiffusionPipeline, prompts: Sequence[str], wanted: list[int], style: Style
) -> Iterator[tuple[int, Image.Image]]:
    """Yield (index, picture) of the `wanted` prompts behind a progress bar. RunError that names who could not."""
    drawn = pictures(
        pipe,
        prompts,
        wanted,
        what=f"drawing with {name}",
        steps=style.steps,
        guidance=style.guidance,
        size=style.size,
        seed=style.seed,
        batch=style.batch,
        alone=style.alone,
    )
    with blame(name, "drawing"):
        yield from drawn


def unet_macs(name: str, pipe: DiffusionPipeline, style: Style) -> int:
    """Multiply-accumulates of the UNet in one picture, counted while it is drawn: how often it is called, and on how
    many latents, is the sampler's and the pipeline's own affair."""
    drawn = count(name, networks(pipe), image_call(pipe, 1, style.steps, style.guidance, style.size))
    return drawn.components["unet"].total


def keep_real(source: Iterable[Image.Image], target: PictureSet, size: int) -> None:
    """The shard's pictures as files; those of another size are cut to a square and resized (Lanczos)."""
    missing = set(target.missing(range(target.count)))
    if not missing:
        return
    for index, picture in enumerate(track(source, "reading the real pictures", target.count)):
        if index in missing:
            target.save(index, cut(picture, size))


def reconstruct(vae: AutoencoderKL, real: PictureSet, target: PictureSet) -> None:
    """What is left of the real pictures after the VAE: the best that any UNet on its latents can be asked for."""
    missing = target.missing(range(target.count))
    for index in track(missing, "real pictures through the VAE"):
        target.save(index, to_picture(_through(vae, read(real.path(index))[None])[0]))


@torch.inference_mode()
def _through(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """uint8 [n, 3, h, w] -> the same, encoded to the posterior's mode and decoded."""
    signed = pixels.to(vae.device, vae.dtype) / 127.5 - 1
    decoded = vae.decode(retrieve_latents(vae.encode(signed), sample_mode="argmax")).sample
    return ((decoded.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
