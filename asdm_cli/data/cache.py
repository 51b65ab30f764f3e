"""Latents and text states made once, and read by number.

A cache is a folder named after the SHA-256 of all that it is made of. Of each shard it holds files of some samples,
`00000.safetensors`, `00000-001.safetensors`, ..., each whole or absent, then `00000.json`, which says that the shard is
whole; `cache.json` comes last, and says that nothing is missing. Without latents it is an index of where pictures stand
in their shards. A cache of captions alone has one file for so many of them.
"""

from __future__ import annotations

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy
import torch
from accelerate import PartialState
from fsspec import filesystem
from fsspec.core import url_to_fs
from pydantic import BaseModel, Field
from safetensors.torch import save_file
from torch import Tensor

from asdm_cli.console import bar, note, track
from asdm_cli.data.builders import is_there, only_builder, wait_until
from asdm_cli.data.encoder import PARTS, Batch, Condition, Encoder
from asdm_cli.data.images import CROP, UnreadableError, square
from asdm_cli.data.shards import DATA_FORMAT, Faults, Shard, decoded, reading_store
from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.directory import TEXTS, ModelDirectory
from asdm_cli.models.write import whole_file
from asdm_cli.recipe.redact import redact
from asdm_cli.recipe.schema import Whole
from asdm_cli.unet.weights import Entry, check_regular, read_headers

CACHE_FORMAT = 2
"""Counts changes of the files below."""
DONE, EMPTY = "cache.json", "empty.safetensors"
LATENTS, FLIPPED = "latents", "flipped"
"""What is kept of a sample's picture; all else is of its caption."""
WEIGHTLESS = ("tokenizer", "scheduler")
"""Components that are texts alone."""
OTHERS = "it holds other samples than it should"
DTYPES = {"F16": numpy.float16, "F32": numpy.float32}
BATCH, THREADS = 32, 8
TOGETHER = 1024
"""Captions without pictures in one file."""
PIECE = 256
"""Samples of a shard in one file: what is in memory while they are encoded, and at most lost with a kill."""


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
    cut: Whole = 0
    """Captions that are longer than what the text encoder takes in."""


class Done(BaseModel, strict=True, extra="forbid"):
    """`cache.json`: the number of samples of each shard, and all that was left out."""

    key: str
    samples: list[Whole]
    faults: Faults
    ingredients: dict[str, Any]
    cut: Whole = 0


File = TypeVar("File", Note, Done)


class Texts(Protocol):
    """Conditions, told apart by their number alone."""

    size: int

    def conditions(self, rows: Tensor) -> Condition:
        """`rows` int64 [n]."""


class Samples(Texts, Protocol):
    """Who reads which, in what order, is the loop's affair. `empty` is the condition of the empty prompt, one row:
    what text dropout puts in a caption's place."""

    empty: Condition

    def read(self, rows: Tensor, flipped: Tensor | None = None) -> Batch:
        """`rows` int64 [n]; `flipped` bool [n] asks for the mirrored picture's latents."""


Opened = TypeVar("Opened", bound=Texts)


def contents(model: ModelDirectory, parts: Iterable[str]) -> dict[str, str]:
    """SHA-256 of every file that says what these components of a model compute. Reads whole weight files: seconds for
    gigabytes. Two fine-tuned VAEs differ in nothing else."""
    found: dict[str, str] = {}
    for part in parts:
        files = [file for file in sorted(model.component(part).iterdir()) if file.suffix in TEXTS]
        for file in files + ([] if part.startswith(WEIGHTLESS) else model.weights(part)):
            with file.open("rb") as opened:
                found[f"{part}/{file.name}"] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found


@dataclass(frozen=True)
class Cache(ABC, Generic[Opened]):
    """A folder below `root` of what `model` makes of pictures of so many pixels, or of their captions; in `count`
    parts."""

    model: ModelDirectory
    resolution: int
    root: Path

    @property
    @abstractmethod
    def count(self) -> int: ...

    @property
    @abstractmethod
    def ingredients(self) -> dict[str, Any]:
        """All that it is made of, as JSON."""

    @abstractmethod
    def _part(self, number: int) -> Path:
        """The file that says that a part is whole."""

    @abstractmethod
    def _encode(self, numbers: Sequence[int], encoder: Callable[[], Encoder]) -> None:
        """Write the files of these parts."""

    @abstractmethod
    def _finish(self, encoder: Callable[[], Encoder]) -> Done:
        """What `cache.json` says; all parts are there."""

    @abstractmethod
    def _opened(self, done: Done, encoder: Callable[[], Encoder]) -> Opened: ...

    @functools.cached_property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.ingredients, sort_keys=True).encode()).hexdigest()

    @property
    def folder(self) -> Path:
        return self.root / self.key[:16]

    def missing(self) -> list[int]:
        """Numbers of the parts that are still to be made."""
        return [number for number in range(self.count) if not self._part(number).is_file()]

    def _state(self, parts: str, samples: str) -> str:
        if (self.folder / DONE).is_file():
            return f"complete, {sum(_read(Done, self.folder / DONE).samples)} {samples}"
        done = self.count - len(self.missing())
        return f"{done} of {self.count} {parts} are there" if done else "to be made"

    def open(self, processes: PartialState, encoder: Callable[[], Encoder] | None = None) -> Opened:
        """All processes come here together. What is missing is made first, from where an earlier build was killed on;
        `encoder` (this model's, on the processes' devices) is called only if something is to be encoded."""
        encoder = functools.cache(encoder or (lambda: Encoder.load(self.model, self.resolution, processes.device)))
        first = processes.is_main_process
        if first:
            self.folder.mkdir(parents=True, exist_ok=True)
        complete = (self.folder / DONE).is_file()
        with only_builder(self.folder) if first and not complete else nullcontext():
            complete = is_there(self.folder / DONE, processes)  # perhaps by another run, for which this one waited
            if not complete:
                mine = range(processes.process_index, self.count, processes.num_processes)
                self._encode([number for number in self.missing() if number in mine], encoder)
                if first:
                    self._await_parts()
                    _write(self.folder / DONE, self._finish(encoder))
                else:
                    wait_until((self.folder / DONE).is_file, self.folder)
            processes.wait_for_everyone()
        return self._opened(_read(Done, self.folder / DONE), encoder)

    def _await_parts(self) -> None:
        """Of all processes."""
        left = self.missing()

        def all_there() -> bool:
            left[:] = [number for number in left if not self._part(number).is_file()]
            return not left

        wait_until(all_there, self.folder)


@dataclass(frozen=True)
class LatentCache(Cache["CachedSamples | UncachedSamples"]):
    """`shards` as `model` encodes them; with `latents=False` an index of them.

    `faults`: `stop` raises ModelError with those of the first shard that has some, `skip` leaves such samples out.
    """

    shards: Sequence[Shard]
    flip: bool = False
    latents: bool = True
    faults: Literal["skip", "stop"] = "skip"

    @property
    def count(self) -> int:
        return len(self.shards)

    @functools.cached_property
    def ingredients(self) -> dict[str, Any]:
        made: dict[str, Any] = {"cache_format": CACHE_FORMAT, "data_format": DATA_FORMAT}
        made["shards"] = [shard.identity for shard in self.shards]
        if not self.latents:
            return made
        zero = bool(self.model.index.get("force_zeros_for_empty_prompt"))
        made |= {"crop": CROP, "resolution": self.resolution, "flip": self.flip, "stored": "float16"}
        parts = contents(self.model, [each for each in PARTS if each in self.model.components])
        return made | {"empty_prompt_is_zero": zero, "parts": parts}

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:05}.json"

    def __str__(self) -> str:
        what = "encoded samples" if self.latents else "index of samples (encoded at every step)"
        return f"{what} in {self.folder}: {self._state('shards', 'samples')}"

    def _opened(self, done: Done, encoder: Callable[[], Encoder]) -> CachedSamples | UncachedSamples:
        self._stop(done.faults)
        if done.faults.total():
            note(f"data: faults were skipped, {done.faults.summary()}; for example {done.faults.examples[0]}")
        if done.cut:
            note(f"data: {_cut(done)}")
        return CachedSamples(self.folder) if self.latents else UncachedSamples(self.folder, self.shards, encoder())

    def _encode(self, numbers: Sequence[int], encoder: Callable[[], Encoder]) -> None:
        before, total = 0, sum(self.shards[number].size for number in numbers)
        with bar(f"{'encoding' if self.latents else 'indexing'}, KB of shards", total // 1000) as show:
            for number in numbers:
                shard, faults, usable, cut = self.shards[number], Faults(), 0, 0
                pieces, samples = Pieces(self.folder, number, shard), list[Placed]()
                for chunk in decoded(shard, faults, BATCH, functools.partial(square, resolution=self.resolution)):
                    usable += len(chunk)
                    if not chunk or (faults.total() and self.faults == "stop"):
                        continue
                    new = chunk[max(0, pieces.written - len(samples)) :]
                    samples += [Placed(each.key, each.caption, each.offset, len(each.picture)) for each, _ in chunk]
                    cut += encoder().cut(each.caption for each, _ in chunk) if self.latents else 0
                    if self.latents and new:
                        pieces.add(self._rows(encoder(), new))
                    show((before + min(chunk[-1][0].position, shard.size)) // 1000, shard.name)
                if not usable:
                    faults.add("no usable sample", shard.name)
                self._stop(faults)
                pieces.write()
                _write(self._part(number), Note(shard=shard.name, samples=samples, faults=faults, cut=cut))
                before += shard.size

    def _rows(self, encoder: Encoder, chunk: Sequence[tuple[Any, numpy.ndarray]]) -> dict[str, Tensor]:
        """What is kept of samples, by name."""
        pictures = [pixels for _, pixels in chunk]
        rows = {LATENTS: encoder.latents(pictures).half()}
        if self.flip:
            rows[FLIPPED] = encoder.latents(pictures, flipped=True).half()
        return _fitting(rows | _stored(encoder.condition([sample.caption for sample, _ in chunk])))

    def _finish(self, encoder: Callable[[], Encoder]) -> Done:
        faults, counts, cut = Faults(), list[int](), 0
        for number in range(len(self.shards)):
            about = _read(Note, self._part(number))
            cut += about.cut
            counts.append(len(about.samples))
            faults.merge(about.faults)
        if not sum(counts):
            raise ModelError(f"no shard has a usable sample:\n{faults.listed()}")
        if self.latents:
            _write(self.folder / EMPTY, _stored(encoder().empty()))
        return Done(key=self.key, samples=counts, faults=faults, ingredients=self.ingredients, cut=cut)

    def _stop(self, faults: Faults) -> None:
        if self.faults == "stop" and faults.total():
            raise ModelError(
                f"{faults.listed()}\nthe data has faults ({faults.summary()}); mend it, or leave such samples out "
                "with `faults: skip`"
            )


@dataclass(frozen=True)
class TextCache(Cache["CachedTexts"]):
    """`captions` without pictures, as `model` encodes them."""

    captions: Sequence[str]

    @property
    def count(self) -> int:
        return -(-len(self.captions) // TOGETHER)

    @functools.cached_property
    def ingredients(self) -> dict[str, Any]:
        digest = hashlib.sha256(json.dumps(list(self.captions)).encode()).hexdigest()
        made: dict[str, Any] = {"cache_format": CACHE_FORMAT, "captions": digest, "resolution": self.resolution}
        return made | {"parts": contents(self.model, [each for each in PARTS[1:] if each in self.model.components])}

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:05}.safetensors"

    def __str__(self) -> str:
        return f"{len(self.captions):,} encoded captions in {self.folder}: {self._state('files', 'captions')}"

    def _opened(self, done: Done, encoder: Callable[[], Encoder]) -> CachedTexts:  # noqa: ARG002 - for those who do
        if done.cut:
            note(f"captions without pictures: {_cut(done)}")
        return CachedTexts(self.folder)

    def _encode(self, numbers: Sequence[int], encoder: Callable[[], Encoder]) -> None:
        for number in track(numbers, f"encoding captions, {TOGETHER} at a time"):
            captions = self._captions(number)
            batches = [captions[begin : begin + BATCH] for begin in range(0, len(captions), BATCH)]
            made = [_fitting(_stored(encoder().condition(each))) for each in batches]
            _write(self._part(number), {name: torch.cat([each[name] for each in made]) for name in made[0]})

    def _captions(self, number: int) -> Sequence[str]:
        return self.captions[number * TOGETHER : (number + 1) * TOGETHER]

    def _finish(self, encoder: Callable[[], Encoder]) -> Done:
        counts = [len(self._captions(number)) for number in range(self.count)]
        cut = encoder().cut(self.captions)
        return Done(key=self.key, samples=counts, faults=Faults(), ingredients=self.ingredients, cut=cut)


def _cut(done: Done) -> str:
    every = sum(done.samples)
    return f"{done.cut:,} of {every:,} captions are longer than what the text encoder takes in, and cut there"


class CachedTexts:
    """A complete cache. Nothing is loaded or mapped: the operating system keeps what is read often in memory, and a
    file that is cut short meanwhile is told, where a mapping would end the process."""

    def __init__(self, folder: Path):
        done = _read(Done, folder / DONE)
        self.faults, self.pieces, counts = done.faults, list[dict[str, Entry]](), [0]
        for number, count in enumerate(done.samples):
            for tensors, size in _pieces(folder, number, count):
                self.pieces.append(tensors)
                counts.append(size)
        self.starts = numpy.cumsum(counts)
        self.size = int(self.starts[-1])

    def conditions(self, rows: Tensor) -> Condition:
        held, within = self._places(rows)
        names = [name for name in held[0] if name not in (LATENTS, FLIPPED)]
        return _condition({name: _rows([each[name] for each in held], within) for name in names})

    def _places(self, rows: Tensor) -> tuple[list[dict[str, Entry]], numpy.ndarray]:
        """Of each row the tensors that it is in, and its number there."""
        numbers = rows.numpy()
        if not (numbers.min() >= 0 and numbers.max() < self.size):
            raise IndexError(f"rows {numbers.min()}..{numbers.max()} of {self.size} samples")
        places = numpy.searchsorted(self.starts, numbers, side="right") - 1
        return [self.pieces[place] for place in places], numbers - self.starts[places]


class CachedSamples(CachedTexts):
    """The same with the pictures' latents."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.empty = _condition({name: _rows([entry], [0]) for name, entry in _tensors(folder / EMPTY)[0].items()})

    def read(self, rows: Tensor, flipped: Tensor | None = None) -> Batch:
        held, within = self._places(rows)
        latents = _rows([each[LATENTS] for each in held], within)
        for seat in flipped.nonzero().flatten() if flipped is not None else ():
            latents[seat] = _rows([held[seat][FLIPPED]], within[seat : seat + 1])[0]
        return Batch(latents, self.conditions(rows))


def refuse_streams(shards: Sequence[Shard]) -> None:
    """ModelError for shards of which no sample can be read by its place."""
    if streams := [shard.name for shard in shards if not shard.seekable]:
        raise ModelError(
            f"{', '.join(streams[:3])}{' ...' if len(streams) > 3 else ''}: can only be read from its start; train "
            "from a cache, or unpack it to a plain .tar"
        )


class UncachedSamples:
    """Samples encoded at every read, for comparison and where disks are small. `folder` is a complete index, of shards
    that are no streams."""

    def __init__(self, folder: Path, shards: Sequence[Shard], encoder: Encoder):
        self.encoder, self.empty, self.faults = encoder, encoder.empty(), _read(Done, folder / DONE).faults
        notes = [_read(Note, folder / f"{number:05}.json") for number in range(len(shards))]
        self.placed = [(shard, each) for shard, note in zip(shards, notes, strict=True) for each in note.samples]
        self.size = len(self.placed)

    def read(self, rows: Tensor, flipped: Tensor | None = None) -> Batch:
        wanted = [self.placed[row] for row in rows.tolist()]
        with ThreadPoolExecutor(THREADS) as pool:  # a store answers slowly, and decoding leaves Python
            pictures = list(pool.map(self._picture, wanted))
        for seat in flipped.nonzero().flatten() if flipped is not None else ():
            pictures[seat] = pictures[seat][:, ::-1]
        return Batch(self.encoder.latents(pictures), self.conditions(rows))

    def conditions(self, rows: Tensor) -> Condition:
        return self.encoder.condition([self.placed[row][1].caption for row in rows.tolist()])

    def _picture(self, wanted: tuple[Shard, Placed]) -> numpy.ndarray:
        shard, placed = wanted
        try:
            with reading_store():
                store, path = (filesystem("file"), shard.url) if shard.kind == "local" else url_to_fs(shard.url)
                data = store.cat_file(path, placed.offset, placed.offset + placed.size)
            return square(data, self.encoder.resolution)
        except (OSError, UnreadableError) as error:
            raise RunError(
                f"{shard.name}: cannot be read as it was indexed ({redact(str(error))}); did it change?"
            ) from None


def _tensors(file: Path) -> tuple[dict[str, Entry], int]:
    """Of a safetensors file, unread, and the number of rows: safetensors' own readers copy whole tensors, or map the
    file."""
    try:
        found = read_headers([file]).tensors
    except ModelError as error:
        raise _damaged(file, error) from None
    sizes = {*(entry.shape[:1] for entry in found.values())}
    if len(sizes) != 1 or () in sizes or any(entry.dtype not in DTYPES for entry in found.values()):
        raise _damaged(file, OTHERS)
    return found, sizes.pop()[0]


def _piece(folder: Path, number: int, place: int) -> Path:
    return folder / f"{number:05}{f'-{place:03}' if place else ''}.safetensors"


def _pieces(folder: Path, number: int, count: int) -> Iterator[tuple[dict[str, Entry], int]]:
    """Of a shard of so many samples."""
    place = 0
    while count > 0:
        tensors, size = _tensors(file := _piece(folder, number, place))
        if not 0 < size <= count:
            raise _damaged(file, OTHERS)
        yield tensors, size
        place, count = place + 1, count - size


class Pieces:
    """The files of one shard while it is encoded. `written` samples are in those that an earlier build left; none where
    a command may give others now."""

    def __init__(self, folder: Path, number: int, shard: Shard):
        self.folder, self.number, self.place = folder, number, 0
        self.rows: dict[str, Tensor] = {}
        with suppress(ModelError):
            while shard.kind != "pipe" and self._file.is_file() and _tensors(self._file)[1] == PIECE:
                self.place += 1
        self.written = PIECE * self.place

    @property
    def _file(self) -> Path:
        return _piece(self.folder, self.number, self.place)

    @property
    def _waiting(self) -> int:
        return len(next(iter(self.rows.values()), ()))

    def add(self, rows: Mapping[str, Tensor]) -> None:
        self.rows = {name: torch.cat([self.rows[name], each]) if self.rows else each for name, each in rows.items()}
        while self._waiting >= PIECE:
            self.write()

    def write(self) -> None:
        """A whole one, or the rest."""
        if self._waiting:
            _write(self._file, {name: each[:PIECE] for name, each in self.rows.items()})
            self.place, self.rows = self.place + 1, {name: each[PIECE:] for name, each in self.rows.items()}


def _rows(entries: Sequence[Entry], rows: Sequence[int] | numpy.ndarray) -> Tensor:
    """A row of each, float32 [n, ...]."""
    taken = numpy.empty((len(rows), *entries[0].shape[1:]), DTYPES[entries[0].dtype])
    for seat, entry, row in zip(taken, entries, rows, strict=True):
        size = entry.size // entry.shape[0]
        try:
            with entry.file.open("rb", buffering=0) as opened:
                opened.seek(entry.start + int(row) * size)
                if opened.readinto(seat) != size:
                    raise OSError("it has become shorter")
        except OSError as error:
            raise _damaged(entry.file, error) from None
    return torch.from_numpy(taken).float()


def _condition(tensors: dict[str, Tensor]) -> Condition:
    return Condition(tensors.pop("text"), tensors)


def _fitting(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, value in rows.items():
        if not torch.isfinite(value).all():
            raise RunError(f"{name} do not fit into float16, in which they are kept; is this model's VAE its own?")
    return rows


def _stored(condition: Condition) -> dict[str, Tensor]:
    """As kept on disk: sizes in pixels need more than float16."""
    added = {name: value if name == "time_ids" else value.half() for name, value in condition.added.items()}
    return {"text": condition.text.half(), **added}


def _read(kind: type[File], file: Path) -> File:
    try:
        return kind.model_validate_json(check_regular(file).read_bytes())  # of any size: there may be many samples
    except (OSError, ValueError) as error:
        raise _damaged(file, str(error).splitlines()[0]) from None


def _write(file: Path, value: BaseModel | dict[str, Tensor]) -> None:
    with whole_file(file) as partial:
        if isinstance(value, BaseModel):
            partial.write_text(value.model_dump_json(indent=1) + "\n", encoding="utf-8")
        else:
            save_file({name: each.contiguous() for name, each in value.items()}, partial)


def _damaged(file: Path, why: object) -> ModelError:
    return ModelError(f"{file}: is damaged ({why}); remove {file.parent} and let it be made again")
