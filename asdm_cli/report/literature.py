"""Figures that others published, with their protocol: to stand beside measured ones, never among them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

import yaml

from asdm_cli.report.document import Cell, Column, Interval, Table

Cards = dict[str, dict[str, Cell | list[str]]]


def tables(names: Sequence[str]) -> tuple[list[Table], Cards]:
    """A table per name, and the cards that say how its figures were made."""
    held = {name: _held(name) for name in names}
    cards = {each["title"]: each["card"] for each in held.values()}
    return [_table(each) for each in held.values()], cards


def _held(name: str) -> dict[str, Any]:
    file = resources.files("asdm_cli.report") / "published" / f"{name}.yaml"
    held: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return held


def _table(held: dict[str, Any]) -> Table:
    columns = [Column(**column) for column in held["columns"]]
    keys = [column.key for column in columns]
    rows: list[dict[str, Cell | Interval]] = [dict(zip(keys, row, strict=True)) for row in held["rows"]]
    return Table(held["title"], columns, rows, held["note"], held["title"])
