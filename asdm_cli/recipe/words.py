"""pydantic's errors in plain words, at the place of the recipe that they are about."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from asdm_cli.errors import Fault
from asdm_cli.recipe.schema import Misplaced
from asdm_cli.recipe.source import Source, Where

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

LONGEST = 60
"""Of a value that is shown."""
MOST = 50
"""Faults told at once: looking for what a thousand unknown keys may have meant takes seconds, and nobody reads them."""

_SHAPES = {"string_type", "int_type", "float_type", "bool_type", "list_type", "model_type", "dict_type"}
_KINDS = {*_SHAPES, "literal_error"}
"""Errors about what kind of value it is: where several kinds are allowed, there is one for each."""
_NO_VALUE = {"missing", "too_short", "too_long", "string_too_short"}


def faults(error: ValidationError, source: Source, recipe: type[BaseModel]) -> list[Fault]:
    """One fault per place. Where a value fits none of several kinds, the kinds are joined by 'or'."""
    by_place: dict[Where, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        by_place.setdefault(_where(details, source.data), []).append(details)
    told: list[Fault] = []
    for where, group in by_place.items():
        if where in source.unread or _deeper(where, group, by_place):
            continue
        if len(told) >= MOST:
            return [*told, source.fault(where, "wrong too, as more is; mend the others first")]
        told.extend(_faults_at(where, group, source, recipe))
    return told


def did_you_mean(word: str, known: list[str]) -> str:
    """` (did you mean 'x'?)`, or nothing."""
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def one_of(known: list[str]) -> str:
    """`one of 'a', 'b'`, or just `'a'` where there is no choice."""
    return ("one of " if len(known) > 1 else "") + ", ".join(f"'{word}'" for word in known)


def got(value: Any) -> str:
    """The value as it would stand in YAML, shortened."""
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _where(details: ErrorDetails, data: Any) -> Where:
    """pydantic's location without the names of union members, which stand in no recipe."""
    where: list[str | int] = []
    parts = list(details["loc"])
    if details["type"] == "missing":
        last = parts.pop()
    for part in parts:
        if isinstance(data, dict) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue
        where.append(part)
    return (*where, last) if details["type"] == "missing" else tuple(where)


def _deeper(where: Where, group: list[ErrorDetails], by_place: dict[Where, list[ErrorDetails]]) -> bool:
    """Whether these only say 'not text' of a list, or 'not none' of a mapping, in which something is wrong."""
    inside = any(other[: len(where)] == where and other != where for other in by_place)
    return inside and all(details["type"] in _KINDS for details in group)


def _faults_at(where: Where, group: list[ErrorDetails], source: Source, recipe: type[BaseModel]) -> Iterator[Fault]:
    details = next((each for each in group if each["type"] not in _SHAPES), group[0])
    reason = details.get("ctx", {}).get("error")
    if isinstance(reason, Misplaced):
        yield from (source.fault((*where, *inner), what) for inner, what in reason.faults)
    elif details["type"] == "extra_forbidden":
        word = str(where[-1])
        known = _keys_beside(recipe, where)
        what = "does not go with the other keys here" if word in known else f"unknown key{did_you_mean(word, known)}"
        yield source.fault(where, what, on_key=True)
    elif details["type"].startswith("union_tag"):
        yield _mark_fault(where, details, source)
    elif all(each["type"] in _KINDS for each in group) and any(each["type"] in _SHAPES for each in group):
        wants = dict.fromkeys(_wanted(each).removeprefix("must be ") for each in group)
        yield source.fault(where, f"must be {' or '.join(wants)}, got {_shape(details, wants)}")
    else:
        yield source.fault(where, _sentence(details))


def _mark_fault(where: Where, details: ErrorDetails, source: Source) -> Fault:
    """The key that says which of several mappings this is: `kind` of a loss."""
    key = details["ctx"]["discriminator"].strip("'")
    if details["type"] == "union_tag_not_found":
        return source.fault((*where, key), "must be given")
    return source.fault((*where, key), _choice(details["ctx"]["expected_tags"], details["input"][key]))


def _sentence(details: ErrorDetails) -> str:
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    if details["type"] == "literal_error":
        return _choice(details["ctx"]["expected"], details["input"])
    what = _wanted(details)
    return what if details["type"] in _NO_VALUE else f"{what}, got {got(details['input'])}"


def _choice(expected: str, value: Any) -> str:
    """`expected` as pydantic lists it: the words in quotes."""
    known = re.findall(r"'([^']*)'", expected)
    hint = did_you_mean(value, known) if isinstance(value, str) else ""
    return f"must be {one_of(known)}, got {got(value)}{hint}"


def _wanted(details: ErrorDetails) -> str:
    if details["type"] not in WANTED:
        return details["msg"].replace("Input should be", "must be")
    limits = {key: f"{value:g}" if isinstance(value, float) else value for key, value in details.get("ctx", {}).items()}
    return WANTED[details["type"]].format_map(limits)


def _shape(details: ErrorDetails, wants: dict[str, None]) -> str:
    """The value and, where quotes or their absence are the likely slip, that too."""
    value = details["input"]
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str) and "text" not in wants:
        return f"the text {got(value)}"
    quotable = "text" in wants and value is not None and len(str(value)) <= LONGEST
    return f'{got(value)} (in quotes it is text: "{value}")' if quotable else got(value)


def _keys_beside(recipe: type[BaseModel], where: Where) -> list[str]:
    """The keys that the mapping around `where` may have."""
    models: list[type[BaseModel]] = [recipe]
    for part in where[:-1]:
        if isinstance(part, str):
            annotations = [model.model_fields[part].annotation for model in models if part in model.model_fields]
            models = [inner for annotation in annotations for inner in _models_in(annotation)]
    return [key for model in models for key in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
