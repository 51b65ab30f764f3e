"""UNet weights on disk: what safetensors files hold, from their headers, and copying tensors between them as bytes."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError, safe_open

from asdm_cli.errors import ModelError, RunError
from asdm_cli.unet.weight_files import weight_files

WEIGHTS = "diffusion_pytorch_model.safetensors"
CHUNK = 4 << 20
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
    return read_headers(weight_files(folder, root))


def read_headers(files: Iterable[Path]) -> Checkpoint:
    tensors: dict[str, Entry] = {}
    digest = sha256()
    for file in files:
        header, begin = _header(file)
        digest.update(header)
        for name, entry in _entries(file, header, begin).items():
            if name in tensors:
                raise ModelError(f"{file}: holds {name}, which {tensors[name].file.name} holds too; fetch both again")
            tensors[name] = entry
    return Checkpoint(tensors, digest.hexdigest())


def _header(file: Path) -> tuple[bytes, int]:
    """The header's JSON bytes and where the data begins; the library checks lengths, ranges and dtypes first."""
    try:
        with safe_open(file, framework="np"):
            pass
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            return stream.read(length), 8 + length
    except SafetensorError as error:
        raise ModelError(f"{file}: is not a whole safetensors file ({error}); fetch it again") from None
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror or error}); check the file") from None


def _entries(file: Path, header: bytes, begin: int) -> dict[str, Entry]:
    return {
        name: Entry(
            file,
            entry["dtype"],
            tuple(entry["shape"]),
            begin + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in _named_once(file, header).items()
        if name != "__metadata__"
    }


def _named_once(file: Path, header: bytes) -> dict[str, Any]:
    """The header as an object. Which of two tensors of one name counts, readers do not agree upon."""
    named: list[tuple[str, Any]] = json.JSONDecoder(object_pairs_hook=list).decode(header.decode())
    counts = Counter(name for name, _ in named)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ModelError(f"{file}: is not a whole safetensors file (it names {twice[0]} twice); fetch it again")
    return {name: dict(entry) for name, entry in named}


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


def copy_tensors(tensors: Mapping[str, Entry], target: Path) -> None:
    """Write these tensors under these names to a new safetensors file, byte for byte, and wait for the disk.

    Memory use does not depend on their size. Wide elements come first, as readers expect aligned tensors; inside
    one width the order of the sources is kept, so that neighbours are copied in one go.
    """
    order = sorted(tensors.items(), key=lambda item: (-_width(item[1]), item[1].file, item[1].start))
    try:
        with target.open("xb") as into:
            into.write(_new_header(order))
            into.flush()
            for file, start, size in _ranges([entry for _, entry in order]):
                with file.open("rb") as source:
                    copy_range(source, into, start, size)
            os.fsync(into.fileno())
    except ModelError:
        target.unlink(missing_ok=True)
        raise
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.filename and Path(error.filename) != target:
            raise ModelError(f"{error.filename}: cannot be read any more ({error.strerror}); put it back") from None
        raise RunError(f"{target}: cannot be written ({error.strerror or error}); is the disk full?") from None


def bytes_digest(entry: Entry) -> str:
    """SHA-256 of a tensor's type, shape and bytes."""
    found = sha256(f"{entry.dtype} {entry.shape}".encode())
    with entry.file.open("rb") as stream:
        stream.seek(entry.start)
        for start in range(0, entry.size, CHUNK):
            found.update(stream.read(min(CHUNK, entry.size - start)))
    return found.hexdigest()


def _new_header(order: list[tuple[str, Entry]]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, entry in order:
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (end, end + entry.size)}
        end += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _width(entry: Entry) -> float:
    """Bytes per element; tensors without elements go anywhere."""
    return entry.size / (prod(entry.shape) or 1)


def _ranges(entries: Iterable[Entry]) -> Iterable[tuple[Path, int, int]]:
    """(file, start, size) of what to copy, neighbours joined."""
    joined: list[tuple[Path, int, int]] = []
    for entry in entries:
        if joined and joined[-1][0] == entry.file and sum(joined[-1][1:]) == entry.start:
            file, start, size = joined.pop()
            joined.append((file, start, size + entry.size))
        else:
            joined.append((entry.file, entry.start, entry.size))
    return joined


def copy_range(source: IO[bytes], into: IO[bytes], start: int, size: int) -> None:
    """Copy bytes to the end of `into`: inside the kernel where it can, through a small buffer where it cannot.
    ModelError if the source has become too short."""
    done = 0
    copy = getattr(os, "copy_file_range", None)
    while copy and done < size:
        try:
            count = copy(source.fileno(), into.fileno(), min(size - done, 1 << 30), start + done)
        except OSError:
            break  # other file systems, old kernels: the buffer below goes on where this stopped
        if count == 0:
            break
        done += count
    while done < size:
        block = os.pread(source.fileno(), min(CHUNK, size - done), start + done)
        if not block:
            raise ModelError(f"{source.name}: ended early, so it was changed while it was read; fetch it again")
        done += os.write(into.fileno(), block)
