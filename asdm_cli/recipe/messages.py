"""pydantic's errors in plain words, at the place of the recipe that they are about."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from asdm_cli.errors import Fault, RecipeError
from asdm_cli.recipe.reader import Mark, Source, Where
from asdm_cli.recipe.schema import Misplaced

WANTED = {
    "missing": "must be given",
    "string_type": "must be text",
    "string_unicode": "must be text, and this holds half a character",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "model_type": "must be a mapping of keys",
    "model_attributes_type": "must be a mapping of keys",
    "dict_type": "must be a mapping of keys",
    "finite_number": "must be a finite number",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must match {pattern}",
    "too_short": "needs {min_length} or more entries",
    "too_long": "must have at most {max_length} entries",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
}
"""pydantic's error type -> what we say; the braces are filled from the error's own context."""
SHAPES = {name for name in WANTED if name.endswith("_type")}
"""Errors about what kind of value it is: where several kinds are allowed, there is one for each."""
NO_VALUE = {"missing", "too_short", "too_long", "string_too_short"}
"""What is said without the value that was found."""
DISCRIMINATORS = ("kind", "mode", "preset")
"""Keys that say which of several mappings this is."""
LONGEST = 60
"""Of a value that is shown."""
MOST_TOLD = 50
"""Faults at once: looking for what a thousand unknown keys may have meant takes seconds, and nobody reads them."""

Kind = TypeVar("Kind")


def validated(kind: Any, data: Any, name: str) -> Any:
    """Data that does not come from a recipe, as a `kind`. Raises RecipeError with all faults; `name` is whose."""
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        source = Source(name, data if isinstance(data, dict) else {}, values={(): Mark()})  # there are no lines to name
        raise RecipeError(name, faults(error, source, kind)) from None


def faults(error: ValidationError, source: Source, recipe: Any) -> list[Fault]:
    return [source.fault(*each) for each in told(error, source.data, recipe, source.unread)]


def told(
    error: ValidationError, data: Any, recipe: Any, unread: Collection[Where] = ()
) -> Iterator[tuple[Where, str, bool]]:
    """The way to everything that is wrong, what it is, and whether it is the key; one for a place. Where a value fits
    none of several kinds, the kinds are joined by 'or'."""
    by_place: dict[Where, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        by_place.setdefault(_where(details, data), []).append(details)
    places = 0
    for where, group in by_place.items():
        inside = any(other[: len(where)] == where and other != where for other in by_place)
        only_kinds = all(details["type"] in {*SHAPES, "literal_error"} for details in group)
        if where in unread or (inside and only_kinds):
            continue  # told already, or just 'no text' of a list in which something is wrong
        places += 1
        if places > MOST_TOLD:
            yield where, "wrong too, as more is; mend the others first", False
            return
        yield from (each for each in _told(where, group, recipe) if each[0] not in unread)


RENAMED = {"carry": "cache", "coordinate": "axis", "text_once": "cache_text", "idle": "offload"}
"""Keys of 0.1 and their names since."""


def did_you_mean(word: object, known: list[str]) -> str:
    """` (did you mean 'x'?)`, or nothing."""
    if not isinstance(word, str):
        return ""
    near = [RENAMED[word]] if RENAMED.get(word) in known else get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def one_of(known: list[str]) -> str:
    """`one of 'a', 'b'`, or just `'a'` where there is no choice."""
    return ("one of " if len(known) > 1 else "") + ", ".join(f"'{word}'" for word in known)


def got(value: Any) -> str:
    """The value as it would stand in YAML, shortened."""
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def choice(known: list[str], value: Any) -> str:
    return f"must be {one_of(known)}, got {got(value)}{did_you_mean(value, known)}"


def _where(details: ErrorDetails, data: Any) -> Where:
    """pydantic's location without the names of union members, which stand in no recipe.

    Of a union that a key tells apart, that is the key's value, which may be a key as well: `mode: center`.
    """
    parts, where = list(details["loc"]), list[str | int]()
    missing = [parts.pop()] if details["type"] == "missing" else []
    for before, part in zip([None, *parts], parts, strict=False):
        tags = [data.get(key) for key in DISCRIMINATORS] if isinstance(data, dict) else []
        if part in tags and before != part:
            continue
        if (isinstance(data, dict) and part in data) or (isinstance(data, list) and part in range(len(data))):
            data = data[part]  # type: ignore[index]
            where.append(part)
    return (*where, *missing)


def _told(where: Where, group: list[ErrorDetails], recipe: Any) -> Iterator[tuple[Where, str, bool]]:
    details = next((each for each in group if each["type"] not in SHAPES), group[0])
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    reason = context.get("error")
    if isinstance(reason, Misplaced):
        yield from (((*where, *inner), what, False) for inner, what in reason.faults)
    elif kind == "value_error":
        yield where, str(reason), False
    elif kind == "extra_forbidden":
        word, known = str(where[-1]), [key for model in _models_at(recipe, where[:-1]) for key in model.model_fields]
        what = "does not go with the other keys here" if word in known else f"unknown key{did_you_mean(word, known)}"
        yield where, what, True
    elif kind.startswith("union_tag"):
        key = context["discriminator"].strip("'")
        known = re.findall(r"'([^']*)'", context.get("expected_tags", "")) or _tags(recipe, where, key)
        what = choice(known, value[key]) if key in value else f"must be given: {one_of(known)}"
        yield (*where, key), what, False
    elif any(each["type"] in SHAPES for each in group) and details["type"] in {*SHAPES, "literal_error"}:
        wants = dict.fromkeys(_wanted(each).removeprefix("must be ") for each in group)
        yield where, f"must be {' or '.join(wants)}, got {_shape(value, wants)}", False
    elif kind == "literal_error":
        yield where, choice(re.findall(r"'([^']*)'", context["expected"]), value), False
    else:
        yield where, _wanted(details) + ("" if kind in NO_VALUE else f", got {got(value)}"), False


def _wanted(details: ErrorDetails) -> str:
    if details["type"] not in WANTED:
        return details["msg"].replace("Input should be", "must be")
    limits = {key: f"{value:g}" if isinstance(value, float) else value for key, value in details.get("ctx", {}).items()}
    return WANTED[details["type"]].format_map(limits)


def _shape(value: Any, wants: dict[str, None]) -> str:
    """The value and, where quotes or their absence are the likely slip, that too."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, str) and "text" not in wants:
        return f"the text {got(value)}"
    quotable = "text" in wants and value is not None and len(str(value)) <= LONGEST
    return f'{got(value)} (in quotes it is text: "{value}")' if quotable else got(value)


def _models_at(recipe: Any, where: Where) -> list[type[BaseModel]]:
    """The classes that the mapping at `where` may be of."""
    models = list(_models_in(recipe))
    for part in where:
        if isinstance(part, str):
            annotations = [model.model_fields[part].annotation for model in models if part in model.model_fields]
            models = [inner for annotation in annotations for inner in _models_in(annotation)]
    return models


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _tags(recipe: Any, where: Where, key: str) -> list[str]:
    """What the key that tells the mappings at `where` apart may be."""
    models = [model for model in _models_at(recipe, where) if key in model.model_fields]
    return [tag for model in models for tag in get_args(model.model_fields[key].annotation)]
