"""Small pictures with captions, as shards and as folders, for every test that looks at pictures."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from pathlib import Path

import webdataset
from PIL import Image, ImageDraw

from asdm_cli.sampling.image_set import ImageSet

COLOURS = ("red", "green", "blue", "orange", "purple", "black")
FORMS = ("ellipse", "rectangle")


def drawing(index: int, size: int = 32) -> Image.Image:
    """Five forms in random colours and places on white; the same index gives the same picture."""
    dice = random.Random(index)
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    for _ in range(5):
        left, top = dice.randrange(size * 3 // 4), dice.randrange(size * 3 // 4)
        box = (left, top, left + dice.randrange(4, size // 2), top + dice.randrange(4, size // 2))
        getattr(pen, dice.choice(FORMS))(box, fill=dice.choice(COLOURS))
    return picture


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def caption(index: int) -> str:
    return f"{COLOURS[index % 6]} {index}"


def sample(index: int, size: int = 32) -> dict[str, bytes]:
    about = {"split": "novel-label" if index % 3 == 0 else "novel-style", "label": COLOURS[index % 6]}
    return {
        "png": png(drawing(index, size)),
        "txt": caption(index).encode(),
        "json": json.dumps(about).encode(),
    }


def shard(file: Path, count: int, spoilt: Mapping[int, Mapping[str, bytes | None]] = {}, size: int = 32) -> Path:
    """`spoilt[i]` replaces parts of sample i; None leaves the part out."""
    with webdataset.TarWriter(str(file), mtime=0) as tar:
        for index in range(count):
            parts = {**sample(index, size), **spoilt.get(index, {})}
            tar.write({"__key__": f"{index:04}", **{name: part for name, part in parts.items() if part is not None}})
    return file


def picture_set(folder: Path, pictures: list[Image.Image]) -> ImageSet:
    made = ImageSet(folder, len(pictures))
    for index, picture in enumerate(pictures):
        made.save(index, picture)
    return made
