"""The shards of (picture, caption, about) read whole into memory: 85 MB for seven thousand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
import webdataset
from torch import Tensor

from asdm_cli.data.images import read_rgb


@dataclass(frozen=True)
class Pairs:
    """`pictures` is uint8 [n, 3, h, w]; `about` holds each sample's label, style, group and split."""

    pictures: Tensor
    captions: list[str]
    about: list[dict]

    def __len__(self) -> int:
        return len(self.captions)


def read_pairs(shard: Path, limit: int | None = None) -> Pairs:
    """The first `limit` samples of a shard, in its own order."""
    pictures, captions, about = [], [], []
    for sample in webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=True):
        pictures.append(torch.from_numpy(numpy.array(read_rgb(sample["png"]))).permute(2, 0, 1))
        captions.append(sample["txt"].decode())
        about.append(json.loads(sample["json"]))
        if len(captions) == limit:
            break
    return Pairs(torch.stack(pictures), captions, about)


def to_unit(pictures: Tensor) -> Tensor:
    """uint8 0..255 -> float -1..1, what the VAE and the CLIP of pocket take."""
    return pictures.float() / 127.5 - 1
