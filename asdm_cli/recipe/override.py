"""`--set key.path=value`: one value of a recipe replaced from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asdm_cli.errors import Fault, RecipeError
from asdm_cli.recipe.source import Mark, Source, Where, dotted, parse_value


@dataclass(frozen=True)
class Override:
    """`where` gets `value`; `option` is how the user gave it, for messages."""

    where: Where
    value: Any
    option: str = "--set"


def parse_override(text: str) -> Override:
    """`models.0.name=x` -> Override; the value is read as YAML. Raises RecipeError."""
    path, equals, value = text.partition("=")
    where = tuple(int(part) if part.isdecimal() else part for part in path.strip().split("."))
    if not equals or not all(str(part) for part in where) or not isinstance(where[0], str):
        raise RecipeError("--set", [Fault("write key.path=value, as in models.0.name=teacher", text)])
    try:
        return Override(where, parse_value(value))
    except ValueError as error:
        raise RecipeError("--set", [Fault(str(error), path)]) from None


def apply(source: Source, overrides: Sequence[Override]) -> None:
    """Put the overrides into `source` in order; one that leads nowhere becomes one of its faults."""
    for override in overrides:
        problem = _put(source.data, override.where, override.value)
        label = _label(override)
        if problem:
            source.faults.append(Fault(problem, label))
            continue
        _move_marks(source, override)


def _put(data: Any, where: Where, value: Any) -> str:
    """Set data[where] = value, making mappings on the way; returns what is wrong, or nothing."""
    for part in where[:-1]:
        if problem := _misstep(data, part):
            return problem
        data = data.setdefault(part, {}) if isinstance(data, dict) else data[part]
    if problem := _misstep(data, where[-1]):
        return problem
    data[where[-1]] = value
    return ""


def _misstep(data: Any, part: str | int) -> str:
    if isinstance(data, list):
        if isinstance(part, int) and part < len(data):
            return ""
        return f"the list has {len(data)} entries, counted from 0; there is no '{part}'"
    if isinstance(data, dict) and isinstance(part, str):
        return ""
    return f"leads nowhere: what should hold '{part}' is a plain value"


def _move_marks(source: Source, override: Override) -> None:
    """The place of the new value, and of parents made for it, is the option; what lay in the old value has none."""
    depth = len(override.where)
    mark = Mark(option=override.option)
    for marks in (source.keys, source.values):
        for where in [where for where in marks if where[:depth] == override.where]:
            del marks[where]
        for length in range(1, depth):
            marks.setdefault(override.where[:length], mark)
        marks[override.where] = mark
    source.unread.discard(override.where)


def _label(override: Override) -> str:
    return f"{override.option} {dotted(override.where)}"
