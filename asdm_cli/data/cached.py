"""Samples read from a cache: rows of memory-mapped files, the same bits every time."""

from __future__ import annotations

import json
import math
import struct
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from asdm_cli.data.cache import EMPTY
from asdm_cli.data.cache_key import read_done, read_note, tensor_file
from asdm_cli.data.samples import Batch, Condition
from asdm_cli.errors import ModelError

DTYPES = {"F16": numpy.float16, "F32": numpy.float32}
PICTURES = ("latents", "flipped")


class CachedSamples:
    """A complete cache. Nothing is loaded: the operating system keeps what is read often in memory."""

    def __init__(self, folder: Path):
        counts, self.faults = read_done(folder)
        self.folder = folder
        self._starts = numpy.cumsum([0, *counts])
        self.size = int(self._starts[-1])
        self._shards = {number: _mapped(tensor_file(folder, number)) for number, count in enumerate(counts) if count}
        empty = _mapped(folder / EMPTY)
        self.empty = _condition({name: torch.from_numpy(rows.copy()).float() for name, rows in empty.items()})

    @cached_property
    def captions(self) -> list[str]:
        notes = (read_note(self.folder, number)[0] for number in range(len(self._starts) - 1))
        return [caption for note in notes for caption in note["caption"]]

    def read(self, rows: Tensor, flipped: Tensor | None = None) -> Batch:
        numbers = rows.numpy()
        names = [name for name in next(iter(self._shards.values())) if name not in PICTURES]
        latents = self._take("latents", numbers)
        if flipped is not None and flipped.any():
            latents[flipped] = self._take("flipped", numbers[flipped.numpy()])
        return Batch(latents, _condition({name: self._take(name, numbers) for name in names}))

    def _take(self, name: str, rows: numpy.ndarray) -> Tensor:
        """float32 [n, ...]; rows of one shard are fetched together."""
        shards, within = locate(self._starts, rows)
        first = self._shards[int(shards[0])][name]
        taken = numpy.empty((len(rows), *first.shape[1:]), first.dtype)
        for shard in numpy.unique(shards):
            here = numpy.flatnonzero(shards == shard)
            taken[here] = self._shards[int(shard)][name][within[here]]
        return torch.from_numpy(taken).float()


def locate(starts: numpy.ndarray, rows: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Shard and place within it of every row; `starts` are the shards' first rows and, last, the end."""
    if len(rows) and not (rows.min() >= 0 and rows.max() < starts[-1]):
        raise IndexError(f"rows {rows.min()}..{rows.max()} of {starts[-1]} samples")
    shards = numpy.searchsorted(starts, rows, side="right") - 1
    return shards, rows - starts[shards]


def _condition(tensors: dict[str, Tensor]) -> Condition:
    return Condition(tensors["text"], {name: value for name, value in tensors.items() if name != "text"})


def _mapped(file: Path) -> dict[str, numpy.ndarray]:
    """The tensors of a safetensors file as views of one mapping (safetensors' own readers copy whole tensors)."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > file.stat().st_size:
                raise ValueError("its header is longer than it")
            header = json.loads(opened.read(length))
        data = numpy.memmap(file, numpy.uint8, "r", offset=8 + length)
        return {name: _view(data, entry) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ModelError(f"{file}: is damaged ({error}); remove {file.parent} and let it be made again") from None


def _view(data: numpy.memmap, entry: dict[str, Any]) -> numpy.ndarray:
    begin, end = entry["data_offsets"]
    dtype = numpy.dtype(DTYPES[entry["dtype"]])
    if end > len(data) or end - begin != math.prod(entry["shape"]) * dtype.itemsize:
        raise ValueError("it is shorter than it says")
    return numpy.ndarray(entry["shape"], dtype, data, begin)
