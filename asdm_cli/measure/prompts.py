"""What is drawn: the prompts of a shard or a text file, with the real pictures where there are any. No torch."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from asdm_cli.errors import ModelError

SHIPPED = {"pocket": "evaluation.tar.gz", "pocket-held-out": "held-out.tar.gz"}
"""Words for the prompt lists that come with the package."""
SHARD_ENDINGS = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class PromptList:
    """`about[i]` is what the shard's .json says of prompt i, in words (empty if it says nothing): its part of the data
    as `split`, and what a probe may know (`label`, `style`). `real` counts the shard's pictures. `digest` is the
    SHA-256 of the file, so that two lists of one name can be told apart. The first `distinct` may stand there again.
    """

    path: Path
    prompts: tuple[str, ...]
    about: tuple[dict[str, str], ...]
    real: int
    digest: str
    distinct: int

    @property
    def title(self) -> str:
        times = len(self.prompts) // self.distinct
        return f"{self.path.name} (sha256 {self.digest[:12]})" + (f", {times} pictures each" if times > 1 else "")

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(facts.get("split", "") for facts in self.about)


def read_prompts(source: str, limit: int | None = None, per_prompt: int = 1) -> PromptList:
    """The first `limit` prompts, `per_prompt` times over, of a shard, of a text file (a prompt a line) or of `pocket`.

    Every sample of a shard is checked, its PNG checksums included. Raises ModelError with the sample's key.
    """
    path = locate(source)
    prompts, about, real = _read_shard(path) if is_shard(path) else _read_lines(path)
    if not prompts:
        raise ModelError(f"{path}: holds no prompt; give a shard of (png, txt) samples or a text file with some")
    prompts, about = prompts[:limit], about[:limit]
    return PromptList(
        path, tuple(prompts * per_prompt), tuple(about * per_prompt), real, _sha256(path), distinct=len(prompts)
    )


def is_shard(path: Path) -> bool:
    return path.name.endswith(SHARD_ENDINGS)


def real_pictures(path: Path) -> Iterator[Image.Image]:
    """Every picture of a shard in RGB, in the shard's order."""
    for key, sample in _samples(path):
        try:
            yield Image.open(io.BytesIO(sample["png"])).convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise _damaged(path, key, error) from None


def locate(source: str) -> Path:
    """The file that `source` names. Raises ModelError."""
    if source in SHIPPED:
        path = Path(str(resources.files("asdm_cli") / "pocket" / "data" / SHIPPED[source]))
    else:
        path = Path(source)
    if path.is_file():
        return path
    raise ModelError(
        f"{source}: no such file; `prompts` is a webdataset shard, a text file or one of {', '.join(SHIPPED)}"
    )


def _read_lines(path: Path) -> tuple[list[str], list[dict[str, str]], int]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        ways = ", ".join(SHARD_ENDINGS)
        raise ModelError(f"{path}: is no text in UTF-8; a shard's name ends in one of {ways}") from None
    prompts = [line.strip() for line in lines if line.strip()]
    return prompts, [{}] * len(prompts), 0


def _read_shard(path: Path) -> tuple[list[str], list[dict[str, str]], int]:
    prompts, about = [], []
    for key, sample in _samples(path):
        _check_png(path, key, sample["png"])
        prompts.append(_caption(path, key, sample["txt"]))
        about.append(_facts(path, key, sample.get("json")))
    return prompts, about, len(prompts)


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, {extension: bytes}) of every sample; each has a `png` and a `txt`."""
    from webdataset.tariterators import group_by_keys, tar_file_expander  # slow: it imports torch

    # WebDataset(path) would read a path's `{0..9}` and `pipe:` as its own language, and leaves the file open.
    try:
        with path.open("rb") as file:
            for sample in group_by_keys(tar_file_expander([{"url": path.name, "stream": file}])):
                yield _whole(path, sample)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, ValueError, OSError) as error:
        raise ModelError(f"{path}: is no whole tar file ({error}); fetch or write the shard again") from None


def _whole(path: Path, sample: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    key = sample["__key__"]
    for part in ("png", "txt"):
        if part not in sample:
            raise ModelError(f"{path}: sample {key!r} has no .{part}; write the shard again with both")
    return key, sample


def _check_png(path: Path, key: str, png: bytes) -> None:
    try:
        Image.open(io.BytesIO(png)).verify()
    except (OSError, SyntaxError, ValueError) as error:
        raise _damaged(path, key, error) from None


def _damaged(path: Path, key: str, error: Exception) -> ModelError:
    return ModelError(f"{path}: the picture of sample {key!r} is damaged ({error}); fetch or write the shard again")


def _caption(path: Path, key: str, txt: bytes) -> str:
    caption = txt.decode("utf-8", errors="replace").strip()
    if caption:
        return caption
    raise ModelError(f"{path}: the caption of sample {key!r} is empty; give it one or leave the sample out")


def _facts(path: Path, key: str, about: bytes | None) -> dict[str, str]:
    if about is None:
        return {}
    try:
        facts = json.loads(about)
    except ValueError as error:
        raise ModelError(f"{path}: the .json of sample {key!r} cannot be read ({error}); write it again") from None
    return {name: value for name, value in facts.items() if isinstance(value, str)} if isinstance(facts, dict) else {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
