"""The shards: drawings rendered at 64 x 64 on white, split by a list, written for webdataset, read back as tensors.

    wide        every drawing of the six sets but the held-out ones: what the autoencoder and the CLIPs learn from
    train       128 labels in six styles without the held-out ones: what the UNet learns from; ships
    held-out    one (label, style) of each of the 128 labels; ships
    evaluation  the held-out captions and one trained caption of each label, in turn; ships

Where one of `fluent` and `flat` is held out, its twin is the same drawing, and is learnt from nowhere.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
import webdataset
from PIL import Image
from rich.progress import track
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_expander

from asdm_cli.data.images import read_rgb
from asdm_cli.errors import RunError
from asdm_cli.training.loop import Noise
from pocket.art import SAME_DRAWING, SETS, Drawing, drawings, fetch

SIZE = 64
HERE = Path(__file__).parent
HELD_OUT, TRAIN, TWIN = "held-out", "trained", "twin"
"""Parts of the data, as the samples name their own; twins are in no shard."""


@dataclass(frozen=True)
class Pairs:
    """`images` is uint8 [n, 3, h, w]; `about` holds each sample's label, style, group and split."""

    images: Tensor
    captions: list[str]
    about: list[dict[str, str]]

    def __len__(self) -> int:
        return len(self.captions)


def labels() -> list[str]:
    return (HERE / "labels.txt").read_text().splitlines()


def held_out() -> set[str]:
    return set((HERE / "held_out.txt").read_text().splitlines())


def part_of(label: str, style: str, held: set[str]) -> str:
    """HELD_OUT, TWIN (the same drawing as a held-out one) or TRAIN."""
    if f"{label}, {style} style" in held:
        return HELD_OUT
    twins = next((same for same in SAME_DRAWING if style in same), {style})
    return TWIN if any(f"{label}, {other} style" in held for other in twins) else TRAIN


def build(folder: Path) -> dict[str, int]:
    """Write every shard into `folder`; samples per shard. Each is in the order of its captions' hashes."""
    fetch(folder / "npm")
    of = {drawing.caption: drawing for drawing in reversed(list(drawings(folder / "npm")))}  # the first of a caption
    held, chosen = held_out(), labels()
    lacking = [name for name in held | {f"{x}, {a.style} style" for x in chosen for a in SETS} if name not in of]
    if lacking:
        raise RunError(f"the packages lack {len(lacking)} drawings, such as {lacking[0]!r}; is a version another?")
    part = {caption: part_of(drawing.label, drawing.style, held) for caption, drawing in of.items()}
    wide = _shuffled(caption for caption, own in part.items() if own == TRAIN)
    shards = {
        "wide": wide,
        "train": [caption for caption in wide if of[caption].label in set(chosen)],
        "held-out": _shuffled(held),
    }
    known = {of[caption].label: caption for caption in reversed(shards["train"])}
    shards["evaluation"] = [each for caption in shards["held-out"] for each in (caption, known[of[caption].label])]
    images = _render([of[caption] for caption in [*wide, *shards["held-out"]]])
    for name, captions in shards.items():
        _write(folder / f"{name}.tar.gz", [(of[caption], part[caption]) for caption in captions], images)
    return {name: len(captions) for name, captions in shards.items()}


def read(shard: Path) -> Pairs:
    """All samples of a shard, in its own order."""
    if not shard.is_file():
        raise RunError(f"{shard} is missing; `make data` fetches and renders it")
    images, captions, about = [], [], []
    with shard.open("rb") as file:  # WebDataset(path) leaves it open, and shares its samples out among processes
        for sample in group_by_keys(tar_file_expander([{"url": shard.name, "stream": file}])):
            images.append(torch.from_numpy(numpy.array(read_rgb(sample["png"]))).permute(2, 0, 1))
            captions.append(sample["txt"].decode())
            about.append(json.loads(sample["json"]))
    return Pairs(torch.stack(images), captions, about)


def to_unit(images: Tensor) -> Tensor:
    """uint8 0..255 -> float -1..1, what the VAE and the CLIPs of pocket take."""
    return images.float() / 127.5 - 1


def moved(images: Tensor, noise: Noise, scale: tuple[float, float] = (0.85, 1.1), shift: float = 0.08) -> Tensor:
    """Mirrored, scaled and shifted at random, white outside; [n, 3, h, w] in -1..1. `shift` is a share of the side."""
    low, high = scale
    size = 1 / (low + (high - low) * noise.uniform())  # the grid says where each pixel comes from
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0] = size * torch.where(noise.uniform() < 0.5, -1.0, 1.0)
    theta[:, 1, 1] = size
    theta[:, :, 2] = 2 * shift * (2 * noise.uniform(2) - 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images - 1, grid, mode="bicubic", align_corners=False).add(1).clamp(-1, 1)


def _shuffled(captions: Iterable[str]) -> list[str]:
    return sorted(captions, key=lambda caption: hashlib.md5(caption.encode(), usedforsecurity=False).hexdigest())


def _render(wanted: list[Drawing]) -> dict[str, bytes]:
    with ProcessPoolExecutor() as pool:
        rendered = pool.map(render, (drawing.svg for drawing in wanted), chunksize=32)
        images = track(rendered, "rendering", total=len(wanted))
        return {drawing.caption: png for drawing, png in zip(wanted, images, strict=True)}


def render(svg: str) -> bytes:
    """The drawing as an RGB PNG, SIZE x SIZE, centred on white."""
    import resvg_py  # needed only to build the data: the `pocket` extra

    raw = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, background="white"))
    image = read_rgb(raw)
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    canvas.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    out = io.BytesIO()
    canvas.save(out, "PNG", optimize=True)
    return out.getvalue()


def _write(path: Path, items: list[tuple[Drawing, str]], images: dict[str, bytes]) -> None:
    """The same samples give the same bytes."""
    partial = path.with_suffix(".partial")
    with (
        partial.open("wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=0) as packed,
        webdataset.TarWriter(packed, mtime=0, user="", group="") as tar,
    ):
        for number, (drawing, part) in enumerate(items):
            about = {"label": drawing.label, "style": drawing.style, "group": drawing.group, "split": part}
            tar.write(
                {
                    "__key__": f"{number:06d}",
                    "json": json.dumps(about, sort_keys=True).encode(),
                    "png": images[drawing.caption],
                    "txt": drawing.caption.encode(),
                }
            )
    partial.replace(path)
