"""The report as data: verbs fill it, `render` and `html` show it. Knows no verb, imports no torch.

Units stand in column keys (`latency_ms`, `params_m`, `macs_g`), so report.json explains itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

Cell = str | int | float | None


@dataclass(frozen=True)
class Interval:
    """A figure with its spread: `kind` says what low and high are ('quartiles', '95 % bootstrap')."""

    value: float
    low: float
    high: float
    kind: str


@dataclass(frozen=True)
class Column:
    """`key` names the cell in a row; `better` is 'lower', 'higher' or '' and lets readers mark the best."""

    key: str
    title: str
    better: str = ""
    digits: int = 2


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[Column]
    rows: list[dict[str, Cell | Interval]]
    note: str = ""
    card: str = ""  # key into Report.cards: how these figures were made


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    label: str
    series: str = ""
    y_low: float | None = None
    y_high: float | None = None


@dataclass(frozen=True)
class Scatter:
    """Speed against quality and its like; points of one named series are joined by a line in order of x."""

    title: str
    x_title: str
    y_title: str
    points: list[Point]
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """One bar group per category, one bar per series; values[series][category]."""

    title: str
    unit: str
    categories: list[str]
    values: dict[str, list[float]]
    note: str = ""


@dataclass(frozen=True)
class Grid:
    """The same prompts and seeds down the rows, one contestant per column.

    `pictures[row][column]` are PNG files, or None where there is none; a report that is read back has them
    relative to its run directory.
    """

    title: str
    columns: list[str]
    rows: list[str]
    pictures: list[list[Path | None]]
    note: str = ""


Part = Table | Scatter | Bars | Grid


@dataclass(frozen=True)
class Report:
    """Everything a run found out. `cards[name]` is a protocol card: how the figures that name it were made."""

    verb: str
    title: str
    summary: str
    parts: list[Part]
    cards: dict[str, dict[str, Cell | list[str]]] = field(default_factory=dict)
