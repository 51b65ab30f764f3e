"""What is drawn: the prompts of shards or of a text file, with the real images where there are any."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
"""Images that are decoded at a time."""


@dataclass(frozen=True)
class PromptList:
    """`about[i]` is what the shard's .json says of prompt i, in words (empty if it says nothing): its part of the data
    as `split`, and what a probe may know (`label`, `style`). `real` counts the shards' images. `digest` is the
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

    def last(self, count: int) -> PromptList:
        """The last so many; their title says which."""
        begin = max(0, len(self.prompts) - count)
        name = f"{self.name}, {begin} to {len(self.prompts) - 1}"
        kept, about = self.prompts[begin:], self.about[begin:]
        return replace(self, name=name, prompts=kept, about=about, distinct=len(kept))


def read_prompts(source: str, limit: int | None = None, per_prompt: int = 1) -> PromptList:
    """The first `limit` prompts, `per_prompt` times over, of shards, of a text file (a prompt a line) or of `pocket`.

    Every sample of a shard is checked, its image decoded. Raises ModelError with all that cannot be used.
    """
    found = locate(source)
    shards = () if isinstance(found, Path) else tuple(found)
    if isinstance(found, Path):
        name, data = found.name, found.read_bytes()
        every, marks = [(prompt, dict[str, str]()) for prompt in _prompts_of(found, data)], [sha256(data).hexdigest()]
    else:
        name = shards[0].file + (f" and {len(shards) - 1} more" if shards[1:] else "")
        every, marks = _samples(shards), [digest(shard) for shard in shards]
    if not every:
        raise ModelError(f"{source}: holds no prompt; give shards of (picture, caption) or a text file with some")
    wanted = every[:limit]
    return PromptList(
        name,
        shards,
        tuple(prompt for prompt, _ in wanted) * per_prompt,
        tuple(about for _, about in wanted) * per_prompt,
        real=len(every) if shards else 0,
        digest=marks[0] if len(marks) == 1 else sha256("".join(marks).encode()).hexdigest(),
        distinct=len(wanted),
    )


def real_images(shards: Sequence[Shard]) -> Iterator[Image.Image]:
    """Every image in RGB, in the shards' order: read as training reads it."""
    faults = Faults()
    for shard in shards:
        for chunk in decoded(shard, faults, TOGETHER, read_rgb):
            yield from (image for _, image in chunk)
    _refuse(faults)


def locate(source: str) -> Path | list[Shard]:
    """The text file, or the shards, that `source` names. Raises ModelError."""
    path = Path(source)
    if path.is_file() and not path.name.endswith(SHARD_ENDINGS):
        return path
    if not path.exists() and not set("{:" + WILD) & set(source) and source not in SHIPPED:
        raise ModelError(f"{source}: no such file; `prompts` are webdataset shards, a text file or `{POCKET}`")
    return find_shards([EVALUATION if source == POCKET else source])


def _prompts_of(path: Path, data: bytes) -> list[str]:
    try:
        return [line.strip() for line in lines(as_text(data)) if line.strip()]
    except UnicodeDecodeError:
        ways = ", ".join(SHARD_ENDINGS)
        raise ModelError(f"{path}: is no text in UTF-8; a shard's name ends in one of {ways}") from None


def _samples(shards: Sequence[Shard]) -> list[tuple[str, dict[str, str]]]:
    """Captions, and what the .json beside each says in words."""
    faults, found = Faults(), list[tuple[str, dict[str, str]]]()
    for shard in shards:
        for chunk in decoded(shard, faults, TOGETHER, lambda data: read_rgb(data) and None):
            found += [(sample.caption, _facts(shard, sample, faults)) for sample, _ in chunk]
    _refuse(faults)
    return found


def _facts(shard: Shard, sample: Sample, faults: Faults) -> dict[str, str]:
    try:
        facts = json.loads(sample.about) if sample.about else None
    except (ValueError, RecursionError) as error:
        faults.add("unreadable .json", f"{shard.name}: {sample.key}", str(error))
        return {}
    return {name: value for name, value in facts.items() if isinstance(value, str)} if isinstance(facts, dict) else {}


def _refuse(faults: Faults) -> None:
    """Figures are of a whole set of images or of none."""
    if faults.total():
        raise ModelError(
            f"{faults.listed()}\nthese samples cannot be used ({faults.summary()}); mend them, or write the shards "
            "without them"
        )
