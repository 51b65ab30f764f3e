"""What is drawn: the prompts of shards or of a text file, with the real pictures where there are any."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from PIL import Image

from asdm_cli.data.images import read_rgb
from asdm_cli.data.shards import (
    EVALUATION,
    SHIPPED,
    WILD,
    Faults,
    Sample,
    Shard,
    as_text,
    decoded,
    digest,
    find_shards,
    lines,
)
from asdm_cli.errors import ModelError
from asdm_cli.models.directory import POCKET

SHARD_ENDINGS = (".tar", ".tar.gz", ".tgz")
TOGETHER = 32
"""Pictures that are decoded at a time."""


@dataclass(frozen=True)
class PromptList:
    """`about[i]` is what the shard's .json says of prompt i, in words (empty if it says nothing): its part of the data
    as `split`, and what a probe may know (`label`, `style`). `real` counts the shards' pictures. `digest` is the
    SHA-256 of the file, or of the digests of several, so that two lists of one name can be told apart. The first
    `distinct` prompts may stand there again.
    """

    name: str
    shards: tuple[Shard, ...]
    prompts: tuple[str, ...]
    about: tuple[dict[str, str], ...]
    real: int
    digest: str
    distinct: int

    @property
    def title(self) -> str:
        times = len(self.prompts) // self.distinct
        return f"{self.name} (sha256 {self.digest[:12]})" + (f", {times} pictures each" if times > 1 else "")

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(facts.get("split", "") for facts in self.about)


def read_prompts(source: str, limit: int | None = None, per_prompt: int = 1) -> PromptList:
    """The first `limit` prompts, `per_prompt` times over, of shards, of a text file (a prompt a line) or of `pocket`.

    Every sample of a shard is checked, its picture decoded. Raises ModelError with all that cannot be used.
    """
    found = locate(source)
    name = found.name if isinstance(found, Path) else _name(found)
    listed = _of_lines(found) if isinstance(found, Path) else _of_shards(found)
    if not listed.prompts:
        raise ModelError(f"{source}: holds no prompt; give shards of (picture, caption) or a text file with some")
    shards = () if isinstance(found, Path) else tuple(found)
    prompts, about = listed.prompts[:limit], listed.about[:limit]
    real = len(listed.prompts) if shards else 0
    every = tuple(prompts * per_prompt), tuple(about * per_prompt)
    return PromptList(name, shards, *every, real, listed.digest, distinct=len(prompts))


def real_pictures(shards: Sequence[Shard]) -> Iterator[Image.Image]:
    """Every picture in RGB, in the shards' order: read as training reads it."""
    faults = Faults()
    for shard in shards:
        for chunk in decoded(shard, faults, TOGETHER, read_rgb):
            yield from (picture for _, picture in chunk)
    _refuse(faults)


def locate(source: str) -> Path | list[Shard]:
    """The text file, or the shards, that `source` names. Raises ModelError."""
    path = Path(source)
    if path.is_file() and not path.name.endswith(SHARD_ENDINGS):
        return path
    if not path.exists() and not set("{:" + WILD) & set(source) and source not in SHIPPED:
        raise ModelError(f"{source}: no such file; `prompts` are webdataset shards, a text file or `{POCKET}`")
    return find_shards([EVALUATION if source == POCKET else source])


@dataclass(frozen=True)
class _Listed:
    prompts: list[str]
    about: list[dict[str, str]]
    digest: str


def _name(shards: Sequence[Shard]) -> str:
    first, *more = (shard.file for shard in shards)
    return f"{first} and {len(more)} more" if more else first


def _of_lines(path: Path) -> _Listed:
    data = path.read_bytes()
    try:
        prompts = [line.strip() for line in lines(as_text(data)) if line.strip()]
    except UnicodeDecodeError:
        ways = ", ".join(SHARD_ENDINGS)
        raise ModelError(f"{path}: is no text in UTF-8; a shard's name ends in one of {ways}") from None
    return _Listed(prompts, [{}] * len(prompts), sha256(data).hexdigest())


def _of_shards(shards: Sequence[Shard]) -> _Listed:
    faults, prompts, about = Faults(), list[str](), list[dict[str, str]]()
    for shard in shards:
        for chunk in decoded(shard, faults, TOGETHER, _check):
            prompts += [sample.caption for sample, _ in chunk]
            about += [_facts(shard, sample, faults) for sample, _ in chunk]
    _refuse(faults)
    digests = [digest(shard) for shard in shards]
    return _Listed(prompts, about, digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest())


def _check(data: bytes) -> None:
    read_rgb(data)


def _facts(shard: Shard, sample: Sample, faults: Faults) -> dict[str, str]:
    try:
        facts = json.loads(sample.about) if sample.about else None
    except (ValueError, RecursionError) as error:
        faults.add("unreadable .json", f"{shard.name}: {sample.key}", str(error))
        return {}
    return {name: value for name, value in facts.items() if isinstance(value, str)} if isinstance(facts, dict) else {}


def _refuse(faults: Faults) -> None:
    """Figures are of a whole set of pictures or of none."""
    if faults.total():
        raise ModelError(
            f"{faults.listed()}\nthese samples cannot be used ({faults.summary()}); mend them, or write the shards "
            "without them"
        )
