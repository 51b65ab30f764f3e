"""The strict parts that recipes are made of."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from asdm_cli.recipe import LARGEST_SEED, MOST
from asdm_cli.recipe.redact import PIPE

Inner = tuple[str | int, ...]
"""The way from a value to something inside it."""
Misfit = tuple[Inner, str]
"""The way to something wrong, and what is wrong with it."""


class Misplaced(ValueError):
    """Faults that a validator found below the value it was given: pydantic would place them all at the value itself."""

    def __init__(self, faults: Iterable[Misfit]):
        self.faults = list(faults)
        super().__init__("; ".join(what for _, what in self.faults))


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

    def misfits(self) -> Iterable[Misfit]:
        """What does not fit together (gate 2); asked when every key is right for itself."""
        return ()

    def subjects(self) -> list[str]:
        """The models whose addresses the keys inside name; nothing where what stands around this says it."""
        return [found for key in ("model", "random") if (found := getattr(self, key, None))]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if found := list(self.misfits()):
            raise Misplaced(found)
        return self


Item = TypeVar("Item")


def _refuse_repeats(items: list[Item], marks: Sequence[object], inner: Inner = ()) -> list[Item]:
    """Refuse an entry that stands twice, at its second place."""
    repeats: list[Misfit] = [
        ((index, *inner), f"'{mark}' is already entry {marks.index(mark)} of the list (counted from 0)")
        for index, mark in enumerate(marks)
        if mark is not None and marks.index(mark) < index
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


LARGEST_SIDE = 1 << 14
"""Of a picture, in pixels: four times what anybody has drawn with such UNets."""

Integer = Annotated[int, Field(ge=-MOST, le=MOST)]
Whole = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(ge=1, le=MOST)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Above = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Guidance = Annotated[float, Field(ge=1, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, StringConstraints(min_length=1)]
Folder = Annotated[Text, AfterValidator(lambda text: os.path.expanduser(text))]  # noqa: PTH111 - raises nothing
"""That is written to."""
Name = Annotated[str, AfterValidator(_file_name)]
ADDRESSED = "addressed"
"""Marks a key that names addresses of a UNet."""
Patterns = Annotated[Text | Annotated[list[Text], Field(min_length=1)], ADDRESSED]

Distinct = AfterValidator(lambda items: _refuse_repeats(items, items))
DistinctlyNamed = AfterValidator(lambda items: _refuse_repeats(items, [each.name for each in items], ("name",)))
"""Tables and folders go by the name."""
READ = "read"
"""Marks a key whose texts, or those inside its value, name what a verb reads: paths, URLs, or words for them."""


def _keys(value: Strict, mark: str) -> Iterator[tuple[str, Any, bool]]:
    """Each key with its value, and whether it is marked so."""
    for name, field in type(value).model_fields.items():
        kinds = (field, *get_args(field.annotation))
        marks = (getattr(kind, "metadata", getattr(kind, "__metadata__", ())) for kind in kinds)
        yield name, getattr(value, name), any(mark in each for each in marks)


def referenced_paths(value: Any, marked: bool = False) -> Iterator[str]:
    """Every path, URL or word for one that stands in a recipe, in its order; the defaults too."""
    if isinstance(value, Strict):
        for _, inner, read in _keys(value, READ):
            yield from referenced_paths(inner, read)
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from referenced_paths(inner, marked)
    elif marked and isinstance(value, str):
        yield value


def addressed(value: Any, models: list[str], way: Inner = ()) -> Iterator[tuple[Inner, str, list[str]]]:
    """Every address pattern in a recipe: the way there, and the models (or shapes) of whose UNets it is one.

    Where a `remove` stands beside it, it is about what that leaves, which no model has.
    """
    if isinstance(value, Strict):
        models = value.subjects() or models
        for name, inner, marked in _keys(value, ADDRESSED):
            here = models if name == "remove" or not getattr(value, "remove", None) else []
            if marked and isinstance(inner, str):
                yield (*way, name), inner, here
            elif marked and not isinstance(inner, Strict):
                yield from (((*way, name, index), pattern, here) for index, pattern in enumerate(inner or ()))
            else:
                yield from addressed(inner, here, (*way, name))
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from addressed(inner, models, (*way, key))


LOCAL = "file://"


def places(text: str) -> list[Path]:
    """Files and folders behind one of these, which may be a path, a glob or several in braces; nothing for a URL or a
    command."""
    from braceexpand import braceexpand

    if text.startswith(PIPE) or "://" in text.removeprefix(LOCAL):
        return []
    try:
        names = list(braceexpand(text, escape=False)) if "{" in text and not local(text).is_file() else [text]
    except ValueError:
        names = [text]
    return [found for name in names for found in files_named(name)]


def files_named(text: str) -> list[Path]:
    """What a path or a pattern without braces names: what is there by this name, else what is like it."""
    path = local(text)
    like = glob.glob(str(path), recursive=True)  # noqa: PTH207 - absolute ones too
    return [path] if path.exists() else [Path(found) for found in sorted(like)]


def local(text: str) -> Path:
    """A path as it is on this machine."""
    return Path(os.path.expanduser(text.removeprefix(LOCAL)))  # noqa: PTH111 - that raises where there is no such user
