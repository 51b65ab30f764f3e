"""Sets of images as PNG files named by prompt index: written one by one and whole, read as batches of tensors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from PIL import Image
from torch import Tensor

from asdm_cli.console import track
from asdm_cli.data.images import CROP, UnreadableError, cut, is_whole, read_file
from asdm_cli.errors import RunError
from asdm_cli.models.metadata import Origin, claim
from asdm_cli.sampling.prompts import PromptList, real_images


@dataclass(frozen=True)
class ImageSet:
    """`count` images of one size; image i is `folder/00000i.png`."""

    folder: Path
    count: int

    def path(self, index: int) -> Path:
        return self.folder / f"{index:06}.png"

    def claim(self, origin: Origin) -> None:
        """Images of another origin go away."""
        claim(self.folder, origin)

    def missing(self, indices: Iterable[int] | None = None) -> list[int]:
        """Those of `indices`, or of all, whose file is not there or not whole."""
        return [
            index for index in (range(self.count) if indices is None else indices) if not is_whole(self.path(index))
        ]

    def absent(self) -> list[int]:
        """Those whose file is not there; what is there was looked at before, or is written whole."""
        return [index for index in range(self.count) if not self.path(index).exists()]

    def save(self, index: int, image: Image.Image) -> None:
        """Whole or not at all: a kill leaves a `.partial` file that nobody reads."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.path(index).with_suffix(f".partial-{os.getpid()}")
        image.save(partial, "PNG")
        partial.replace(self.path(index))

    def first(self, count: int) -> ImageSet:
        return ImageSet(self.folder, min(count, self.count))

    def batches(self, size: int = 32) -> Iterator[Tensor]:
        """uint8 [<= size, 3, height, width], in order of index."""
        for start in range(0, self.count, size):
            yield torch.stack([read(self.path(i)) for i in range(start, min(start + size, self.count))])

    def digest(self) -> str:
        """SHA-256 over the files' bytes: two sets share it only if they hold the same images."""
        whole = hashlib.sha256()
        for index in range(self.count):
            whole.update(hashlib.sha256(self.path(index).read_bytes()).digest())
        return whole.hexdigest()


def read(path: Path) -> Tensor:
    """uint8 [3, height, width]."""
    try:
        pixels = numpy.array(read_file(path))
    except UnreadableError as error:
        raise RunError(f"{path}: cannot be read ({error}); run the same command again, it is drawn anew") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def to_image(pixels: Tensor) -> Image.Image:
    """uint8 [3, height, width] -> RGB image."""
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def real_set(prompts: PromptList, size: int, folder: Path) -> ImageSet:
    """All real images of the prompts' shards, kept in `folder`; those of another size are cut to a square and resized
    (Lanczos)."""
    real = ImageSet(folder, prompts.real)
    real.claim(real_origin(prompts, size))
    if missing := set(real.missing()):
        for index, image in enumerate(track(real_images(prompts.shards), "reading the real pictures", real.count)):
            if index in missing:
                real.save(index, cut(image, size))
    return real


def real_origin(prompts: PromptList, size: int) -> Origin:
    return {"prompts": prompts.title, "size": size, "pictures": CROP}


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, real: ImageSet, target: ImageSet) -> None:
    """What is left of the real images after the VAE (encoded to the posterior's mode, and decoded): the best that any
    UNet on its latents can be asked for."""
    dtype = vae.dtype
    if dtype == torch.float16 and getattr(vae.config, "force_upcast", False):  # SDXL's overflows
        vae.to(torch.float32)
    try:
        for index in track(target.missing(), "real pictures through the VAE"):
            signed = read(real.path(index))[None].to(vae.device, vae.dtype) / 127.5 - 1
            decoded = vae.decode(retrieve_latents(vae.encode(signed), sample_mode="argmax")).sample
            if not decoded.isfinite().all():
                raise RunError("the VAE makes no numbers of real pictures; draw in float32 or bfloat16 (`dtype`)")
            target.save(index, to_image(((decoded[0].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)))
    finally:
        vae.to(dtype)
