"""Bytes of a picture -> the square RGB pixels that a VAE reads."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor

CROP = "upright, on white, centre square, Lanczos"
"""The rule below in words: part of what a cache is made of."""
FORMATS = ("PNG", "JPEG", "WEBP")
"""Nothing else is tried: some of Pillow's readers start other programs."""
DEEP = ("I", "F")


class UnreadableError(ValueError):
    """The bytes are no picture that can be read; the message says why."""


def square(data: bytes, resolution: int) -> numpy.ndarray:
    """uint8 [resolution, resolution, 3]. Raises UnreadableError, whatever is wrong with the bytes."""
    return numpy.asarray(ImageOps.fit(read_rgb(data), (resolution, resolution), Image.Resampling.LANCZOS))


def read_rgb(data: bytes) -> Image.Image:
    """The whole picture, decoded, upright, transparent parts white."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.mode.startswith(DEEP):
                raise UnreadableError(f"{picture.mode} pixels have more than 8 bits a channel")
            picture.load()
            return _opaque(ImageOps.exif_transpose(picture))
    except UnreadableError:
        raise
    except Exception as error:  # Pillow's readers fail in a dozen ways on damaged bytes
        reason = re.sub(r" <_io\.BytesIO.*?>", "", str(error))  # the same words for the same bytes, in every run
        raise UnreadableError(f"{type(error).__name__}: {reason}") from None


def _opaque(picture: Any) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def to_unit(pictures: Sequence[numpy.ndarray]) -> Tensor:
    """uint8 [h, w, 3] each -> float32 [n, 3, h, w] in -1..1."""
    return torch.from_numpy(numpy.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
