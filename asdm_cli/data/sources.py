"""Where training data lies: shards named by path, glob, braces or URL, found before anything slow."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from asdm_cli.errors import ModelError
from asdm_cli.models.source import POCKET
from asdm_cli.recipe.redact import PIPE, is_redacted, redact

WILD = "*?["
SHOWN = 20
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")

EVALUATION = f"{POCKET}-evaluation"
SHIPPED = {POCKET: "train.tar.gz", f"{POCKET}-held-out": "held-out.tar.gz", EVALUATION: "evaluation.tar.gz"}
"""Words for the shards that come with the package."""


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

    @property
    def seekable(self) -> bool:
        """Whether a sample can be read by its place in the file."""
        return self.kind != "pipe" and not self.url.split("?")[0].endswith(COMPRESSED)


def find_shards(sources: Sequence[str], allow_pipes: bool = False) -> list[Shard]:
    """The shards that `sources` name, in their order: paths, globs, `{000..009}`, fsspec URLs, `pocket`.

    Reads names, sizes and times only. Raises one ModelError with everything that is wrong.
    `pipe:COMMAND` runs a shell, so it needs `allow_pipes`.
    """
    urls: list[str] = []
    faults: list[str] = []
    for source in sources:
        try:
            urls += _expanded(source)
        except ModelError as error:
            faults.append(str(error))
    with ThreadPoolExecutor(16) as pool:  # a remote look-up waits for its answer
        found = list(pool.map(lambda url: _found(url, allow_pipes), urls))
    shards = [shard for each in found if isinstance(each, list) for shard in each]
    faults += [each for each in found if isinstance(each, str)]
    faults += _named_twice(shards)
    if not faults and not shards:
        faults.append("no shard is named; give webdataset tar files, or `pocket`")
    if faults:
        more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise ModelError("\n".join(faults[:SHOWN] + more))
    return shards


def _named_twice(shards: Sequence[Shard]) -> list[str]:
    seen: set[str] = set()
    twice = [shard.name for shard in shards if shard.identity in seen or seen.add(shard.identity)]  # type: ignore[func-returns-value]
    return [f"{name}: is named twice; its samples would count double, name it once" for name in twice]


def _expanded(source: str) -> list[str]:
    """Braces first, as shells do; a file that has braces in its name is that file."""
    if is_redacted(source) and not _is_file(source):
        raise ModelError(f"{source}: stands in a record for what is not written down; give the path or address itself")
    if source in SHIPPED:
        return [str(resources.files("asdm_cli") / "pocket" / "data" / SHIPPED[source])]
    if "{" not in source or _is_file(source):
        return [source]
    import braceexpand

    try:
        return list(braceexpand.braceexpand(source, escape=False))
    except ValueError as error:
        told = f"{redact(source)}: its braces cannot be read ({error}); write {{000..009}} or {{a,b}}"
        raise ModelError(told) from None


def _is_file(source: str) -> bool:
    return "://" not in source and not source.startswith(PIPE) and Path(source).is_file()


def _found(url: str, allow_pipes: bool) -> list[Shard] | str:
    try:
        if url.startswith(PIPE):
            return [_pipe(url, allow_pipes)]
        return _remote(url) if "://" in url else _local(url)
    except ModelError as error:
        return str(error)


def _pipe(url: str, allowed: bool) -> Shard:
    if allowed:
        return Shard(url, "pipe", 0, redact(url))
    raise ModelError(
        f"{redact(url)}: runs a command in a shell, which a recipe may not do by itself; name the file or its URL, "
        "or allow commands where you start the run"
    )


def _local(url: str) -> list[Shard]:
    path = Path(url).expanduser()
    if path.is_dir():
        raise ModelError(f"{url}: is a directory; name its shards, as in {url.rstrip('/')}/*.tar")
    if path.exists():
        return [_file(path)]
    if not set(WILD) & set(url):
        raise ModelError(f"{url}: no such file; give a webdataset shard (.tar, .tar.gz)")
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - absolute ones too
    files = [_file(match) for match in matches if match.is_file()]
    if not files:
        raise ModelError(f"{url}: no file has such a name; look at the pattern")
    return files


def _file(path: Path) -> Shard:
    about = path.stat()
    if about.st_size == 0:
        raise ModelError(f"{path}: is empty; fetch or write the shard again")
    return Shard(str(path), "local", about.st_size, f"{path.resolve()} {about.st_size} bytes {about.st_mtime_ns} ns")


def _remote(url: str) -> list[Shard]:
    system, path = _system(url)
    if "local" in _protocols(system):
        return _local(path)
    try:
        if "*" not in path:
            return [_object(system, path, url)]
        found = [_object(system, name, system.unstrip_protocol(name)) for name in sorted(system.glob(path))]
    except FileNotFoundError:
        raise ModelError(f"{redact(url)}: no such object") from None
    except ModelError:
        raise
    except Exception as error:  # each store has its own ways to fail
        raise ModelError(f"{redact(url)}: cannot be reached ({type(error).__name__}: {redact(str(error))})") from None
    if not found:
        raise ModelError(f"{redact(url)}: no object has such a name; look at the pattern")
    return found


def _object(system: Any, path: str, url: str) -> Shard:
    about = system.info(path)
    if about.get("type") == "directory":
        raise ModelError(f"{redact(url)}: is a directory; name its shards, as in DIRECTORY/*.tar")
    return Shard(url, "remote", about.get("size") or 0, f"{redact(url)} {system.ukey(path)}")


def _system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise ModelError(f"{redact(url)}: needs a package that is not installed ({error})") from None
    except ValueError as error:
        reason = redact(str(error))
        raise ModelError(f"{redact(url)}: {reason}; give a path, or a URL such as s3://, gs:// or https://") from None
    except Exception as error:
        raise ModelError(f"{redact(url)}: cannot be reached ({type(error).__name__}: {redact(str(error))})") from None


@contextmanager
def reading_store() -> Iterator[None]:
    """Each store breaks off in errors of its own; all leave here as OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)
