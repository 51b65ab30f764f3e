"""Filling picture sets: a contestant's share of the prompts, the real pictures, what the VAE makes of those."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image, ImageOps
from torch import Tensor

from asdm_cli.measure.contestants import blame, image_call, networks
from asdm_cli.measure.generate import ROWS, pictures, unet_calls
from asdm_cli.measure.pictures import PictureSet, read, to_picture
from asdm_cli.measure.trajectory import count
from asdm_cli.models.load import load_pipeline, set_sampler
from asdm_cli.models.provenance import FILE
from asdm_cli.models.source import ModelDirectory
from asdm_cli.progress import track
from asdm_cli.switching.inheriting import engines
from asdm_cli.switching.pipelines import switched
from asdm_cli.unet.cost import macs

ORIGIN = "origin.json"
Origin = dict[str, Any]
"""All that a picture set depends on, as JSON: sets of another origin are not gone on with."""


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


def claim(target: PictureSet, origin: Origin) -> None:
    """Make `target` a place for pictures of this origin: pictures of another one go away."""
    file = target.folder / ORIGIN
    text = json.dumps(origin, indent=2, sort_keys=True)
    if file.is_file() and file.read_text() == text:
        return
    shutil.rmtree(target.folder, ignore_errors=True)
    target.folder.mkdir(parents=True)
    file.write_text(text)


def stamps(directory: ModelDirectory) -> list[list[str | int]]:
    """Name, bytes and time of every file of a model: changed weights, or another plan, are noticed without reading
    gigabytes."""
    places = [*(file for folder in directory.components.values() for file in folder.rglob("*")), directory.path / FILE]
    files = sorted(file for file in places if file.is_file())
    return [[str(file.relative_to(directory.path)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


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


def unet_macs(pipe: Any, style: Style) -> int:
    """Multiply-accumulates of the UNet in one picture, with both halves of guidance.

    Of a model that inherits, or whose UNets take turns, they are counted while it draws one.
    """
    if engines(pipe) or switched(pipe):
        drawn = count("the model", networks(pipe), image_call(pipe, 1, style.steps, style.guidance, style.size))
        return drawn.components["unet"].total
    rows = 2 if style.guidance > 1 else 1
    latent = style.size // pipe.vae_scale_factor
    call = macs(dict(pipe.unet.config), batch=rows, size=latent, tokens=pipe.tokenizer.model_max_length)
    return call.total * unet_calls(pipe, style.steps)


def keep_real(source: Iterable[Image.Image], target: PictureSet, size: int) -> None:
    """The shard's pictures as files; those of another size are cut to a square and resized (Lanczos)."""
    missing = set(target.missing(range(target.count)))
    if not missing:
        return
    for index, picture in enumerate(track(source, "reading the real pictures", target.count)):
        if index in missing:
            target.save(index, fitted(picture, size))


def fitted(picture: Image.Image, size: int) -> Image.Image:
    if picture.size == (size, size):
        return picture
    return ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)


def reconstruct(vae: AutoencoderKL, real: PictureSet, target: PictureSet) -> None:
    """What is left of the real pictures after the VAE: the best that any UNet on its latents can be asked for."""
    missing = target.missing(range(target.count))
    for index in track(missing, "real pictures through the VAE"):
        target.save(index, to_picture(_through(vae, read(real.path(index))[None])[0]))


@torch.inference_mode()
def _through(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """uint8 [n, 3, h, w] -> the same, encoded to the posterior's mode and decoded."""
    signed = pixels.to(vae.device, vae.dtype) / 127.5 - 1
    decoded = vae.decode(vae.encode(signed).latent_dist.mode()).sample
    return ((decoded.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
