"""Shards read in order: tar members grouped into (picture, caption) samples, whatever is wrong counted.

Members are read from streams that we open ourselves: WebDataset(url) would take `pipe:` and others as its own
language. Nothing is ever extracted to a file.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from gzip import BadGzipFile
from hashlib import sha256
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy

from asdm_cli.data.faults import Faults
from asdm_cli.data.images import LARGEST_FILE, UnreadableError, square
from asdm_cli.data.sources import Shard, reading_store
from asdm_cli.data.texts import as_text
from asdm_cli.errors import RunError
from asdm_cli.recipe.redact import redact

Decoded = TypeVar("Decoded")

DATA_FORMAT = 1
"""Counts changes of what is read from the same bytes."""
PICTURES = ("png", "jpg", "jpeg", "webp")
CAPTION, ABOUT = "txt", "json"
LARGEST = LARGEST_FILE
"""Bytes of a member."""
LARGEST_HEADER = 1 << 20
"""Bytes that may say of one member what its fixed header has no room for: tarfile reads them at once."""
ENDED = 32
"""Reads in a row that give nothing: whatever is skipped then is claimed, not there, and may be terabytes."""
SUPPLEMENTS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
"""Types of such members."""
DAMAGED = (tarfile.TarError, EOFError, BadGzipFile, zlib.error, lzma.LZMAError, UnicodeError)


@dataclass(frozen=True)
class Sample:
    """`about` is the .json, empty where there is none; `offset` the picture's place in an uncompressed shard;
    `position`: bytes of the file read so far."""

    key: str
    picture: bytes
    caption: str
    about: bytes
    offset: int
    position: int


@dataclass(frozen=True)
class _Part:
    data: bytes
    offset: int


class _Header(tarfile.TarInfo):
    """tarfile takes a cut or broken header for the end of the archive; only the end mark is the end."""

    @classmethod
    def frombuf(cls, *args: Any) -> Any:
        made: Any = super().frombuf(*args)
        if made.type in SUPPLEMENTS and made.size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a name of {made.size} bytes")
        return made

    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise tarfile.ReadError(f"ends without tar's end mark, {error}") from None


class _Counted:
    def __init__(self, stream: Any):
        self.stream, self.position, self.nothing = stream, 0, 0

    def read(self, size: int = -1) -> bytes:
        """Raises EOFError where more is asked for again and again: a member may claim a thousand times what there is,
        and tarfile would ask for every block of it."""
        with reading_store():
            data: bytes = self.stream.read(size)
        self.position += len(data)
        self.nothing = 0 if data else self.nothing + 1
        if self.nothing > ENDED:
            raise EOFError("ends before what it says that it holds")
        return data


def squares(shard: Shard, resolution: int, faults: Faults, batch: int) -> Iterator[list[tuple[Sample, numpy.ndarray]]]:
    """The usable samples of a shard with their pixels, up to `batch` at a time, in the shard's order."""
    return decoded(shard, faults, batch, partial(square, resolution=resolution))


def decoded(
    shard: Shard, faults: Faults, batch: int, decode: Callable[[bytes], Decoded]
) -> Iterator[list[tuple[Sample, Decoded]]]:
    """The same with whatever `decode` makes of a picture's bytes."""

    def tried(sample: Sample) -> Decoded | UnreadableError:
        try:
            return decode(sample.picture)
        except UnreadableError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        samples = read_samples(shard, faults)
        while chunk := list(islice(samples, batch)):
            good = []
            for sample, made in zip(chunk, pool.map(tried, chunk), strict=True):
                if isinstance(made, UnreadableError):
                    faults.add("corrupt image", f"{shard.name}: {sample.key}", str(made))
                else:
                    good.append((sample, made))
            yield good


def digest(shard: Shard) -> str:
    """SHA-256 of the file."""
    found = sha256()
    with _opened(shard) as stream:
        while data := stream.read(1 << 20):
            found.update(data)
    return found.hexdigest()


def read_samples(shard: Shard, faults: Faults) -> Iterator[Sample]:
    """Every sample that has a picture and a caption, undecoded. RunError where the shard cannot be read at all."""
    from webdataset.tariterators import group_by_keys

    def twice(error: Exception) -> bool:
        faults.add("duplicate name", shard.name, str(error.args[0]))
        return True

    with _opened(shard) as stream:
        members = _Members(shard, stream, faults)
        for parts in group_by_keys(members, handler=twice):
            sample = _sample(shard, parts, members, faults)
            if sample:
                yield sample


@contextmanager
def _opened(shard: Shard) -> Iterator[_Counted]:
    try:
        with _open(shard) as stream:
            yield _Counted(stream)
            if shard.kind == "pipe":
                stream.read()  # to its end, where the command's exit code is looked at
    except OSError as error:
        code = re.search(r"exit -?\d+", str(error))  # around it stands the whole command, with all that is in it
        reason = (code[0] if code else "it failed") if shard.kind == "pipe" else redact(str(error))
        raise RunError(f"{shard.name}: cannot be read ({reason}); run again, what was finished is kept") from None


def _open(shard: Shard) -> Any:
    if shard.kind == "local":
        return Path(shard.url).open("rb")
    if shard.kind == "remote":
        import fsspec

        with reading_store():
            return fsspec.open(shard.url, "rb").open()
    from webdataset.gopen import gopen

    return gopen(shard.url)


class _Members:
    """The members that samples are made of, as `group_by_keys` takes them; `cut` once the shard broke off."""

    def __init__(self, shard: Shard, stream: _Counted, faults: Faults):
        self.shard, self.stream, self.faults, self.cut = shard, stream, faults, False
        self.unsafe = ""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            # Compressed streams are told by their first bytes, but not where places in the file are wanted.
            mode: Any = "r|" if self.shard.seekable else "r|*"
            with tarfile.open(fileobj=self.stream, mode=mode, tarinfo=_Header) as archive:  # type: ignore[call-overload]
                for member in archive:
                    if self._is_wanted(member):
                        part = _Part(archive.extractfile(member).read(), member.offset_data)
                        yield {"fname": member.name, "data": part, "__url__": self.shard.name}
                    archive.members = []  # or it would keep every header
        except DAMAGED as error:
            self.cut = True
            self.faults.add("truncated shard", self.shard.name, str(error))

    def _is_wanted(self, member: Any) -> bool:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            self._refuse(member.name)
            return False
        suffix = path.name.rpartition(".")[2].lower()
        if any(map(_is_meta, path.parts)) or suffix not in (*PICTURES, CAPTION, ABOUT):
            return False
        if member.size > LARGEST:
            self.faults.add("oversized member", f"{self.shard.name}: {member.name}", f"{member.size} bytes")
            return False
        return member.isreg() and not member.issparse()

    def _refuse(self, name: str) -> None:
        """A sample's picture and caption are one fault."""
        key = name.rpartition(".")[0]
        if key != self.unsafe:
            self.unsafe = key
            self.faults.add("unsafe name", f"{self.shard.name}: {name}")


def _is_meta(name: str) -> bool:
    """Hidden names, webdataset's own `__meta__`, and what a Mac adds to archives."""
    return name.startswith((".", "__MACOSX")) or (name.startswith("__") and name.endswith("__"))


def _sample(shard: Shard, parts: dict[str, Any], members: _Members, faults: Faults) -> Sample | None:
    where = f"{shard.name}: {parts['__key__']}"
    picture = next((parts[name] for name in PICTURES if name in parts), None)
    if members.cut and (picture is None or CAPTION not in parts):
        return None  # the sample in which the shard broke off: counted with it
    if picture is None:
        faults.add("no image", where)
        return None
    try:
        caption = _caption(parts)
    except (ValueError, RecursionError) as error:
        faults.add("unreadable caption", where, str(error))
        return None
    if not caption:
        faults.add("no caption" if caption is None else "empty caption", where)
        return None
    about = parts[ABOUT].data if ABOUT in parts else b""
    return Sample(parts["__key__"], picture.data, caption, about, picture.offset, members.stream.position)


def _caption(parts: dict[str, Any]) -> str | None:
    """The .txt, else `caption` of the .json; None where there is neither."""
    if CAPTION in parts:
        return as_text(parts[CAPTION].data).strip()
    about = json.loads(parts[ABOUT].data) if ABOUT in parts else None
    caption = about.get("caption") if isinstance(about, dict) else None
    if not isinstance(caption, str):
        return None
    caption.encode()  # JSON can spell half a character, which is no text
    return caption.strip()
