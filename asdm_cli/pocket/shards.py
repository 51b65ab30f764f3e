"""Drawings -> webdataset shards of (png, txt, json) at 64x64 on white."""

from __future__ import annotations

import hashlib
import io
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import webdataset
from PIL import Image
from rich.progress import track

from asdm_cli.data.images import read_rgb
from asdm_cli.pocket.art import Drawing, drawings, fetch
from asdm_cli.pocket.split import NOVEL_LABEL, NOVEL_STYLE, split

SIZE = 64
SMALL_TRAIN = 2000


def build(folder: Path) -> dict[str, int]:
    """Write train.tar, train-small.tar and validation.tar into `folder`; pairs per shard.

    Every shard is shuffled by hash, so its first n samples are a fair sample of it.
    """
    fetch(folder / "npm")
    sides = split(drawings(folder / "npm"))
    train = _shuffled([(drawing, "train") for drawing in sides["train"]])
    held = _shuffled([(drawing, kind) for kind in (NOVEL_STYLE, NOVEL_LABEL) for drawing in sides[kind]])
    counts = {"train": len(train), "train-small": SMALL_TRAIN, "validation": len(held)}
    pictures = _render([drawing for drawing, _ in train + held])
    _write(folder / "train.tar", train, pictures)
    _write(folder / "train-small.tar", train[:SMALL_TRAIN], pictures)
    _write(folder / "validation.tar", held, pictures)
    return counts


def _shuffled(items: list[tuple[Drawing, str]]) -> list[tuple[Drawing, str]]:
    return sorted(items, key=lambda item: hashlib.md5(item[0].caption.encode()).hexdigest())


def _render(wanted: list[Drawing]) -> dict[str, bytes]:
    with ProcessPoolExecutor() as pool:
        rendered = pool.map(render, (drawing.svg for drawing in wanted), chunksize=32)
        pictures = track(rendered, "rendering", total=len(wanted))
        return {drawing.caption: png for drawing, png in zip(wanted, pictures, strict=True)}


def render(svg: str) -> bytes:
    """The drawing as an RGB PNG, SIZE x SIZE, centred on white."""
    import resvg_py  # needed only to build the data: the `pocket` extra

    raw = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, background="white"))
    picture = read_rgb(raw)
    picture.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    canvas.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    out = io.BytesIO()
    canvas.save(out, "PNG", optimize=True)
    return out.getvalue()


def _write(path: Path, items: list[tuple[Drawing, str]], pictures: dict[str, bytes]) -> None:
    partial = path.with_suffix(".partial")
    with webdataset.TarWriter(str(partial), mtime=0, user="", group="") as tar:
        for number, (drawing, kind) in enumerate(items):
            about = {
                "label": drawing.label,
                "style": drawing.style,
                "group": drawing.group,
                "split": kind,
            }
            tar.write(
                {
                    "__key__": f"{number:06d}",
                    "json": json.dumps(about, sort_keys=True).encode(),
                    "png": pictures[drawing.caption],
                    "txt": drawing.caption.encode(),
                }
            )
    partial.replace(path)
