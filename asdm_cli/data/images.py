"""Images are read here and nowhere else: bytes -> RGB, and the squares of it that a VAE learns from. No torch."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy
from PIL import Image, ImageOps

CROP = "upright, on white, centre square, Lanczos"
"""The rule below in words: part of what a cache is made of."""
FORMATS = ("PNG", "JPEG", "WEBP")
"""Nothing else is tried: some of Pillow's readers start other programs."""
DEEP = ("I", "F")
LARGEST_FILE = 1 << 28
"""Bytes; more is no image but a way to fill the memory."""
LARGEST = 1 << 27
"""Pixels, told by the header before any of them is decoded."""


class UnreadableError(ValueError):
    """The bytes are no image that can be read; the message says why."""


def square(data: bytes, resolution: int) -> numpy.ndarray:
    """uint8 [resolution, resolution, 3]. Raises UnreadableError, whatever is wrong with the bytes."""
    return numpy.asarray(cut(read_rgb(data), resolution))


def cut(image: Image.Image, resolution: int) -> Image.Image:
    """Its middle square at this size; an image that has it stays as it is."""
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)


def read_rgb(data: bytes, ground: str = "white") -> Image.Image:
    """The whole image, decoded, upright, on this ground where it is transparent."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > LARGEST:
                raise UnreadableError(f"{image.width} x {image.height} pixels; {LARGEST} in all are read at most")
            if image.mode.startswith(DEEP):
                raise UnreadableError(f"{image.mode} pixels have more than 8 bits a channel")
            image.load()
            upright = ImageOps.exif_transpose(image)
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            layer = upright.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", layer.size, ground), layer).convert("RGB")
    except UnreadableError:
        raise
    except Exception as error:  # Pillow's readers fail in a dozen ways on damaged bytes
        reason = re.sub(r" <_io\.BytesIO.*?>", "", str(error))  # the same words for the same bytes, in every run
        raise UnreadableError(f"{type(error).__name__}: {reason}") from None


def read_file(file: Path, ground: str = "white") -> Image.Image:
    """The same of a file."""
    return read_rgb(file_bytes(file), ground)


def file_bytes(file: Path) -> bytes:
    """All of an image's file. Raises UnreadableError for what is none, too."""
    try:
        if not file.is_file() or file.stat().st_size > LARGEST_FILE:
            raise UnreadableError("no file, or none of an image's size")
        return file.read_bytes()
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from None


def is_whole(file: Path) -> bool:
    """Whether this is a PNG of which every chunk's checksum is right, up to the last."""
    try:
        with Image.open(file, formats=("PNG",)) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return True
