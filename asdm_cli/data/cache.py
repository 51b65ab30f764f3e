"""Latents and text states made once: a file per source shard, each whole or absent, the whole under the key of
what made it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from asdm_cli.console import note, track
from asdm_cli.data.cache_key import COLUMNS, DONE, Wanted, note_file, read_done, read_note, tensor_file
from asdm_cli.data.encoder import Encoder
from asdm_cli.data.faults import Faults
from asdm_cli.data.samples import Condition
from asdm_cli.data.shards import squares
from asdm_cli.data.whole_files import write_json, write_tensors
from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.lock import BusyError, only_writer

EMPTY = "empty.safetensors"
TICKS = 1000
POLL = 1.0
"""Seconds between two looks at whether another run has finished the cache."""
OnFaults = Literal["skip", "stop"]


@dataclass(frozen=True)
class Share:
    """Which part of the work is this process's: shards `rank::world`. `wait` returns when all have come to it."""

    rank: int = 0
    world: int = 1
    wait: Callable[[], object] = lambda: None


@dataclass
class _Made:
    """One shard's samples as they are encoded."""

    notes: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, list[Tensor]] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)

    def add(self, tensors: dict[str, Tensor]) -> None:
        for name, value in tensors.items():
            self.tensors.setdefault(name, []).append(value)


@dataclass
class Build:
    """Makes what `wanted` is about under `root`, going on where an earlier build was killed.

    `load` is called only if something is left to encode. `on_faults`: `stop` raises ModelError with the faults
    of the first shard that has some, `skip` leaves such samples out and counts them.
    """

    wanted: Wanted
    root: Path
    load: Callable[[], Encoder] | None
    on_faults: OnFaults = "stop"
    batch: int = 32
    share: Share = field(default_factory=Share)
    _encoder: Encoder | None = None

    @property
    def folder(self) -> Path:
        return self.wanted.folder(self.root)

    def run(self) -> Path:
        """The folder, complete. Every process of the run calls this and comes to `share.wait` three times."""
        first = self.share.rank == 0
        with _in_turn(self.folder) if first and not self._complete() else nullcontext():
            if first:
                self.folder.mkdir(parents=True, exist_ok=True)
            self.share.wait()
            self._check_shared()
            complete = self._complete()  # perhaps by another run, for which this one waited
            numbers = [] if complete else self._missing()
            for _ in track(self._ticks(numbers), "encoding" if self.load else "indexing", TICKS):
                pass
            self.share.wait()
            if first and not complete:
                self._finish()
            self.share.wait()
        self._encoder = None
        self._tell(read_done(self.folder)[1])
        return self.folder

    def _complete(self) -> bool:
        return (self.folder / DONE).is_file()

    def _check_shared(self) -> None:
        if not self.folder.is_dir():
            raise RunError(
                f"{self.folder}: the first process made this folder, and this process does not see it; all must see "
                "one and the same `cache_folder`: choose a place that the machines share"
            )

    def _missing(self) -> list[int]:
        mine = range(self.share.rank, len(self.wanted.shards), self.share.world)
        return [number for number in mine if not note_file(self.folder, number).is_file()]

    def _ticks(self, numbers: list[int]) -> Iterator[None]:
        """Yields TICKS times in all while the work goes on, in step with the bytes read."""
        sizes = [max(1, self.wanted.shards[number].size) for number in numbers]
        done = before = 0
        for number, size in zip(numbers, sizes, strict=True):
            for position in self._shard(number):
                now = (before + min(position, size)) * TICKS // sum(sizes)
                yield from [None] * (now - done)
                done = now
            before += size
        yield from [None] * (TICKS - done)

    def _shard(self, number: int) -> Iterator[int]:
        """Write one shard's files; yields how many of its bytes were read."""
        shard, made, usable = self.wanted.shards[number], _Made(), 0
        for chunk in squares(shard, self.wanted.resolution, made.faults, self.batch):
            usable += len(chunk)
            if chunk and not (made.faults.total() and self.on_faults == "stop"):
                samples = [sample for sample, _ in chunk]
                made.notes += [_about(sample) for sample in samples]
                if self.load:
                    made.add(self._encode([pixels for _, pixels in chunk], [sample.caption for sample in samples]))
                yield samples[-1].position
        if not usable:
            made.faults.add("no usable sample", shard.name)
        if self.on_faults == "stop":
            _stop(made.faults)
        if made.tensors:
            tensors = {name: torch.cat(values) for name, values in made.tensors.items()}
            write_tensors(tensor_file(self.folder, number), tensors)
        columns = {name: [each[name] for each in made.notes] for name in COLUMNS}
        write_json(note_file(self.folder, number), {"shard": shard.name, **columns, **made.faults.to_json()})

    @property
    def encoder(self) -> Encoder:
        assert self.load, "an index encodes nothing"
        self._encoder = self._encoder or self.load()
        return self._encoder

    def _encode(self, pictures: list[Any], captions: list[str]) -> dict[str, Tensor]:
        made = {"latents": self.encoder.latents(pictures).half()}
        if self.wanted.flip:
            made["flipped"] = self.encoder.latents(pictures, flipped=True).half()
        made |= stored(self.encoder.condition(captions))
        for name, value in made.items():
            if not torch.isfinite(value).all():
                raise RunError(f"{name} do not fit into float16, in which they are kept; train without a cache")
        return made

    def _finish(self) -> None:
        """Count what all processes made; `cache.json` says that the folder is complete."""
        shards = range(len(self.wanted.shards))
        if not all(note_file(self.folder, number).is_file() for number in shards):
            raise RunError(
                f"{self.folder}: lacks shards that other processes made; all must see one and the same folder"
            )
        notes = [read_note(self.folder, number) for number in shards]
        faults, counts = Faults(), [len(columns["key"]) for columns, _ in notes]
        for _, each in notes:
            faults.merge(each)
        if not sum(counts):
            raise ModelError(f"no shard has a usable sample:\n{faults.listed()}")
        if self.load and not (self.folder / EMPTY).is_file():
            write_tensors(self.folder / EMPTY, stored(self.encoder.empty()))
        about = {"key": self.wanted.key, "samples": counts, **faults.to_json()}
        write_json(self.folder / DONE, {**about, "ingredients": self.wanted.ingredients})

    def _tell(self, faults: Faults) -> None:
        if self.on_faults == "stop":
            _stop(faults)
        if faults.total():
            note(f"data: faults were skipped, {faults.summary()}; for example {faults.examples[0]}")


@contextmanager
def _in_turn(folder: Path) -> Iterator[None]:
    """Where another run is making the same, wait until it has."""
    with ExitStack() as held:
        for waits in count():
            try:
                held.enter_context(only_writer(folder))
                break
            except BusyError:
                if not waits:
                    note(f"{folder}: another run is making this cache; waiting until it is done")
                time.sleep(POLL)
        yield


def _about(sample: Any) -> dict[str, Any]:
    return {"key": sample.key, "caption": sample.caption, "offset": sample.offset, "size": len(sample.picture)}


def _stop(faults: Faults) -> None:
    if faults.total():
        raise ModelError(
            f"{faults.listed()}\nthe data has faults ({faults.summary()}); mend it, or leave such samples out "
            "with `faults: skip`"
        )


def stored(condition: Condition) -> dict[str, Tensor]:
    """As kept on disk: sizes in pixels need more than float16."""
    added = {name: value if name == "time_ids" else value.half() for name, value in condition.added.items()}
    return {"text": condition.text.half(), **added}
