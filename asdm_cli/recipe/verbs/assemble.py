"""The recipe of `asdm assemble`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from asdm_cli.recipe.schema import READ, Distinct, Inner, Misplaced, Name, Out, Positive, Strict, Text
from asdm_cli.recipe.verbs.drawing import Metric, Pictures
from asdm_cli.recipe.words import did_you_mean

NONE = "none"
"""In the place of a donor: no mid block."""
BLOCK = re.compile(r"mid|(down|up)\.\d")
LAYER = re.compile(r"mid\.\d+|(down|up)\.\d+\.(\d+|sampler)")

Mid = Annotated[Text, BeforeValidator(lambda value: NONE if value is None else value)]
Bound = Annotated[float, Field(gt=0)]
Faults = list[tuple[Inner, str]]
ALL, LISTED = "combinations all", "combinations listed"
"""Tags of two words: pydantic puts them into the places of faults, where no key is called so."""


class Budget(Strict):
    """Upper bounds of what a combination may cost."""

    parameters_m: Bound | None = None
    """Millions of parameters of the UNet."""
    macs_g: Bound | None = None
    """Billions of multiply-accumulates of one UNet call on one picture, attention's matmuls included."""
    latency_ratio: Bound | None = None
    """Time of a UNet call as a share of the first donor's, measured side by side."""


class Combination(Strict):
    """A UNet of whole levels."""

    name: Name | None = None
    """What tables and plots call it, and its folder; made of the donors' first letters if left out."""
    levels: Annotated[list[Text], Field(min_length=1)]
    """The donor of each level, from fine to coarse."""
    mid: Mid
    """The donor of the mid block, or `none`."""


class Explore(Pictures):
    """Many combinations side by side: what they cost, and how near their pictures are to the first donor's."""

    combinations: Annotated[
        Annotated[Literal["all"], Tag(ALL)] | Annotated[list[Combination], Field(min_length=1), Tag(LISTED)],
        Discriminator(lambda value: ALL if isinstance(value, str) else LISTED),
    ]
    """A list, or `all`: every donor for every level and for the mid block, and no mid block."""
    budget: Budget | None = None
    """Combinations above one of its bounds are left out; `all` needs one."""
    limit: Positive = 16
    """Use the first so many prompts only."""
    metrics: Annotated[list[Metric], Field(min_length=1), Distinct] = ["psnr", "ssim"]
    """The first one ranks. psnr, ssim and perceptual compare with the first donor's pictures; kid, clip_score, ... as
    in `asdm eval`."""
    repeats: Positive = 10
    """Timed rounds; every round makes one UNet call with everybody, in turn."""
    warmups: Positive = 2
    """Rounds before the timed ones, not counted."""

    @model_validator(mode="after")
    def _bounded(self) -> Explore:
        if self.combinations == "all" and not (self.budget and self.budget.model_dump(exclude_none=True)):
            raise Misplaced([(("budget",), "must be given for 'all': parameters_m, macs_g or latency_ratio")])
        return self

    @model_validator(mode="after")
    def _distinctly_named(self) -> Explore:
        names = [each.name for each in self.combinations] if isinstance(self.combinations, list) else []
        repeats: Faults = [
            (("combinations", index, "name"), f"'{name}' is already entry {names.index(name)} of the list")
            for index, name in enumerate(names)
            if name is not None and names.index(name) < index
        ]
        if repeats:
            raise Misplaced(repeats)
        return self


class AssembleRecipe(Strict):
    """Put a UNet together from levels, blocks or layers of several."""

    verb: Literal["assemble"]
    """The command that this recipe is for."""
    donors: Annotated[dict[Name, Text], Field(min_length=1), READ]
    """Name -> model directory, run directory or `pocket`. The first also gives what is not the UNet."""
    levels: Annotated[list[Text | None], Field(min_length=1)] | None = None
    """The donor of each level (its down and its up block), from fine to coarse; null leaves a level to `blocks`."""
    mid: Text | None = None
    """The donor of the mid block, or `none` for a UNet without."""
    blocks: dict[Text, Text | Annotated[list[Text], Field(min_length=1)]] = {}
    """Block of the result -> donor, or a list of `donor/layer`, a resampler last: `[base/up.3.0, original/up.3.2]`."""
    ends: Text | None = None
    """The donor of conv_in, conv_norm_out and conv_out; that of level 0 if left out."""
    embeddings: Text | None = None
    """The donor of time_embedding and its like; that of the mid block if left out, or of the deepest level."""
    explore: Explore | None = None
    """Instead of `levels`, `mid` and `blocks`: many combinations, ranked."""
    out: Out
    """The run directory to write."""

    @model_validator(mode="before")
    @classmethod
    def _null_mid_is_none(cls, data: Any) -> Any:
        """`mid: null` says something; a `mid` that is left out does not."""
        says = isinstance(data, dict) and "mid" in data and data["mid"] is None
        return {**data, "mid": NONE} if says else data

    @field_validator("donors")
    @classmethod
    def _none_is_no_name(cls, donors: dict[str, str]) -> dict[str, str]:
        if NONE in donors:
            raise Misplaced([((NONE,), f"'{NONE}' stands for no donor; choose another name")])
        return donors

    @field_validator("levels", "mid", "blocks", "ends", "embeddings", "explore")
    @classmethod
    def _known(cls, value: Any, info: ValidationInfo) -> Any:
        """Gate 2. Silent where `donors` itself is wrong: that is told at its own place."""
        donors = list(info.data.get("donors", {}))
        read = READERS.get(str(info.field_name), _of_one)
        faults = [] if value is None or not donors else list(read(value, donors))
        if faults:
            raise Misplaced(faults)
        return value

    @model_validator(mode="after")
    def _covered_once(self) -> AssembleRecipe:
        faults = list(_beside_explore(self) if self.explore else _cover(self))
        if faults:
            raise Misplaced(faults)
        return self

    @property
    def depth(self) -> int:
        """How many levels the result has."""
        indices = [int(name.split(".")[1]) for name in self.blocks if name != "mid"]
        return max([len(self.levels or []), *(index + 1 for index in indices)])


def _of_mid(name: str, donors: list[str]) -> Iterator[tuple[Inner, str]]:
    return iter(()) if name == NONE else _of_one(name, donors)


def _of_one(name: str, donors: list[str]) -> Iterator[tuple[Inner, str]]:
    if name not in donors:
        yield (), f"no donor is called '{name}'{did_you_mean(name, donors)}; there are {', '.join(donors)}"


def _of_levels(levels: list[str | None], donors: list[str]) -> Iterator[tuple[Inner, str]]:
    for index, name in enumerate(levels):
        for _where, what in _of_one(name, donors) if name is not None else ():
            yield (index,), what


def _of_blocks(blocks: dict[str, str | list[str]], donors: list[str]) -> Iterator[tuple[Inner, str]]:
    for block, source in blocks.items():
        if not BLOCK.fullmatch(block):
            yield (block,), "is no block; blocks are down.0, down.1, ..., mid, up.0, up.1, ..."
        for where, text in enumerate(source) if isinstance(source, list) else [(None, source)]:
            place: Inner = (block,) if where is None else (block, where)
            donor, slash, address = text.partition("/")
            if where is not None and not (slash and LAYER.fullmatch(address)):
                yield place, f"must be donor/layer, as in {donors[0]}/up.0.1 or {donors[0]}/up.0.sampler, got '{text}'"
                continue
            yield from ((place, what) for _, what in _of_one(text if where is None else donor, donors))


def _of_explore(explore: Explore, donors: list[str]) -> Iterator[tuple[Inner, str]]:
    for index, each in enumerate(explore.combinations if explore.combinations != "all" else ()):
        assert isinstance(each, Combination)
        here: Inner = ("combinations", index)
        yield from (((*here, "levels", *inner), what) for inner, what in _of_levels([*each.levels], donors))
        yield from (((*here, "mid"), what) for _, what in _of_mid(each.mid, donors))


Reader = Callable[[Any, list[str]], Iterator[tuple[Inner, str]]]
READERS: dict[str, Reader] = {"levels": _of_levels, "mid": _of_mid, "blocks": _of_blocks, "explore": _of_explore}
"""Key -> what finds the unknown donors in its value; all other keys hold one donor's name."""


def _beside_explore(recipe: AssembleRecipe) -> Iterator[tuple[Inner, str]]:
    for key in ("levels", "mid", "blocks"):
        if getattr(recipe, key):
            yield (key,), "does not go with 'explore', which names its own combinations"


def _cover(recipe: AssembleRecipe) -> Iterator[tuple[Inner, str]]:
    """Blocks that nothing gives, and blocks that are given twice."""
    if recipe.levels is None and not recipe.blocks:
        yield ("levels",), "must be given, or 'blocks' or 'explore'"
        return
    last, levels = recipe.depth - 1, recipe.levels or []
    for level in range(recipe.depth):
        by_level = level < len(levels) and levels[level] is not None
        for block in (f"down.{level}", f"up.{last - level}"):
            if by_level and block in recipe.blocks:
                yield ("blocks", block), f"levels[{level}] gives it already; null there would leave it to 'blocks'"
            if not by_level and block not in recipe.blocks:
                place: Inner = ("levels", level) if level < len(levels) else ("blocks" if recipe.blocks else "levels",)
                yield place, f"nothing gives {block}; a UNet of {recipe.depth} levels has it"
    if recipe.mid is not None and "mid" in recipe.blocks:
        yield ("blocks", "mid"), "'mid' gives it already"
    if recipe.mid is None and "mid" not in recipe.blocks:
        yield ("mid",), f"must be given: a donor, or {NONE}"
