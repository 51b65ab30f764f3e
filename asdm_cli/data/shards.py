"""Shards of (image, caption): found by path, glob, braces or URL before anything slow, and read in order, whatever is
wrong with them counted.

Members are read from streams that we open ourselves: WebDataset(url) would take `pipe:` and others as its own language.
Nothing is ever extracted to a file.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from gzip import BadGzipFile
from hashlib import sha256
from importlib import resources
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, TypeVar

from asdm_cli.data.images import LARGEST_FILE, UnreadableError
from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.directory import POCKET
from asdm_cli.recipe.redact import PIPE, is_redacted, redact
from asdm_cli.recipe.schema import files_named, local

Decoded = TypeVar("Decoded")

DATA_FORMAT = 1
"""Counts changes of what is read from the same bytes."""
WILD = "*?["
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
EVALUATION = f"{POCKET}-evaluation"
SHIPPED = {POCKET: "train.tar.gz", f"{POCKET}-held-out": "held-out.tar.gz", EVALUATION: "evaluation.tar.gz"}
"""Words for the shards that come with the package."""
IMAGES = ("png", "jpg", "jpeg", "webp")
MASK = "mask"
CAPTION, ABOUT = "txt", "json"
META = re.compile(r"\.|__MACOSX|__.*__$")
"""Parts of names that are hidden, that a Mac adds to archives, or webdataset's own (`__meta__`)."""
STRETCHES, STRETCH = 8, 1 << 16
"""How many, and how many bytes each, tell a shard from others: hundreds of gigabytes take too long to be read."""
EXAMPLES = 20
"""Faults that are told one by one."""
LARGEST = LARGEST_FILE
"""Bytes of a member."""
LARGEST_HEADER = 1 << 20
"""Bytes that may say of one member what its fixed header has no room for: tarfile reads them at once."""
SUPPLEMENTS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
"""Types of such members."""
ENDED = 32
"""Reads in a row that give nothing: whatever is skipped then is claimed, not there, and may be terabytes."""
DAMAGED = (tarfile.TarError, EOFError, BadGzipFile, zlib.error, lzma.LZMAError, UnicodeError)


@dataclass
class Faults:
    """What is wrong with data: `counts` by kind; `examples` are the first `KEPT`, each with its shard and sample."""

    KEPT: ClassVar[int] = EXAMPLES
    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, kind: str, where: object, what: object = "") -> None:
        self.counts[kind] += 1
        if len(self.examples) < self.KEPT:
            self.examples.append(f"{where}: {kind}" + (f" ({what})" if str(what) else ""))

    def merge(self, other: Faults) -> None:
        self.counts.update(other.counts)
        self.examples = (self.examples + other.examples)[: self.KEPT]

    def total(self) -> int:
        return self.counts.total()

    def summary(self) -> str:
        """Every kind with its number, most frequent first."""
        return ", ".join(f"{kind}: {count}" for kind, count in self.counts.most_common())

    def listed(self) -> str:
        """The first of them, one a line, and how many more there are."""
        more = self.total() - EXAMPLES
        return "\n".join([*self.examples[:EXAMPLES], *([f"... and {more} more"] if more > 0 else [])])


@dataclass(frozen=True)
class Shard:
    """A tar file of samples. `url` is a path, a URL for fsspec, or a command after `pipe:`.

    `size` counts bytes (0: unknown); `identity` changes when the bytes do, as far as the place can tell.
    """

    url: str
    kind: Literal["local", "remote", "pipe"]
    size: int
    identity: str

    @property
    def name(self) -> str:
        """For messages and records: the path, or a digest in its place where it may hold a password."""
        return redact(self.url)

    @property
    def file(self) -> str:
        """For records that leave this machine: whose folder it was says nothing elsewhere."""
        return Path(self.url).name if self.kind == "local" else self.name

    def contents(self) -> str:
        """Of a local file its size and a digest of a few stretches of it, wherever it lies and whenever it was copied
        there; of others `identity`."""
        if self.kind != "local":
            return self.identity
        digest, last = hashlib.sha256(), max(0, self.size - STRETCH)
        with Path(self.url).open("rb") as file:
            for number in range(STRETCHES):
                file.seek(number * last // (STRETCHES - 1))
                digest.update(file.read(STRETCH))
        return f"{self.size} bytes, {digest.hexdigest()}"

    @property
    def seekable(self) -> bool:
        """Whether a sample can be read by its place in the file."""
        return self.kind != "pipe" and not self.url.split("?")[0].endswith(COMPRESSED)


@dataclass(frozen=True)
class Sample:
    """`about` is the .json, `mask` what NAME.mask.png (or .jpg, ...) holds, each empty where there is none; `offset` is
    the image's place in an uncompressed shard; `position`: bytes of the file read so far."""

    key: str
    picture: bytes
    caption: str
    about: bytes
    offset: int
    position: int
    mask: bytes = b""


def as_text(data: bytes) -> str:
    """UTF-8 without a byte order mark: the one way in which captions and prompts become text. Raises
    UnicodeDecodeError."""
    return data.decode("utf-8-sig")


def lines(text: str) -> list[str]:
    """Split at \\n and \\r\\n and at nothing else: U+2028 or a form feed may stand inside a caption."""
    return [line.removesuffix("\r") for line in text.split("\n")]


# --- finding them ---


def find_shards(sources: Sequence[str], allow_pipes: bool = False) -> list[Shard]:
    """The shards that `sources` name, in their order: paths, globs, `{000..009}`, fsspec URLs, `pocket`.

    Reads names, sizes and times only. Raises one ModelError with everything that is wrong.
    `pipe:COMMAND` runs a shell, so it needs `allow_pipes`.
    """

    def tried(look: Callable[..., list[Any]], *about: Any) -> list[Any]:
        try:
            return look(*about)
        except ModelError as error:
            return [error]

    def found(url: str | ModelError) -> list[Shard | ModelError]:
        return [url] if isinstance(url, ModelError) else tried(_find, url, allow_pipes)

    urls = [url for source in sources for url in tried(_expanded, source)]
    with ThreadPoolExecutor(16) as pool:  # a remote look-up waits for its answer
        looked_up = [each for some in pool.map(found, urls) for each in some]
    shards = [each for each in looked_up if isinstance(each, Shard)]
    faults = [str(each) for each in looked_up if isinstance(each, ModelError)]
    counts = Counter(shard.identity for shard in shards)
    twice = {shard.identity: shard.name for shard in shards if counts[shard.identity] > 1}
    faults += [f"{name}: is named twice; its samples would count double, name it once" for name in twice.values()]
    if not faults and not shards:
        faults.append("no shard is named; give webdataset tar files, or `pocket`")
    if faults:
        more = [f"... and {len(faults) - EXAMPLES} more"] if len(faults) > EXAMPLES else []
        raise ModelError("\n".join(faults[:EXAMPLES] + more))
    return shards


def _expanded(source: str) -> list[str]:
    """Braces first, as shells do; a file that has braces in its name is that file."""
    is_file = "://" not in source and not source.startswith(PIPE) and local(source).is_file()
    if is_redacted(source) and not is_file:
        raise ModelError(f"{source}: stands in a record for what is not written down; give the path or address itself")
    if source in SHIPPED:
        return [str(resources.files("asdm_cli") / "pocket" / "data" / SHIPPED[source])]
    if "{" not in source or is_file:
        return [source]
    import braceexpand

    try:
        return list(braceexpand.braceexpand(source, escape=False))
    except ValueError as error:
        reason = f"its braces cannot be read ({error}); write {{000..009}} or {{a,b}}"
        raise ModelError(f"{redact(source)}: {reason}") from None


def _find(url: str, allow_pipes: bool) -> list[Shard]:
    if url.startswith(PIPE) and not allow_pipes:
        raise ModelError(
            f"{redact(url)}: runs a command in a shell, which a recipe may not do by itself; name the file or its URL, "
            "or allow commands where you start the run"
        )
    if url.startswith(PIPE):
        return [Shard(url, "pipe", 0, redact(url))]
    return _remote(url) if "://" in url else _local(url)


def _local(url: str) -> list[Shard]:
    path = local(url)
    if path.is_dir():
        raise ModelError(
            f"{url}: is a directory; name its shards, as in {url.rstrip('/')}/*.tar (of pictures: asdm pack)"
        )
    if not path.exists() and not set(WILD) & set(url):
        raise ModelError(f"{url}: no such file; give a webdataset shard (.tar, .tar.gz), as asdm pack makes them")
    found = []
    for file in (each for each in files_named(url) if each.is_file()):
        about = file.stat()
        if about.st_size == 0:
            raise ModelError(f"{file}: is empty; fetch or write the shard again")
        identity = f"{file.resolve()} {about.st_size} bytes {about.st_mtime_ns} ns"
        found.append(Shard(str(file), "local", about.st_size, identity))
    if not found:
        raise ModelError(f"{url}: no file has such a name; look at the pattern")
    return found


def _remote(url: str) -> list[Shard]:
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    try:
        system, path = url_to_fs(url)
        if isinstance(system, LocalFileSystem):
            return _local(path)
        names = sorted(system.glob(path)) if "*" in path else [path]
        found = []
        for name in names:
            address = system.unstrip_protocol(name) if "*" in path else url
            about = system.info(name)
            if about.get("type") == "directory":
                raise ModelError(f"{redact(address)}: is a directory; name its shards, as in DIRECTORY/*.tar")
            identity = f"{redact(address)} {system.ukey(name)}"
            found.append(Shard(address, "remote", about.get("size") or 0, identity))
    except ModelError:
        raise
    except ImportError as error:
        raise ModelError(f"{redact(url)}: needs a package that is not installed ({error})") from None
    except FileNotFoundError:
        raise ModelError(f"{redact(url)}: no such object") from None
    except Exception as error:  # each store has its own ways to fail
        reason = f"{type(error).__name__}: {redact(str(error))}"
        way = "give a path, or a URL such as s3://, gs:// or https://"
        raise ModelError(f"{redact(url)}: cannot be reached ({reason}); {way}") from None
    if not found:
        raise ModelError(f"{redact(url)}: no object has such a name; look at the pattern")
    return found


# --- reading them ---


def decoded(
    shard: Shard, faults: Faults, batch: int, decode: Callable[[bytes], Decoded]
) -> Iterator[list[tuple[Sample, Decoded]]]:
    """The usable samples of a shard with what `decode` makes of their images' bytes, up to `batch` at a time, in the
    shard's order."""

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
                    faults.add("corrupt image", f"{shard.name}: {sample.key}", made)
                else:
                    good.append((sample, made))
            yield good


def read_samples(shard: Shard, faults: Faults) -> Iterator[Sample]:
    """Every sample that has an image and a caption, undecoded. RunError where the shard cannot be read at all."""
    from webdataset.tariterators import group_by_keys

    def twice(error: Exception) -> bool:
        faults.add("duplicate name", shard.name, error.args[0])
        return True

    with _opened(shard) as stream:
        for parts in group_by_keys(_members(shard, stream, faults), handler=twice):
            if sample := _sample(parts, f"{shard.name}: {parts['__key__']}", stream, faults):
                yield sample


def digest(shard: Shard) -> str:
    """SHA-256 of the file."""
    found = sha256()
    with _opened(shard) as stream:
        while data := stream.read(1 << 20):
            found.update(data)
    return found.hexdigest()


class _Stream:
    """A shard's bytes: how many were read, and whether they broke off in the middle of what they promised."""

    def __init__(self, inner: Any):
        self.inner, self.position, self.nothing, self.cut = inner, 0, 0, False

    def read(self, size: int = -1) -> bytes:
        """Raises EOFError where more is asked for again and again: a member may claim a thousand times what there is,
        and tarfile would ask for every block of it."""
        with reading_store():
            data: bytes = self.inner.read(size)
        self.position += len(data)
        self.nothing = 0 if data else self.nothing + 1
        if self.nothing > ENDED:
            raise EOFError("ends before what it says that it holds")
        return data


@contextmanager
def reading_store() -> Iterator[None]:
    """Each store breaks off in errors of its own; all leave here as OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


@contextmanager
def _opened(shard: Shard) -> Iterator[_Stream]:
    try:
        with _open(shard) as opened:
            yield (stream := _Stream(opened))
            if shard.kind == "pipe":
                stream.read()  # to its end, where the command's exit code is looked at
    except OSError as error:
        code = re.search(r"exit -?\d+", str(error))  # around it stands the whole command, with all that is in it
        reason = (code[0] if code else "it failed") if shard.kind == "pipe" else redact(str(error))
        raise RunError(f"{shard.name}: cannot be read ({reason}); run again, what was finished is kept") from None


def _open(shard: Shard) -> Any:
    if shard.kind == "pipe":
        from webdataset.gopen import gopen

        return gopen(shard.url)
    if shard.kind == "local":
        return Path(shard.url).open("rb")
    import fsspec

    with reading_store():
        return fsspec.open(shard.url, "rb").open()


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


def _members(shard: Shard, stream: _Stream, faults: Faults) -> Iterator[dict[str, Any]]:
    """The members that samples are made of, their bytes and their places in the file, as `group_by_keys` takes them;
    `stream.cut` once the shard broke off."""
    # Compressed streams are told by their first bytes, but not where places in the file are wanted.
    mode: Any = "r|" if shard.seekable else "r|*"
    unsafe = ""
    try:
        # names that are no UTF-8 are told, and written, with their bytes spelled out
        with tarfile.open(fileobj=stream, mode=mode, tarinfo=_Header, errors="backslashreplace") as archive:  # type: ignore[call-overload]
            for member in archive:
                archive.members = []  # or it would keep every header
                path, (key, _, suffix) = PurePosixPath(member.name), member.name.rpartition(".")
                if path.is_absolute() or ".." in path.parts:
                    if key != unsafe:  # a sample's image and caption are one fault
                        faults.add("unsafe name", f"{shard.name}: {member.name}")
                    unsafe = key
                elif any(map(META.match, path.parts)) or suffix.lower() not in (*IMAGES, CAPTION, ABOUT):
                    continue
                elif member.size > LARGEST:
                    faults.add("oversized member", f"{shard.name}: {member.name}", f"{member.size} bytes")
                elif member.isreg() and not member.issparse():
                    part = archive.extractfile(member).read(), member.offset_data
                    yield {"fname": member.name, "data": part, "__url__": shard.name}
    except DAMAGED as error:
        stream.cut = True
        faults.add("truncated shard", shard.name, error)


def _sample(parts: dict[str, Any], where: str, stream: _Stream, faults: Faults) -> Sample | None:
    """The caption is the .txt, else `caption` of the .json."""
    picture, offset = next((parts[name] for name in IMAGES if name in parts), (None, 0))
    if stream.cut and (picture is None or CAPTION not in parts):
        return None  # the sample in which the shard broke off: counted with it
    if picture is None:
        faults.add("no image", where)
        return None
    about = parts[ABOUT][0] if ABOUT in parts else b""
    try:
        if CAPTION in parts:
            caption: Any = as_text(parts[CAPTION][0])
        else:
            held = json.loads(about) if about else None
            caption = held.get("caption") if isinstance(held, dict) else None
        if not isinstance(caption, str) or not caption.strip():
            faults.add("empty caption" if isinstance(caption, str) else "no caption", where)
            return None
        caption.encode()  # JSON can spell half a character, which is no text
    except (ValueError, RecursionError) as error:
        faults.add("unreadable caption", where, error)
        return None
    mask = next((parts[f"{MASK}.{name}"][0] for name in IMAGES if f"{MASK}.{name}" in parts), b"")
    return Sample(parts["__key__"], picture, caption.strip(), about, offset, stream.position, mask)
