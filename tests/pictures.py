"""Inputs of pipelines that draw from pictures, as a folder and as a shard; and what their calls are given of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from asdm_cli.models.pipelines import CALLED, PIPELINES
from tests.drawings import caption, drawing, png

SIDE, SMALL = 32, 8
"""Of what the tiny pipelines draw, and of what the one that enlarges draws from."""


def picture(index: int, size: int = SIDE) -> Image.Image:
    return drawing(index).resize((size, size))


def mask(index: int, size: int = SIDE) -> Image.Image:
    """White on the left, a little wider each time."""
    return Image.fromarray(((numpy.arange(size) < size // 2 + index) * 255).astype("uint8")[None].repeat(size, 0))


def folder(place: Path, count: int = 2, size: int = SIDE, masks: bool = True) -> Path:
    """Pictures, captions and masks."""
    place.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        (place / f"{index:04}.png").write_bytes(png(picture(index, size)))
        (place / f"{index:04}.txt").write_text(caption(index))
        if masks:
            (place / f"{index:04}.mask.png").write_bytes(png(mask(index, size)))
    return place


def side_of(pipeline: str) -> int:
    return SMALL if PIPELINES[pipeline].enlarges else SIDE


def call(pipeline: str, indices: list[int]) -> dict[str, Any]:
    """All that a user of diffusers would give such a pipeline, but steps and noise."""
    takes, size = PIPELINES[pipeline].takes, side_of(pipeline)
    given: dict[str, Any] = {"prompt": [caption(index) for index in indices]}
    given |= {"image": [picture(index, size) for index in indices]} if "image" in takes else {}
    given |= {CALLED["mask"]: [mask(index, size) for index in indices]} if "mask" in takes else {}
    return given if "image" in takes else given | {"height": size, "width": size}
