"""Latents and text states made once, and read by number.

A cache is a folder named after the SHA-256 of all that it is made of. It holds two files per shard, each whole or
absent: `00000.safetensors`, then `00000.json`, which says that the first is whole; `cache.json` comes last, and says
that nothing is missing. Without latents it is an index of where pictures stand in their shards.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy
import torch
from accelerate import PartialState
from filelock import FileLock, Timeout
from fsspec import filesystem
from fsspec.core import url_to_fs
from pydantic import BaseModel, Field
from safetensors.torch import save_file
from torch import Tensor

from asdm_cli.data.encoder import PARTS, Encoder
from asdm_cli.data.faults import Faults
from asdm_cli.data.images import CROP, UnreadableError, square
from asdm_cli.data.samples import Batch, Condition
from asdm_cli.data.shards import DATA_FORMAT, squares
from asdm_cli.data.sources import Shard, reading_store
from asdm_cli.data.whole_files import whole_file
from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.source import TEXTS, ModelDirectory
from asdm_cli.progress import figures_bar, note
from asdm_cli.recipe.public import public
from asdm_cli.recipe.schema import Whole
from asdm_cli.unet.checkpoint import Entry, read_headers
from asdm_cli.unet.weight_files import check_text

CACHE_FORMAT = 2
"""Counts changes of the files below."""
DONE, EMPTY, LOCK = "cache.json", "empty.safetensors", ".lock"
DTYPES = {"F16": numpy.float16, "F32": numpy.float32}
BATCH = 32


class Placed(NamedTuple):
    """A sample, and where its picture stands in an uncompressed shard."""

    key: str
    caption: str
    offset: Annotated[int, Field(ge=0, lt=2**63)]
    size: Whole


class Note(BaseModel, strict=True, extra="forbid"):
    """`00000.json`: the samples of one shard, and what was left out."""

    shard: str
    samples: list[Placed]
    faults: Faults


class Done(BaseModel, strict=True, extra="forbid"):
    """`cache.json`: the number of samples of each shard, and all that was left out."""

    key: str
    samples: list[Whole]
    faults: Faults
    ingredients: dict[str, Any]


File = TypeVar("File", Note, Done)


@dataclass(frozen=True)
class LatentCache:
    """`shards` as `model` encodes them, below `root`; with `latents=False` an index of them.

    `faults`: `stop` raises ModelError with those of the first shard that has some, `skip` leaves such samples out.
    """

    shards: Sequence[Shard]
    model: ModelDirectory
    resolution: int
    root: Path
    flip: bool = False
    latents: bool = True
    faults: Literal["skip", "stop"] = "skip"

    @cached_property
    def ingredients(self) -> dict[str, Any]:
        """Hashes whole weight files: seconds for gigabytes. Two fine-tuned VAEs differ in nothing else."""
        made: dict[str, Any] = {"cache_format": CACHE_FORMAT, "data_format": DATA_FORMAT}
        if self.latents:
            made |= {"resolution": self.resolution, "crop": CROP, "flip": self.flip, "stored": "float16"}
            made |= {"empty_prompt_is_zero": bool(self.model.index.get("force_zeros_for_empty_prompt"))}
            made |= {"parts": _contents(self.model)}
        return {**made, "shards": [shard.identity for shard in self.shards]}

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.ingredients, sort_keys=True).encode()).hexdigest()

    @property
    def folder(self) -> Path:
        return self.root / self.key[:16]

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards that are still to be read; nothing once the cache is complete."""
        if (self.folder / DONE).is_file():
            return []
        return [number for number in range(len(self.shards)) if not _note_file(self.folder, number).is_file()]

    def __str__(self) -> str:
        what = "encoded samples" if self.latents else "index of samples (encoded at every step)"
        if (self.folder / DONE).is_file():
            return f"{what} in {self.folder}: complete, {sum(_read(Done, self.folder / DONE).samples)} samples"
        done = len(self.shards) - len(self.missing)
        state = f"{done} of {len(self.shards)} shards are there" if done else "to be made"
        return f"{what} in {self.folder}: {state}"

    def open(self, device: torch.device, processes: PartialState) -> CachedSamples | UncachedSamples:
        """All processes come here together; what is missing is made first."""
        load = functools.cache(lambda: Encoder.load(self.model, self.resolution, device))
        self.build(processes, load)
        return CachedSamples(self.folder) if self.latents else UncachedSamples(self.folder, self.shards, load())

    def build(self, processes: PartialState, encoder: Callable[[], Encoder]) -> None:
        """Go on where an earlier build was killed; `encoder` is called only if something is left to encode."""
        first, folder = processes.is_main_process, self.folder
        if first:
            folder.mkdir(parents=True, exist_ok=True)
        with _only_builder(folder) if first and not (folder / DONE).is_file() else nullcontext():
            processes.wait_for_everyone()
            if not folder.is_dir():
                raise RunError(
                    f"{folder}: the first process made this folder, and this process does not see it; all must see one "
                    "and the same `cache_folder`: choose a place that the machines share"
                )
            complete = (folder / DONE).is_file()  # perhaps by another run, for which this one waited
            mine = range(processes.process_index, len(self.shards), processes.num_processes)
            self._encode_shards([number for number in self.missing if number in mine], encoder)
            processes.wait_for_everyone()
            if first and not complete:
                self._finish(encoder)
            processes.wait_for_everyone()
        faults = _read(Done, folder / DONE).faults
        if self.faults == "stop":
            _stop(faults)
        elif faults.total():
            note(f"data: faults were skipped, {faults.summary()}; for example {faults.examples[0]}")

    def _encode_shards(self, numbers: Sequence[int], encoder: Callable[[], Encoder]) -> None:
        sizes = [max(1, self.shards[number].size) for number in numbers]
        before, what = 0, "encoding" if self.latents else "indexing"
        with figures_bar(f"{what}, KB of shards", sum(sizes) // 1000) as show:
            for number, size in zip(numbers, sizes, strict=True):
                for position in self._encode_shard(number, encoder):
                    show((before + min(position, size)) // 1000, self.shards[number].name)
                before += size

    def _encode_shard(self, number: int, encoder: Callable[[], Encoder]) -> Iterator[int]:
        """Write one shard's files; yields how many of its bytes were read."""
        shard, faults, usable = self.shards[number], Faults(), 0
        made: dict[str, list[Tensor]] = defaultdict(list)
        samples: list[Placed] = []
        for chunk in squares(shard, self.resolution, faults, BATCH):
            usable += len(chunk)
            if chunk and not (faults.total() and self.faults == "stop"):
                samples += [Placed(each.key, each.caption, each.offset, len(each.picture)) for each, _ in chunk]
                if self.latents:
                    for name, rows in self._encoded(encoder(), chunk).items():
                        made[name].append(rows)
                yield chunk[-1][0].position
        if not usable:
            faults.add("no usable sample", shard.name)
        if self.faults == "stop":
            _stop(faults)
        if made:
            _write_tensors(
                self.folder / f"{number:05}.safetensors", {name: torch.cat(rows) for name, rows in made.items()}
            )
        _write(_note_file(self.folder, number), Note(shard=shard.name, samples=samples, faults=faults))

    def _encoded(self, encoder: Encoder, chunk: Sequence[tuple[Any, numpy.ndarray]]) -> dict[str, Tensor]:
        pictures = [pixels for _, pixels in chunk]
        made = {"latents": encoder.latents(pictures).half()}
        if self.flip:
            made["flipped"] = encoder.latents(pictures, flipped=True).half()
        made |= _stored(encoder.condition([sample.caption for sample, _ in chunk]))
        for name, value in made.items():
            if not torch.isfinite(value).all():
                raise RunError(f"{name} do not fit into float16, in which they are kept; train without a cache")
        return made

    def _finish(self, encoder: Callable[[], Encoder]) -> None:
        """Count what all processes made; `cache.json` says that the folder is complete."""
        if self.missing:
            raise RunError(
                f"{self.folder}: lacks shards that other processes made; all must see one and the same folder"
            )
        notes = [_read(Note, _note_file(self.folder, number)) for number in range(len(self.shards))]
        faults, counts = Faults(), [len(each.samples) for each in notes]
        for each in notes:
            faults.merge(each.faults)
        if not sum(counts):
            raise ModelError(f"no shard has a usable sample:\n{faults.listed()}")
        if self.latents:
            _write_tensors(self.folder / EMPTY, _stored(encoder().empty()))
        _write(self.folder / DONE, Done(key=self.key, samples=counts, faults=faults, ingredients=self.ingredients))


class CachedSamples:
    """A complete cache. Nothing is loaded or mapped: the operating system keeps what is read often in memory, and a
    file that is cut short meanwhile is told, where a mapping would end the process."""

    def __init__(self, folder: Path):
        done = _read(Done, folder / DONE)
        self.faults = done.faults
        self.starts = numpy.cumsum([0, *done.samples])
        self.size = int(self.starts[-1])
        self.shards = {
            number: _entries(folder / f"{number:05}.safetensors", count)
            for number, count in enumerate(done.samples)
            if count
        }
        empty = {name: _rows(entry, [0]) for name, entry in _entries(folder / EMPTY, 1).items()}
        self.empty = _condition({name: torch.from_numpy(rows).float() for name, rows in empty.items()})

    def read(self, rows: Tensor, flipped: Tensor | None = None) -> Batch:
        numbers = rows.numpy()
        tensors = {name: self._take(name, numbers) for name in next(iter(self.shards.values())) if name != "flipped"}
        latents = tensors.pop("latents")
        if flipped is not None and flipped.any():
            latents[flipped] = self._take("flipped", numbers[flipped.numpy()])
        return Batch(latents, _condition(tensors))

    def _take(self, name: str, numbers: numpy.ndarray) -> Tensor:
        """float32 [n, ...]."""
        first = next(iter(self.shards.values()))[name]
        taken = numpy.empty((len(numbers), *first.shape[1:]), DTYPES[first.dtype])
        for shard, seats, within in _by_shard(self.starts, numbers):
            taken[seats] = _rows(self.shards[shard][name], within)
        return torch.from_numpy(taken).float()


class UncachedSamples:
    """Samples encoded at every read, for comparison and where disks are small. `folder` is a complete index."""

    def __init__(self, folder: Path, shards: Sequence[Shard], encoder: Encoder):
        if streams := [shard.name for shard in shards if not shard.seekable]:
            raise ModelError(
                f"{', '.join(streams[:3])}{' ...' if len(streams) > 3 else ''}: can only be read from its start; train "
                "from a cache, or unpack it to a plain .tar"
            )
        done = _read(Done, folder / DONE)
        self.shards, self.encoder, self.faults = shards, encoder, done.faults
        self.starts = numpy.cumsum([0, *done.samples])
        self.size, self.empty = int(self.starts[-1]), encoder.empty()
        self.placed = [
            each for number in range(len(shards)) for each in _read(Note, _note_file(folder, number)).samples
        ]

    def read(self, rows: Tensor, flipped: Tensor | None = None) -> Batch:
        numbers = rows.numpy()
        pictures: list[Any] = [None] * len(numbers)
        for shard, seats, _ in _by_shard(self.starts, numbers):
            for seat, picture in zip(seats, self._pictures(self.shards[shard], numbers[seats]), strict=True):
                pictures[seat] = picture[:, ::-1] if flipped is not None and flipped[seat] else picture
        condition = self.encoder.condition([self.placed[number].caption for number in numbers])
        return Batch(self.encoder.latents(pictures), condition)

    def _pictures(self, shard: Shard, numbers: numpy.ndarray) -> list[numpy.ndarray]:
        starts = [self.placed[number].offset for number in numbers]
        ends = [start + self.placed[number].size for start, number in zip(starts, numbers, strict=True)]
        try:
            with reading_store():
                local = shard.kind == "local"
                system, path = (filesystem("file"), shard.url) if local else url_to_fs(shard.url)
                found = system.cat_ranges([path] * len(starts), starts, ends, on_error="raise")
            return [square(data, self.encoder.resolution) for data in found]
        except (OSError, UnreadableError) as error:
            raise RunError(
                f"{shard.name}: cannot be read as it was indexed ({public(str(error))}); did it change?"
            ) from None


def _by_shard(starts: numpy.ndarray, rows: numpy.ndarray) -> Iterator[tuple[int, numpy.ndarray, numpy.ndarray]]:
    """(shard, seats in the batch, rows within the shard); `starts` are the shards' first rows and, last, the end."""
    if len(rows) and not (rows.min() >= 0 and rows.max() < starts[-1]):
        raise IndexError(f"rows {rows.min()}..{rows.max()} of {starts[-1]} samples")
    shards = numpy.searchsorted(starts, rows, side="right") - 1
    for shard in numpy.unique(shards):
        seats = numpy.flatnonzero(shards == shard)
        yield int(shard), seats, rows[seats] - starts[shard]


def _entries(file: Path, count: int) -> dict[str, Entry]:
    """The tensors of a safetensors file, unread: safetensors' own readers copy whole tensors, or map the file."""
    try:
        found = read_headers([file]).tensors
    except ModelError as error:
        raise _damaged(file, error) from None
    if any(entry.shape[:1] != (count,) or entry.dtype not in DTYPES for entry in found.values()):
        raise _damaged(file, "it holds other samples than it should")
    return found


def _rows(entry: Entry, rows: Sequence[int] | numpy.ndarray) -> numpy.ndarray:
    taken = numpy.empty((len(rows), *entry.shape[1:]), DTYPES[entry.dtype])
    size = entry.size // entry.shape[0]
    try:
        with entry.file.open("rb", buffering=0) as opened:
            for seat, row in zip(taken, rows, strict=True):
                opened.seek(entry.start + int(row) * size)
                if opened.readinto(seat) != size:
                    raise OSError("it has become shorter")
    except OSError as error:
        raise _damaged(entry.file, error) from None
    return taken


def _condition(tensors: dict[str, Tensor]) -> Condition:
    return Condition(tensors["text"], {name: value for name, value in tensors.items() if name != "text"})


def _stored(condition: Condition) -> dict[str, Tensor]:
    """As kept on disk: sizes in pixels need more than float16."""
    added = {name: value if name == "time_ids" else value.half() for name, value in condition.added.items()}
    return {"text": condition.text.half(), **added}


@contextmanager
def _only_builder(folder: Path) -> Iterator[None]:
    """Where another run is making the same, wait until it has. The kernel lets go of a killed one's lock."""
    lock = FileLock(folder / LOCK)
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        note(f"{folder}: another run is making this cache; waiting until it is done")
        held = lock.acquire()
    with held:
        yield


def _stop(faults: Faults) -> None:
    if faults.total():
        raise ModelError(
            f"{faults.listed()}\nthe data has faults ({faults.summary()}); mend it, or leave such samples out "
            "with `faults: skip`"
        )


def _note_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.json"


def _read(kind: type[File], file: Path) -> File:
    try:
        return kind.model_validate_json(check_text(file).read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(file, str(error).splitlines()[0]) from None


def _write(file: Path, value: BaseModel) -> None:
    with whole_file(file) as partial:
        partial.write_text(value.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    with whole_file(file) as partial:
        save_file({name: each.contiguous() for name, each in tensors.items()}, partial)


def _damaged(file: Path, why: object) -> ModelError:
    return ModelError(f"{file}: is damaged ({why}); remove {file.parent} and let it be made again")


def _contents(model: ModelDirectory) -> dict[str, str]:
    """SHA-256 of every file that says what VAE and text encoders compute."""
    found: dict[str, str] = {}
    for part in PARTS:
        if part not in model.components:
            continue
        files = [file for file in sorted(model.component(part).iterdir()) if file.suffix in TEXTS]
        files += [] if part.startswith("tokenizer") else model.weights(part)
        for file in files:
            with file.open("rb") as opened:
                found[f"{part}/{file.name}"] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found
