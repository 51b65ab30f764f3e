"""The strict parts that recipes are made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints


class Strict(BaseModel):
    """No unknown key, no silent conversion, no change after loading."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


Inner = tuple[str | int, ...]
"""The way from a value to something inside it."""


class Misplaced(ValueError):
    """Faults that a validator found below the value it was given, each with the way there from that value.

    pydantic would place them all at the value itself, which for a list is the whole list.
    """

    def __init__(self, faults: list[tuple[Inner, str]]):
        self.faults = faults
        super().__init__("; ".join(what for _, what in faults))


@dataclass(frozen=True)
class Reads:
    """Marks a key whose texts, or those inside its value, name what a verb reads: paths, URLs, or words for them."""


Item = TypeVar("Item")


def _distinct(items: list[Item]) -> list[Item]:
    """Refuse an entry that stands twice, at its second place."""
    return _refuse_repeats(items, items, ())


def _distinctly_named(items: list[Any]) -> list[Any]:
    """Refuse two entries of one name: tables and picture folders go by it."""
    return _refuse_repeats(items, [item.name for item in items], ("name",))


def _refuse_repeats(items: list[Item], marks: Sequence[object], inner: tuple[str, ...]) -> list[Item]:
    repeats: list[tuple[Inner, str]] = [
        ((index, *inner), f"'{mark}' is already entry {marks.index(mark)} of the list (counted from 0)")
        for index, mark in enumerate(marks)
        if marks.index(mark) < index
    ]
    if repeats:
        raise Misplaced(repeats)
    return items


def _file_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w .,+%@=()-]{0,63}", name) or name != name.strip():
        raise ValueError(
            "a name becomes a folder: at most 64 letters, digits, spaces and . , + - % @ = ( ), a letter or digit first"
        )
    return name


MOST = 2**31 - 1
"""Of whatever is counted: more is a slip of the hand, and overflows what counts."""
LARGEST_SEED = 2**63 - 1
LARGEST_SIDE = 1 << 14
"""Of a picture, in pixels: four times what anybody has drawn with such UNets."""

Integer = Annotated[int, Field(ge=-MOST, le=MOST)]
Whole = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(ge=1, le=MOST)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Guidance = Annotated[float, Field(ge=1, le=1000)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, StringConstraints(min_length=1)]
Name = Annotated[str, AfterValidator(_file_name)]
Patterns = Text | Annotated[list[Text], Field(min_length=1)]
Out = Text

READ = Reads()

Distinct = AfterValidator(_distinct)
DistinctlyNamed = AfterValidator(_distinctly_named)
