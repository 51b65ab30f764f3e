"""What is drawn: the prompts of shards or of a text file, with the real images where there are any; or captions of
pictures, which are drawn from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from asdm_cli.console import note
from asdm_cli.data.images import UnreadableError, read_rgb
from asdm_cli.data.pack import images_in, samples
from asdm_cli.data.shards import (
    EVALUATION,
    IMAGES,
    MASK,
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
    read_samples,
)
from asdm_cli.errors import ModelError
from asdm_cli.models.directory import POCKET
from asdm_cli.recipe.redact import PIPE, redact
from asdm_cli.recipe.schema import local

SHARD_ENDINGS = (".tar", ".tar.gz", ".tgz")
TABLES = (".jsonl", ".json", ".csv", ".tsv", ".yaml", ".yml")
"""Endings of what has captions among other things, whose lines would be drawn as they are."""
BUNDLED = "bundled captions"
UNPAINTED = "black"
"""What a mask is where it is transparent."""
TOGETHER = 32
"""Images that are decoded at a time."""


@dataclass(frozen=True)
class Given:
    """The bytes of a picture to draw from, and of its mask (white where to paint), empty where there is none; `name` is
    where they stand, `size` their width and height."""

    name: str
    image: bytes
    mask: bytes
    size: tuple[int, int]

    def shown(self, masked: bool) -> Image.Image:
        """The picture; if `masked`, white where to paint."""
        picture = read_rgb(self.image)
        return Image.composite(Image.new("RGB", self.size, "white"), picture, self.area) if masked else picture

    @property
    def area(self) -> Image.Image:
        """The mask, in shades of grey."""
        return read_rgb(self.mask, UNPAINTED).convert("L")


@dataclass(frozen=True)
class PromptList:
    """`about[i]` is what the shard's .json says of prompt i, in words (empty if it says nothing): its part of the data
    as `split`, and what a probe may know (`label`, `style`). `real` counts the shards' images. `digest` is the
    SHA-256 of the file, or of the digests of several, so that two lists of one name can be told apart. The first
    `distinct` prompts may stand there again. `given[i]` is what prompt i is drawn from, where there are such pictures.
    """

    name: str
    shards: tuple[Shard, ...]
    prompts: tuple[str, ...]
    about: tuple[dict[str, str], ...]
    real: int
    digest: str
    distinct: int
    given: tuple[Given, ...] = ()

    @property
    def title(self) -> str:
        times = len(self.prompts) // self.distinct
        drawn = ", each drawn from its picture" if self.given else ""
        return f"{self.name} (sha256 {self.digest[:12]}){drawn}" + (f", {times} pictures each" if times > 1 else "")

    def last(self, count: int) -> PromptList:
        """The last so many; their title says which."""
        return self._part(max(0, len(self.prompts) - count), len(self.prompts))

    def halves(self) -> tuple[PromptList, PromptList]:
        """The first and the last ones, of two or more."""
        middle = len(self.prompts) // 2
        return self._part(0, middle), self._part(middle, len(self.prompts))

    def _part(self, begin: int, end: int) -> PromptList:
        name, kept = f"{self.name}, {begin} to {end - 1}", self.prompts[begin:end]
        about, given = self.about[begin:end], self.given[begin:end]
        return replace(self, name=name, prompts=kept, about=about, given=given, distinct=len(kept))


def read_prompts(source: str, limit: int | None = None, per_prompt: int = 1, inputs: str | None = None) -> PromptList:
    """The first `limit` prompts, `per_prompt` times over, of shards, of a text file (a prompt a line) or of `pocket`;
    or those of `inputs`, with what they are drawn from.

    Every sample of a shard is checked, its image decoded. Raises ModelError with all that cannot be used.
    """
    if inputs is not None:
        return _read_inputs(inputs, limit, per_prompt)
    return _listed(source, locate(source), limit, per_prompt, _samples)


def read_captions(source: str, per_prompt: int = 1, skip: bool = True, allow_pipes: bool = False) -> PromptList:
    """Those of a text file or of shards, whose pictures nobody looks at. Samples with faults are left out and told, or
    are an error."""
    return _listed(source, locate(source, allow_pipes), None, per_prompt, partial(_captions, skip=skip))


def _listed(
    source: str,
    found: Path | list[Shard],
    limit: int | None,
    per_prompt: int,
    held: Callable[[tuple[Shard, ...]], Sequence[tuple[str, dict[str, str]]]],
) -> PromptList:
    shards = () if isinstance(found, Path) else tuple(found)
    every: Sequence[tuple[str, dict[str, str]]]
    if isinstance(found, Path):
        name, data = found.name, found.read_bytes()
        every, marks = [(prompt, {}) for prompt in _prompts_of(found, data)], [sha256(data).hexdigest()]
    else:
        name = f"{BUNDLED} ({_name(shards)})" if source in SHIPPED else _name(shards)
        every = held(shards)
        marks = [_digest(shard) if shard.kind != "pipe" else _digest_of(every) for shard in shards]
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


def _name(shards: Sequence[Shard]) -> str:
    return shards[0].file + (f" and {len(shards) - 1} more" if shards[1:] else "")


def _read_inputs(source: str, limit: int | None, per_prompt: int) -> PromptList:
    """Of shards, or of a folder as `asdm pack` takes it."""
    faults, folder = Faults(), Path(source)
    shards = [] if folder.is_dir() else find_shards([source])
    name = _name(shards) if shards else folder.resolve().name
    held = [sample for shard in shards for sample in read_samples(shard, faults)] or _of_folder(folder, faults)
    given = [each for sample in held[:limit] if (each := _given(name, sample, faults))]
    _refuse(faults, "inputs: these samples", "leave them out")
    parts = [part for sample in held for part in (sample.picture, sample.mask, sample.caption.encode())]
    digest = sha256(b"".join(sha256(part).digest() for part in parts)).hexdigest()
    captions = tuple(sample.caption for sample in held[:limit])
    about: tuple[dict[str, str], ...] = ({},) * len(captions) * per_prompt
    return PromptList(name, (), captions * per_prompt, about, 0, digest, len(captions), tuple(given) * per_prompt)


def _of_folder(folder: Path, faults: Faults) -> list[Sample]:
    def part(sample: dict[str, Any], of: str) -> bytes:
        return next((sample[of + name] for name in IMAGES if of + name in sample), b"")

    return [
        Sample(
            json.loads(each["json"])["file_name"],
            part(each, ""),
            each["txt"].decode(),
            b"",
            0,
            0,
            part(each, f"{MASK}."),
        )
        for each in samples(folder, images_in(folder, faults), faults)
    ]


def _given(source: str, sample: Sample, faults: Faults) -> Given | None:
    place = f"{source}: {sample.key}"
    try:
        size, *others = [read_rgb(data).size for data in (sample.picture, sample.mask) if data]
    except UnreadableError as error:
        faults.add("corrupt image", place, error)
        return None
    if others not in ([], [size]):
        what = " x ".join(map(str, others[0]))
        faults.add("mask of another size", place, f"{what} pixels, and the picture has {size[0]} x {size[1]}")
        return None
    return Given(place, sample.picture, sample.mask, size)


def real_images(shards: Sequence[Shard]) -> Iterator[Image.Image]:
    """Every image in RGB, in the shards' order: read as training reads it."""
    faults = Faults()
    for shard in shards:
        for chunk in decoded(shard, faults, TOGETHER, read_rgb):
            yield from (image for _, image in chunk)
    _refuse(faults)


def locate(source: str, allow_pipes: bool | None = None) -> Path | list[Shard]:
    """The text file, or the shards, that `source` names; those of a command where pictures are not wanted, and then if
    allowed. Raises ModelError."""
    if source.startswith(PIPE):
        if allow_pipes is None:
            what = "prompts are of no command; write what it gives into a file, and name that"
            raise ModelError(f"{redact(source)}: {what}")
        return find_shards([source], allow_pipes)
    path = local(source)
    if path.is_file() and path.suffix.lower() in TABLES:
        what = "is a table, and a text file of `prompts` has one on each line"
        raise ModelError(f"{source}: {what}; write its captions into a .txt, or pack it with its pictures (asdm pack)")
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


_digest = lru_cache(digest)


@lru_cache(maxsize=4)
def _samples(shards: tuple[Shard, ...]) -> list[tuple[str, dict[str, str]]]:
    """Captions, and what the .json beside each says in words. Once, though a plan and its run ask."""
    faults, found = Faults(), list[tuple[str, dict[str, str]]]()
    for shard in shards:
        for chunk in decoded(shard, faults, TOGETHER, lambda data: read_rgb(data) and None):
            found += [(sample.caption, _facts(shard, sample, faults)) for sample, _ in chunk]
    _refuse(faults)
    return found


def _captions(shards: Sequence[Shard], skip: bool) -> list[tuple[str, dict[str, str]]]:
    faults = Faults()
    found = [(sample.caption, dict[str, str]()) for shard in shards for sample in read_samples(shard, faults)]
    if not skip:
        _refuse(faults)
    if faults.total():
        note(f"{_name(shards)}: faults were skipped, {faults.summary()}; for example {faults.examples[0]}")
    return found


def _digest_of(captions: Sequence[tuple[str, dict[str, str]]]) -> str:
    """Of what a command gave, which is not asked twice."""
    return sha256(json.dumps([caption for caption, _ in captions]).encode()).hexdigest()


def _facts(shard: Shard, sample: Sample, faults: Faults) -> dict[str, str]:
    try:
        facts = json.loads(sample.about) if sample.about else None
    except (ValueError, RecursionError) as error:
        faults.add("unreadable .json", f"{shard.name}: {sample.key}", str(error))
        return {}
    return {name: value for name, value in facts.items() if isinstance(value, str)} if isinstance(facts, dict) else {}


def _refuse(faults: Faults, what: str = "these samples", way: str = "write the shards without them") -> None:
    """Figures are of a whole set of images or of none."""
    if faults.total():
        raise ModelError(f"{faults.listed()}\n{what} cannot be used ({faults.summary()}); mend them, or {way}")
