"""The report as data: verbs fill it, `render` and `html` show it. Knows no verb, imports no torch.

Units stand in column keys (`latency_ms`, `params_m`, `macs_g`), so report.json explains itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from asdm_cli.records import Interval as Interval

Cell = str | int | float | None

LETTERS = {"c": "computed", "i": "inherited", "d": "dead"}
"""What happens to a node at one UNet call; a dead one is not computed, because nobody reads it."""


@dataclass(frozen=True)
class Column:
    """`key` names the cell in a row; `better` is 'lower', 'higher' or '' and lets readers mark the best."""

    key: str
    title: str
    better: str = ""
    digits: int = 2


@dataclass(frozen=True)
class Table:
    """`card` is a key into `Report.cards`: how these figures were made. With `total` the last row sums up the rest."""

    title: str
    columns: list[Column]
    rows: list[dict[str, Cell | Interval]]
    note: str = ""
    card: str = ""
    total: bool = False

    @property
    def body(self) -> list[dict[str, Cell | Interval]]:
        """The rows without the total."""
        return self.rows[:-1] if self.total else self.rows


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
class Curves:
    """Figures over time: one line per name, drawn without marks; `log` sets the heights on a logarithmic scale.

    The x of a line rise.
    """

    title: str
    x_title: str
    y_title: str
    lines: dict[str, list[tuple[float, float]]]
    log: bool = False
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


@dataclass(frozen=True)
class Timeline:
    """Something down the rows, the UNet calls of one generation across, counted from 0.

    `cells[row]` has one of `letters` for each call. The letters are those of nodes of a UNet, or others that stand for
    words. Raises ValueError for unknown letters and for rows of unlike length.
    """

    title: str
    rows: list[str]
    cells: list[str]
    note: str = ""
    letters: dict[str, str] = field(default_factory=lambda: dict(LETTERS))

    def __post_init__(self) -> None:
        if strange := set("".join(self.cells)) - set(self.letters):
            known = ", ".join(self.letters)
            raise ValueError(f"this timeline has the letters {known}, not {', '.join(sorted(strange))}")
        if len(self.rows) != len(self.cells) or len({len(row) for row in self.cells}) > 1:
            raise ValueError("a timeline has one letter per row and call")

    @property
    def calls(self) -> int:
        return len(self.cells[0]) if self.cells else 0

    @property
    def is_of_nodes(self) -> bool:
        """Whether its letters are those of nodes."""
        return self.letters == LETTERS


@dataclass(frozen=True)
class Section:
    """A heading in a long report: the parts behind it, up to the next one, belong to it. It can be folded.

    What stands before the first section belongs to the report itself. `verb` names what found these parts out, where
    that is another verb than the report's; of a `folded` section a page shows the heading until it is opened.
    """

    title: str
    note: str = ""
    verb: str = ""
    folded: bool = False


Part = Table | Scatter | Curves | Bars | Grid | Timeline | Section


@dataclass(frozen=True)
class Report:
    """Everything a run found out. `cards[name]` is a protocol card: how the figures that name it were made."""

    verb: str
    title: str
    summary: str
    parts: list[Part]
    cards: dict[str, dict[str, Cell | list[str]]] = field(default_factory=dict)
