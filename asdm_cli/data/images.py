"""Pictures are read here and nowhere else: bytes -> RGB, and the squares of it that a VAE learns from. No torch."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy
from PIL import Image, ImageOps

CROP = "upright, on white, centre square, Lanczos"
"""The rule below in words: part of what a cache is made of."""
FORMATS = ("PNG", "JPEG", "WEBP")
"""Nothing else is tried: some of Pillow's readers start other programs."""
DEEP = ("I", "F")
LARGEST_FILE = 1 << 28
"""Bytes; more is no picture but a way to fill the memory."""
LARGEST = 1 << 27
"""Pixels, told by the header before any of them is decoded."""


class UnreadableError(ValueError):
    """The bytes are no picture that can be read; the message says why."""


def square(data: bytes, resolution: int) -> numpy.ndarray:
    """uint8 [resolution, resolution, 3]. Raises UnreadableError, whatever is wrong with the bytes."""
    return numpy.asarray(cut(read_rgb(data), resolution))


def cut(picture: Image.Image, resolution: int) -> Image.Image:
    """Its middle square at this size; a picture that has it stays as it is."""
    return ImageOps.fit(picture, (resolution, resolution), Image.Resampling.LANCZOS)


def read_rgb(data: bytes) -> Image.Image:
    """The whole picture, decoded, upright, transparent parts white."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > LARGEST:
                raise UnreadableError(f"{picture.width} x {picture.height} pixels; {LARGEST} in all are read at most")
            if picture.mode.startswith(DEEP):
                raise UnreadableError(f"{picture.mode} pixels have more than 8 bits a channel")
            picture.load()
            return _opaque(ImageOps.exif_transpose(picture))
    except UnreadableError:
        raise
    except Exception as error:  # Pillow's readers fail in a dozen ways on damaged bytes
        reason = re.sub(r" <_io\.BytesIO.*?>", "", str(error))  # the same words for the same bytes, in every run
        raise UnreadableError(f"{type(error).__name__}: {reason}") from None


def read_file(file: Path) -> Image.Image:
    """The same of a file."""
    return read_rgb(file_bytes(file))


def file_bytes(file: Path) -> bytes:
    """All of a picture's file. Raises UnreadableError for what is none, too."""
    try:
        if not file.is_file() or file.stat().st_size > LARGEST_FILE:
            raise UnreadableError("no file, or none of a picture's size")
        return file.read_bytes()
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from None


def is_whole(file: Path) -> bool:
    """Whether this is a PNG of which every chunk's checksum is right, up to the last."""
    try:
        with Image.open(file, formats=("PNG",)) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _opaque(picture: Any) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")
