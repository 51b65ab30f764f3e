"""Samples encoded at every read, as training scripts without a cache do: for comparison, and where disks are small."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

from asdm_cli.data.cache_key import read_done, read_note
from asdm_cli.data.cached import locate
from asdm_cli.data.encoder import Encoder
from asdm_cli.data.images import UnreadableError, square
from asdm_cli.data.samples import Batch
from asdm_cli.data.sources import Shard, reading_store
from asdm_cli.errors import ModelError, RunError
from asdm_cli.recipe.redact import redact


def check_seekable(shards: Sequence[Shard]) -> None:
    """ModelError for shards whose samples cannot be read out of order."""
    streams = [shard.name for shard in shards if not shard.seekable]
    if streams:
        raise ModelError(
            f"{', '.join(streams[:3])}{' ...' if len(streams) > 3 else ''}: can only be read from its start; "
            "train from a cache, or unpack it to a plain .tar"
        )


class EncodedEachTime:
    """`index` is a folder that a Build without an encoder completed: where every picture stands in its shard."""

    def __init__(self, index: Path, shards: Sequence[Shard], encoder: Encoder):
        check_seekable(shards)
        counts, self.faults = read_done(index)
        self.folder = index
        self.shards, self.encoder = shards, encoder
        self._starts = numpy.cumsum([0, *counts])
        self.size = int(self._starts[-1])
        self._notes = [read_note(index, number)[0] for number in range(len(shards))]
        self.empty = encoder.empty()

    @cached_property
    def captions(self) -> list[str]:
        return [caption for note in self._notes for caption in note["caption"]]

    def read(self, rows: Tensor, flipped: Tensor | None = None) -> Batch:
        numbers = rows.numpy()
        pictures = self._pictures(numbers)
        mirrored = numpy.zeros(len(rows), bool) if flipped is None else flipped.numpy()
        turned = [picture[:, ::-1] if turn else picture for picture, turn in zip(pictures, mirrored, strict=True)]
        condition = self.encoder.condition([self.captions[row] for row in numbers])
        return Batch(self.encoder.latents(turned), condition)

    def _pictures(self, rows: numpy.ndarray) -> list[numpy.ndarray]:
        shards, within = locate(self._starts, rows)
        pictures: list[Any] = [None] * len(rows)
        for number in numpy.unique(shards):
            here = numpy.flatnonzero(shards == number)
            for seat, picture in zip(here, self._of_shard(int(number), within[here]), strict=True):
                pictures[seat] = picture
        return pictures

    def _of_shard(self, number: int, places: numpy.ndarray) -> list[numpy.ndarray]:
        shard, note = self.shards[number], self._notes[number]
        spans = [(note["offset"][place], note["offset"][place] + note["size"][place]) for place in places]
        try:
            return [square(data, self.encoder.resolution) for data in _read(shard, spans)]
        except (OSError, UnreadableError) as error:
            raise RunError(
                f"{shard.name}: cannot be read as it was indexed ({redact(str(error))}); did it change?"
            ) from None


def _read(shard: Shard, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    if shard.kind == "local":
        with Path(shard.url).open("rb") as file:
            return [_at(file, *span) for span in spans]
    from fsspec.core import url_to_fs

    with reading_store():
        system, path = url_to_fs(shard.url)
        return system.cat_ranges([path] * len(spans), *map(list, zip(*spans, strict=True)), on_error="raise")


def _at(file: Any, begin: int, end: int) -> bytes:
    file.seek(begin)
    return file.read(end - begin)
