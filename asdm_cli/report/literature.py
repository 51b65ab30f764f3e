"""Figures that others published, with their protocol: to stand beside measured ones, never among them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import Any

import yaml

from asdm_cli.records import Card


def published(names: Iterable[str]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Card]]:
    """Facts of a report: the rows of a table per name; and the cards that say how these figures were made."""
    rows, cards = {}, {}
    for name in names:
        file = resources.files("asdm_cli.report") / "published" / f"{name}.yaml"
        held = yaml.safe_load(file.read_text(encoding="utf-8"))
        rows[held["title"]] = [dict(zip(held["columns"], row, strict=True)) for row in held["rows"]]
        cards[held["title"]] = held["card"]
    return rows, cards
