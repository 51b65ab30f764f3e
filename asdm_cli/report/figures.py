"""Figures as people read them; the same in the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asdm_cli.report.document import Cell, Column, Interval, Table

NOTHING = "–"
FIGURE_SPACE, POINT_SPACE = "\u2007", "\u2008"
"""Blanks as wide as a digit and as a point or comma."""


@dataclass(frozen=True)
class Course:
    """Where a line begins and ends, and its lowest finite figure; None where there is none."""

    first: float | None
    last: float | None
    lowest: float | None


def text(cell: Cell | Interval, digits: int = 2) -> str:
    """`digits` behind the point, more for a figure that would read as zero; thousands apart."""
    if isinstance(cell, Interval):
        return text(cell.value, digits)
    if cell is None:
        return NOTHING
    if isinstance(cell, bool) or not isinstance(cell, (int, float)):
        return str(cell)
    if not math.isfinite(cell):
        return "n/a" if math.isnan(cell) else f"{cell:+}".replace("+inf", "∞").replace("-inf", "−∞")
    return _number(cell, digits).replace("-", "−")


def spread(cell: Cell | Interval, digits: int = 2) -> str:
    """`low–high` of an interval; nothing for other cells."""
    if not isinstance(cell, Interval):
        return ""
    low, high = text(cell.low, digits), text(cell.high, digits)
    return f"{low} to {high}" if "−" in low + high else f"{low}–{high}"


def spreads(table: Table, column: Column) -> list[str]:
    """The spread of every row, padded to one width, so that the figures before them stand below each other."""
    found = [spread(row.get(column.key), column.digits) for row in table.rows]
    digits = [sum(letter.isdigit() for letter in between) for between in found]
    points = [len(between) - count for between, count in zip(found, digits, strict=True)]
    return [
        between and FIGURE_SPACE * (max(digits) - wide) + POINT_SPACE * (max(points) - thin) + between
        for between, wide, thin in zip(found, digits, points, strict=True)
    ]


def digits_for(figures: Iterable[float]) -> int:
    """How many digits behind the point give the largest of the figures three significant ones."""
    largest = max((abs(figure) for figure in figures if math.isfinite(figure)), default=0.0)
    return max(0, 2 - math.floor(math.log10(largest))) if largest else 0


def short(figure: float) -> str:
    """Three significant digits, for labels in plots."""
    fixed = text(float(figure), digits_for([figure]))
    return fixed.rstrip("0").rstrip(".") if "." in fixed else fixed


def plain(cell: Cell) -> str:
    """A setting on a protocol card: as it was given, without digits that say nothing."""
    return f"{cell:.10g}" if isinstance(cell, float) and math.isfinite(cell) else text(cell)


def value(cell: Cell | Interval) -> float | None:
    """The finite number in a cell, if there is one."""
    if isinstance(cell, Interval):
        cell = cell.value
    if isinstance(cell, bool) or not isinstance(cell, (int, float)) or not math.isfinite(cell):
        return None
    return float(cell)


def course(points: Sequence[tuple[float, float]]) -> Course:
    heights = [y for _, y in points]
    lowest = min((y for y in heights if math.isfinite(y)), default=None)
    return Course(heights[0], heights[-1], lowest) if heights else Course(None, None, None)


def best_rows(table: Table, column: Column) -> set[int]:
    """Rows that read as the best of a column; never the total. None where there is nothing to choose from."""
    found = {index: value(row.get(column.key)) for index, row in enumerate(table.body)}
    numbers = {index: number for index, number in found.items() if number is not None}
    if not column.better or len(numbers) < 2:
        return set()
    best = (min if column.better == "lower" else max)(numbers.values())
    winners = {index for index, number in numbers.items() if text(number, column.digits) == text(best, column.digits)}
    return winners if len(winners) < len(numbers) else set()


def is_numeric(table: Table, column: Column) -> bool:
    """Whether a column holds figures, and so is set flush right."""
    cells = [row.get(column.key) for row in table.rows]
    return any(isinstance(cell, (int, float, Interval)) for cell in cells) and not any(
        isinstance(cell, str) for cell in cells
    )


def interval_kinds(table: Table, columns: Sequence[Column]) -> dict[str, str]:
    """What the small figures of each column are, by column key; columns without any are left out."""
    kinds = {
        column.key: {cell.kind for row in table.rows if isinstance(cell := row.get(column.key), Interval)}
        for column in columns
    }
    return {key: ", ".join(sorted(names)) for key, names in kinds.items() if names}


def _number(figure: int | float, digits: int) -> str:
    if isinstance(figure, int):
        return f"{figure:,}"
    if figure and abs(figure) < 0.5 * 10**-digits:
        return f"{figure:.2g}"
    return f"{figure:,.{digits}f}"
