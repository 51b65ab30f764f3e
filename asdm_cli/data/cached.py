"""Samples read from a cache: rows of its files, the same bits every time."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
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
    """A complete cache. Nothing is loaded or mapped: the operating system keeps what is read often in memory, and a
    file that is cut short meanwhile is told, where a mapping would end the process."""

    def __init__(self, folder: Path):
        counts, self.faults = read_done(folder)
        self.folder = folder
        self._starts = numpy.cumsum([0, *counts])
        self.size = int(self._starts[-1])
        self._shards = {number: _opened(tensor_file(folder, number)) for number, count in enumerate(counts) if count}
        empty = _opened(folder / EMPTY)
        self.empty = _condition({name: torch.from_numpy(rows.take(range(1))).float() for name, rows in empty.items()})

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
        taken = numpy.empty((len(rows), *first.shape), first.dtype)
        for shard in numpy.unique(shards):
            here = numpy.flatnonzero(shards == shard)
            taken[here] = self._shards[int(shard)][name].take(within[here])
        return torch.from_numpy(taken).float()


def locate(starts: numpy.ndarray, rows: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Shard and place within it of every row; `starts` are the shards' first rows and, last, the end."""
    if len(rows) and not (rows.min() >= 0 and rows.max() < starts[-1]):
        raise IndexError(f"rows {rows.min()}..{rows.max()} of {starts[-1]} samples")
    shards = numpy.searchsorted(starts, rows, side="right") - 1
    return shards, rows - starts[shards]


def _condition(tensors: dict[str, Tensor]) -> Condition:
    return Condition(tensors["text"], {name: value for name, value in tensors.items() if name != "text"})


@dataclass(frozen=True)
class Rows:
    """A tensor in a safetensors file, of which rows are read one by one; `shape` is that of a row."""

    file: Path
    start: int
    dtype: numpy.dtype
    shape: tuple[int, ...]

    def take(self, rows: Sequence[int] | numpy.ndarray) -> numpy.ndarray:
        taken = numpy.empty((len(rows), *self.shape), self.dtype)
        size = math.prod(self.shape) * self.dtype.itemsize
        seats = taken.reshape(len(rows), -1).view(numpy.uint8)
        try:
            with self.file.open("rb", buffering=0) as opened:
                got = [
                    os.preadv(opened.fileno(), [seat.data], self.start + int(row) * size)
                    for seat, row in zip(seats, rows, strict=True)
                ]
        except OSError as error:
            raise _damaged(self.file, error) from None
        if any(count != size for count in got):
            raise _damaged(self.file, "it has become shorter")
        return taken


def _opened(file: Path) -> dict[str, Rows]:
    """The tensors of a safetensors file, unread (safetensors' own readers copy whole tensors, or map the file)."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            room = file.stat().st_size - 8 - length
            if room < 0:
                raise ValueError("its header is longer than it")
            header = json.loads(opened.read(length))
        return {name: _rows(file, 8 + length, room, entry) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise _damaged(file, error) from None


def _rows(file: Path, data: int, room: int, entry: dict[str, Any]) -> Rows:
    begin, end = entry["data_offsets"]
    dtype = numpy.dtype(DTYPES[entry["dtype"]])
    if end > room or end - begin != math.prod(entry["shape"]) * dtype.itemsize:
        raise ValueError("it is shorter than it says")
    return Rows(file, data + begin, dtype, tuple(entry["shape"][1:]))


def _damaged(file: Path, why: object) -> ModelError:
    return ModelError(f"{file}: is damaged ({why}); remove {file.parent} and let it be made again")
