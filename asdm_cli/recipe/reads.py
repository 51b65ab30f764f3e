"""What a recipe reads: the values of the keys that are marked so."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asdm_cli.recipe.schema import Reads, Strict


def reads(recipe: Strict) -> Iterator[str]:
    """Every path, URL or word for one that stands in the recipe, in its order; the defaults too."""
    for name, field in type(recipe).model_fields.items():
        value = getattr(recipe, name)
        marked = any(isinstance(each, Reads) for each in field.metadata)
        yield from _texts(value) if marked else _inside(value)


def places(text: str) -> list[Path]:
    """Files and folders behind one of these, which may be a path, a glob or several in braces; nothing for a URL."""
    from braceexpand import braceexpand

    try:
        names = list(braceexpand(text, escape=False)) if "{" in text else [text]
    except ValueError:
        names = [text]
    return [Path(found) for name in names for found in sorted(glob.glob(name))]  # noqa: PTH207 - absolute ones too


def _inside(value: Any) -> Iterator[str]:
    if isinstance(value, Strict):
        yield from reads(value)
    for each in _members(value):
        yield from _inside(each)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for each in _members(value):
        yield from _texts(each)


def _members(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
