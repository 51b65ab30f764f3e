"""Pictures inside the page: each file becomes a data URI of a size that a page can bear."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from asdm_cli.data.images import UnreadableError, read_file
from asdm_cli.errors import RunError

LARGEST_PX = 256
"""Pictures with a longer side are shrunk to this; the originals stay in the run directory."""
SMALL_PX = 128
"""Up to this side a picture is stored without loss."""
WEBP_QUALITY = 85


@dataclass(frozen=True)
class Picture:
    uri: str
    width: int
    height: int
    """Of the original, px."""


def embed(file: Path) -> Picture:
    """The picture, decoded and written anew, so that only pixels reach the page. RunError if it cannot be read."""
    try:
        picture = read_file(file)
    except UnreadableError as error:
        raise RunError(f"{file}: a picture of the report cannot be read ({error}); run the recipe again") from None
    size = picture.size
    picture.thumbnail((LARGEST_PX, LARGEST_PX), Image.Resampling.LANCZOS)
    return Picture(_uri(picture), *size)


def _uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    if max(picture.size) <= SMALL_PX:
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        picture.save(buffer, "WEBP", quality=WEBP_QUALITY)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
