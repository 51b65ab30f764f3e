"""Plots as tables, for those who cannot see them or want the figures."""

from __future__ import annotations

from collections.abc import Iterable

from asdm_cli.report.document import Bars, Cell, Column, Curves, Interval, Point, Scatter, Table, Timeline
from asdm_cli.report.figures import course, digits_for

Plot = Scatter | Curves | Bars | Timeline
Row = dict[str, Cell | Interval]
SPREAD = "low to high"


def tabulate(plot: Plot) -> Table:
    """A row per point, line, category or row of the plot. Of a line, where it begins and ends and its lowest figure."""
    if isinstance(plot, Scatter):
        return _points(plot)
    if isinstance(plot, Curves):
        return _ends(plot)
    return _categories(plot) if isinstance(plot, Bars) else _counts(plot)


def _points(scatter: Scatter) -> Table:
    columns = [
        Column("name", "point"),
        *([Column("series", "series")] if any(point.series for point in scatter.points) else []),
        Column("x", scatter.x_title, digits=digits_for(point.x for point in scatter.points)),
        Column("y", scatter.y_title, digits=digits_for(point.y for point in scatter.points)),
    ]
    rows: list[Row] = [
        {"name": point.label, "series": point.series, "x": point.x, "y": _height(point)} for point in scatter.points
    ]
    return Table(scatter.title, columns, rows)


def _height(point: Point) -> float | Interval:
    if point.y_low is None or point.y_high is None:
        return point.y
    return Interval(point.y, point.y_low, point.y_high, SPREAD)


def _ends(curves: Curves) -> Table:
    """The figures have the digits that the largest of their column needs."""
    rows: list[Row] = [{"name": name, **vars(course(points))} for name, points in curves.lines.items()]
    columns = [Column(key, key, digits=digits_for(_numbers(rows, key))) for key in ("first", "last", "lowest")]
    return Table(curves.title, [Column("name", "line"), *columns], rows)


def _numbers(rows: Iterable[Row], key: str) -> list[float]:
    return [cell for row in rows if isinstance(cell := row[key], (int, float))]


def _categories(bars: Bars) -> Table:
    """One column per series."""
    columns = [Column("category", "category"), *(Column(f"of {name}", f"{name}\n{bars.unit}") for name in bars.values)]
    rows: list[Row] = [
        {"category": category, **{f"of {name}": row[index] for name, row in bars.values.items()}}
        for index, category in enumerate(bars.categories)
    ]
    return Table(bars.title, columns, rows)


def _counts(timeline: Timeline) -> Table:
    """How many calls have which letter."""
    used = [letter for letter in timeline.letters if any(letter in cells for cells in timeline.cells)]
    columns = [Column("name", "row"), *(Column(letter, f"{timeline.letters[letter]}\nUNet calls") for letter in used)]
    rows: list[Row] = [
        {"name": name, **{letter: cells.count(letter) for letter in used}}
        for name, cells in zip(timeline.rows, timeline.cells, strict=True)
    ]
    return Table(timeline.title, columns, rows)
