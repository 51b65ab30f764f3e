"""Weights and small files on disk: which there are, what safetensors headers say, and copying tensors as bytes.

No torch. Files are found by name and kept inside their folder; weights are safetensors or nothing.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from io import BufferedReader
from math import prod
from pathlib import Path
from stat import S_ISREG
from typing import IO, TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from asdm_cli.errors import ModelError, RunError

if TYPE_CHECKING:
    from torch import Tensor

DIFFUSERS_STEM, TRANSFORMERS_STEM = STEMS = ("diffusion_pytorch_model", "model")
"""What each library calls its weights; neither reads the other's."""
WEIGHTS = f"{DIFFUSERS_STEM}.safetensors"
INDEX_FILE = f"{WEIGHTS}.index.json"
INDEX_OF_SHARDS = re.compile(r"\.index(?:\.\w+)?\.json$")
PREFERRED = ("", "fp16", "bf16")
"""Of several variants of the same weights, the first of these that is there."""
UNSAFE = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
CHUNK = 1 << 18
"""Bytes in memory at a time: they stay in the processor's cache, where larger ones would be fresh pages each time."""
KERNEL = 1 << 30
"""Bytes that the kernel is asked to copy at a time, so that Ctrl-C is heard."""
NOT_THERE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
"""What a kernel or a file system says that cannot copy by itself."""
SETTLED_NS = 100_000_000
"""Clocks of file systems tick every few milliseconds: of two changes within a tick, times of change tell one."""
LARGEST_TEXT = 1 << 26
"""Bytes of a file that is read as a whole; the largest vocabularies have half of that."""
SNAPSHOTS, BLOBS = "snapshots", "blobs"
"""Folders of the hub's cache: a model's files are links from the first into the second."""
CONVERT = (
    "convert the whole model once, where you trust it, in Python: "
    "diffusers.DiffusionPipeline.from_pretrained(MODEL).save_pretrained(FOLDER, safe_serialization=True)"
)
_LORA = ("a LoRA", "pipe.fuse_lora() and pipe.unload_lora_weights() (or only the second, to be rid of it)")
_IMAGES = ("an image-prompt adapter", "pipe.unload_ip_adapter()")
ADAPTERS = {
    ".to_k_ip.": _IMAGES,
    "encoder_hid_proj.image_projection_layers.": _IMAGES,
    ".lora_A.": _LORA,
    ".base_layer.": _LORA,
    "_lora.down.": _LORA,
    "_lora.up.": _LORA,
}
"""A part of the names of tensors that lie on top of a model's own -> what they are, and how they come off."""


def read_json(file: Path) -> Any:
    """The file's JSON value; ModelError where it cannot be read or parsed."""
    try:
        return json.loads(check_text(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{file}: no such file; is this a diffusers model directory?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: cannot be read as JSON ({error}); fetch or write the file again") from None


def check_regular(file: Path) -> Path:
    """The file, if it ends: to open a pipe waits for ever, and a device never does. ModelError for others; raises
    OSError where there is none."""
    if not S_ISREG(file.stat().st_mode):
        raise ModelError(f"{file}: is no regular file; fetch or write it again")
    return file


def check_text(file: Path) -> Path:
    """The same of what is read as a whole, and is not that large. Raises ModelError, OSError."""
    if (held := check_regular(file).stat().st_size) > LARGEST_TEXT:
        size = f"{held:,} bytes, more than {LARGEST_TEXT >> 20} MiB"
        raise ModelError(f"{file}: has {size}, so it is no configuration or vocabulary; fetch or write it again")
    return file


def read_mapping(file: Path) -> dict[str, Any]:
    """Like `read_json`, for files that must hold an object."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise ModelError(f"{file}: holds a {type(value).__name__} where an object is expected; fetch the file again")
    return value


def inside(root: Path, path: Path) -> Path:
    """`path`, if its links stay inside `root`, or lead to the `blobs` of the hub's cache that `root` is a part of;
    ModelError otherwise."""
    try:
        real, home = path.resolve(), root.resolve()
    except (OSError, RuntimeError):  # which of the two it is depends on Python's version
        raise ModelError(f"{path}: is a link that leads round in a circle; fetch the file again") from None
    snapshot = next((each for each in (home, *home.parents) if each.parent.name == SNAPSHOTS), None)
    cached = snapshot is not None and real.is_relative_to(snapshot.parent.parent / BLOBS)
    if cached or real.is_relative_to(home):
        return path
    raise ModelError(
        f"{path}: is a link that leaves {root}; copy the model with its links resolved (cp -rL SOURCE TARGET) "
        "and use the copy"
    )


def plain_name(name: object, file: Path) -> str:
    """`name`, if it names something directly inside a folder: no separator, no `..`, not absolute."""
    if isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0"):
        return name
    raise ModelError(f"{file}: {name!r} is not the plain name of a file beside it; correct the entry")


@dataclass(frozen=True)
class WeightFiles:
    """A component's safetensors files, in order: one, or the shards that `index` names. `variant` is what stands in all
    their names, as in `diffusion_pytorch_model.fp16.safetensors`: libraries read such only when they are told so."""

    files: list[Path]
    index: Path | None = None
    variant: str = ""

    def plain_name(self, name: str) -> str:
        """The name by which every library finds that file of these untold."""
        return name.replace(f".{self.variant}", "", 1) if self.variant else name


def find_weights(folder: Path, root: Path | None = None, stem: str = DIFFUSERS_STEM) -> WeightFiles:
    """A component's weights: those without a variant if they are there, as libraries choose, else its variant.

    Nothing outside `root` (default: `folder`) is accepted, whatever links or index entries say.
    """
    root = root or folder
    places = {"": (folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json")}
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if found := re.fullmatch(rf"{stem}\.(?:(\w+)\.safetensors|safetensors\.index\.(\w+)\.json)", file.name):
            word = found[1] or found[2]
            index = folder / f"{stem}.safetensors.index.{word}.json"
            places[word] = (folder / f"{stem}.{word}.safetensors", index)
    have = [word for word, (single, index) in places.items() if _is_there(single) or index.is_file()]
    have = [word for word in have if len(have) == 1 or _has_weights(*places[word])] or have
    if (word := preferred(have)) is not None:
        return _read_places(word, *places[word], root)
    if have:
        kinds = ", ".join(have)
        raise ModelError(f"{folder}: holds the variants {kinds}; take away the files of those that do not count")
    raise ModelError(_why_no_weights(folder, stem))


def preferred(variants: Collection[str]) -> str | None:
    """Which of several variants of the same weights counts; None where nothing tells."""
    known = [each for each in PREFERRED if each in variants]
    return next(iter(known or variants), None) if known or len(variants) == 1 else None


def by_variant(names: Iterable[str], stem: str) -> dict[str, list[str]]:
    """Of the names of files those of a component's weights and of their indices, by their variant."""
    number = r"(?:-\d+-of-\d+)?"
    forms = rf"{stem}(?:\.(\w+))?{number}(?:\.(\w+))?\.safetensors|{stem}\.safetensors\.index(?:\.(\w+))?\.json"
    found: dict[str, list[str]] = {}
    for name in names:
        if parts := re.fullmatch(forms, name):
            found.setdefault(next(filter(None, parts.groups()), ""), []).append(name)
    return found


def _is_there(file: Path) -> bool:
    return file.is_symlink() or file.is_file()


def _has_weights(single: Path, index: Path) -> bool:
    """Whether more than an index was fetched: those of other variants come along with all that is small."""
    names = read_mapping(index).get("weight_map") if index.is_file() else None
    shards = [index.parent / str(name) for name in names.values()] if isinstance(names, dict) else []
    return _is_there(single) or any(map(_is_there, shards))


def _read_places(variant: str, single: Path, index: Path, root: Path) -> WeightFiles:
    files = [single] if _is_there(single) else []
    if files and index.is_file():
        raise ModelError(
            f"{single.parent}: holds both {single.name} and {index.name}; take away the one that does not count"
        )
    if not files:
        weight_map = read_mapping(inside(root, index)).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"{index}: has no `weight_map`; fetch the file again")
        names = sorted({plain_name(name, index) for name in weight_map.values()})
        if unsafe := [name for name in names if not name.endswith(".safetensors")]:
            raise ModelError(f"{index}: names {unsafe[0]!r}, which is not a safetensors file; {CONVERT}")
        files = [index.parent / name for name in names]
    for file in files:
        if not inside(root, file).is_file():
            raise ModelError(f"{file}: this weights file is missing; fetch it again")
    return WeightFiles(files, None if files == [single] else index, variant)


def _why_no_weights(folder: Path, stem: str) -> str:
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if file.suffix in UNSAFE:
            return f"{file}: pickled weights are not read, because loading them can run code; {CONVERT}"
        if file.suffix == ".safetensors" and file.stem in STEMS:
            return f"{file}: the library that loads this component looks for {stem}.safetensors; rename it"
    return f"{folder}: no weights (looked for {stem}.safetensors, its shards and its variants); fetch them"


@dataclass(frozen=True)
class Entry:
    """One tensor in a file: `start` counts from the beginning of the file, both in bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a component, whether in one file or in shards; `digest` is the SHA-256 of the headers."""

    tensors: dict[str, Entry]
    digest: str

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.size for entry in self.tensors.values())


def open_checkpoint(folder: Path, root: Path | None = None) -> Checkpoint:
    """Read the headers of a component's weights. ModelError for files that are missing, unsafe or broken."""
    return read_headers(find_weights(folder, root).files)


def read_headers(files: Iterable[Path]) -> Checkpoint:
    tensors: dict[str, Entry] = {}
    digest = sha256()
    for file in files:
        header, entries = _header(file)
        digest.update(header)
        if twice := next((name for name in entries if name in tensors), None):
            raise ModelError(f"{file}: holds {twice}, which {tensors[twice].file.name} holds too; fetch both again")
        tensors |= entries
    return Checkpoint(tensors, digest.hexdigest())


Header = tuple[bytes, Mapping[str, Entry]]
"""As it stands in the file, and what it says."""


def _header(file: Path) -> Header:
    """A command asks for the same ones again and again."""
    try:
        about = file.stat()
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror or error}); check the file") from None
    changed = max(about.st_mtime_ns, about.st_ctime_ns)
    if time.time_ns() - changed < SETTLED_NS:
        return _as_it_is(file)
    return _as_it_was(file, (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns))


def _as_it_is(file: Path) -> Header:
    try:
        with file.open("rb") as stream, safe_open(file, framework="np"):  # which checks lengths, ranges and dtypes
            length = int.from_bytes(stream.read(8), "little")
            header = stream.read(length)
    except SafetensorError as error:
        raise ModelError(f"{file}: is not a whole safetensors file ({error}); fetch it again") from None
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror or error}); check the file") from None
    pairs = json.JSONDecoder(object_pairs_hook=list).decode(header.decode())
    name, count = Counter(name for name, _ in pairs).most_common(1)[0] if pairs else ("", 0)
    if count > 1:  # readers do not agree upon which of the two counts
        raise ModelError(f"{file}: is not a whole safetensors file (it names {name} twice); fetch it again")
    told = {name: dict(entry) for name, entry in pairs if name != "__metadata__"}
    return header, {name: _entry(file, 8 + length, entry) for name, entry in told.items()}


def _entry(file: Path, data: int, told: Mapping[str, Any]) -> Entry:
    start, end = told["data_offsets"]
    return Entry(file, told["dtype"], tuple(told["shape"]), data + start, end - start)


@lru_cache(64)
def _as_it_was(file: Path, _: tuple[int, ...]) -> Header:
    return _as_it_is(file)


def require(checkpoint: Checkpoint, promised: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """ModelError unless the checkpoint holds just the tensors, of the shapes, that its config promises."""
    have = checkpoint.tensors
    for mark, (what, way) in ADAPTERS.items():
        if found := next((name for name in have if mark in name and name not in promised), None):
            raise ModelError(
                f"{have[found].file}: holds {what} ({found}) that was in force when the pipeline was saved; load it "
                f"where it came from, call {way}, and save it again"
            )
    again = "fetch config and weights again, from one place"
    for name in promised:
        if name not in have:
            raise ModelError(f"{folder}: the weights lack {name}, which config.json asks for; {again}")
        if have[name].shape != promised[name]:
            raise ModelError(
                f"{have[name].file}: {name} has the shape {list(have[name].shape)} "
                f"where config.json asks for {list(promised[name])}; {again}"
            )
    surplus = sorted(have.keys() - promised.keys())
    if surplus:
        raise ModelError(f"{have[surplus[0]].file}: {surplus[0]} has no place in the model of config.json; {again}")


@dataclass(frozen=True)
class Piece:
    """A tensor of a new file: `parts`, one behind the other, as `dtype` and `shape`, `size` bytes. `change` makes its
    bytes of theirs where they are not the same; it sees the whole tensor, which has to fit into memory."""

    parts: tuple[Entry, ...]
    dtype: str
    shape: tuple[int, ...]
    size: int
    change: Callable[[bytes], bytes] | None = None


def as_it_is(entry: Entry) -> Piece:
    return Piece((entry,), entry.dtype, entry.shape, entry.size)


def copy_tensors(tensors: Mapping[str, Entry], target: Path) -> None:
    """Write these tensors under these names to a new safetensors file, byte for byte, and wait for the disk.

    Memory use does not depend on their size.
    """
    write_tensors({name: as_it_is(entry) for name, entry in tensors.items()}, target)


def write_tensors(tensors: Mapping[str, Piece], target: Path) -> None:
    """The same of tensors that are put together or changed on the way, one at a time.

    Wide elements come first, as readers expect aligned tensors; inside one width the order of the sources is kept, so
    that neighbours are copied in one go.
    """
    order = sorted(tensors.items(), key=lambda item: _place(item[1]))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, each in order:
        header[name] = {"dtype": each.dtype, "shape": each.shape, "data_offsets": (end, end + each.size)}
        end += each.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        with target.open("xb") as into:
            into.write(len(text).to_bytes(8, "little") + text)
            into.flush()
            for each in _runs(each for _, each in order):
                _write(each, into)
            os.fsync(into.fileno())
    except ModelError:
        target.unlink(missing_ok=True)
        raise
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.filename and Path(error.filename) != target:
            raise ModelError(f"{error.filename}: cannot be read any more ({error.strerror}); put it back") from None
        raise RunError(f"{target}: cannot be written ({error.strerror or error}); is the disk full?") from None


def _place(made: Piece) -> tuple[float, Path, int]:
    width = made.size / (prod(made.shape) or 1)
    return (-width, made.parts[0].file, made.parts[0].start) if made.parts else (-width, Path(), 0)


def _runs(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same bytes in the same order, neighbours that stay as they are in one go."""
    run: tuple[Path, int, int] | None = None
    for each in pieces:
        for part in each.parts if each.change is None else ():
            if run and run[0] == part.file and run[1] + run[2] == part.start:
                run = (run[0], run[1], run[2] + part.size)
                continue
            if run:
                yield _bytes(*run)
            run = (part.file, part.start, part.size)
        if each.change is not None:
            if run:
                yield _bytes(*run)
            run = None
            yield each
    if run:
        yield _bytes(*run)


def _bytes(file: Path, start: int, size: int) -> Piece:
    return as_it_is(Entry(file, "U8", (size,), start, size))


def _write(made: Piece, into: IO[bytes]) -> None:
    held = bytearray()
    for part in made.parts:
        with part.file.open("rb") as source:
            if made.change is None:
                copy_range(source, into, part.start, part.size)
                continue
            source.seek(part.start)
            held += source.read(part.size)
    if made.change is None:
        return
    if len(held) < sum(part.size for part in made.parts):
        raise ModelError(f"{made.parts[0].file}: ended early, so it was changed while it was read; fetch it again")
    into.write(made.change(bytes(held)))
    into.flush()


def write_shards(kept: Mapping[str, Entry], new: Mapping[str, Tensor], folder: Path) -> None:
    """A component's weights in two files and their index: tensors copied byte for byte from where they lie, and new
    ones."""
    from safetensors.torch import save_file  # takes torch

    names = [f"{DIFFUSERS_STEM}-{number:05}-of-00002.safetensors" for number in (1, 2)]
    copy_tensors(kept, folder / names[0])
    save_file({name: tensor.contiguous() for name, tensor in new.items()}, folder / names[1], {"format": "pt"})
    places = dict.fromkeys(kept, names[0]) | dict.fromkeys(new, names[1])
    size = sum(entry.size for entry in kept.values()) + sum(tensor.nbytes for tensor in new.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def bytes_digest(entry: Entry) -> str:
    """SHA-256 of a tensor's type, shape and bytes."""
    found = sha256(f"{entry.dtype} {entry.shape}".encode())
    with entry.file.open("rb") as stream:
        stream.seek(entry.start)
        for start in range(0, entry.size, CHUNK):
            found.update(stream.read(min(CHUNK, entry.size - start)))
    return found.hexdigest()


def copy_range(source: BufferedReader, into: IO[bytes], start: int, size: int) -> None:
    """Copy bytes to the end of `into`: by the kernel, which shares blocks where the file system can, else through a
    small buffer. ModelError if the source has become too short."""
    done = _copied_by_kernel(source, into, start, size)
    buffer = memoryview(bytearray(min(CHUNK, size - done)))
    source.seek(start + done)
    while done < size:
        count = source.readinto(buffer[: size - done])
        if not count:
            raise ModelError(f"{source.name}: ended early, so it was changed while it was read; fetch it again")
        into.write(buffer[:count])
        done += count
    into.flush()


def _copied_by_kernel(source: BufferedReader, into: IO[bytes], start: int, size: int) -> int:
    """How many bytes of these: all, or those before the source's end, or none where it cannot."""
    copy, done = getattr(os, "copy_file_range", None), 0
    into.flush()
    try:
        while copy and done < size:
            if not (count := copy(source.fileno(), into.fileno(), min(KERNEL, size - done), start + done)):
                break
            done += count
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise
    return done
