"""What each stage of a pipeline left: cost and quality of the same model, side by side, and as a plot.

Figures are found by column and contestant, whichever verb measured them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from asdm_cli.report.document import Cell, Column, Interval, Part, Point, Report, Scatter, Table
from asdm_cli.report.figures import text, value

NAME, WHAT, SPEEDUP = "name", "what", "speedup"
SPEEDS = {
    "UNet call": Column("unet_speedup", "UNet call: speed-up", "higher"),
    "whole image": Column("image_speedup", "image: speed-up", "higher"),
}
"""What a benchmark times -> the column of its ratios."""
COSTS = ("unet_params_m", "unet_macs_g", "peak_memory_mb")
NOT_QUALITY = {NAME, "steps", "macs_g", "split"}
RATIOS = [column.key for column in SPEEDS.values()]
TOLD = {"unet_params_m", *RATIOS, "kid", "clip_score", "psnr_db"}
"""Of what was measured, what one sentence has room for."""
QUALITY = ("kid", "fd", "clip_score", "psnr_db")
"""What is plotted over speed: the first of them that was measured."""

Row = dict[str, Cell | Interval]


@dataclass(frozen=True)
class Measured:
    """A report, and what each contestant of it is: two that say the same are one model drawn in one way."""

    report: Report
    origins: Mapping[str, str]


@dataclass
class _Joined:
    columns: dict[str, Column] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)

    def put(self, origin: str, name: str, column: Column, cell: Cell | Interval) -> None:
        """The first figure of a column stays."""
        self.columns.setdefault(column.key, column)
        self.rows.setdefault(origin, {NAME: name, "origin": origin}).setdefault(column.key, cell)


def path_parts(measured: Sequence[Measured], stages: Sequence[str] = ()) -> list[Part]:
    """The joined table, and the plot where both speed and quality were measured; nothing without figures.

    Models stand in the order of the `stages` that made them, what no stage made first.
    """
    joined = _Joined()
    for each in measured:
        if each.origins:
            _put_costs(joined, each)
            _put_speeds(joined, each)
            _put_quality(joined, each)
    if not joined.rows:
        return []
    heads = [Column(NAME, "model"), Column("origin", "from"), *_in_order(joined.columns)]
    joined.rows = dict(sorted(joined.rows.items(), key=lambda row: _place(row[0], stages)))
    table = Table("Cost and quality after each stage", heads, list(joined.rows.values()), _note(measured))
    return [table, *_plot(joined)]


def gain(parts: Sequence[Part]) -> str:
    """What the last of `path_parts`' models gained and lost beside the first, in a sentence; nothing where no stage
    made it: then the two need not have to do with each other."""
    table = next((part for part in parts if isinstance(part, Table)), None)
    if table is None or len(table.rows) < 2:
        return ""
    first, last = table.rows[0], table.rows[-1]
    if not str(last["origin"]).startswith("$"):
        return ""
    said = [_beside(column, first, last) for column in table.columns if column.key in TOLD]
    told = "; ".join(words for words in said if words)
    return f"{last[NAME]} beside {first[NAME]}: {told}." if told else ""


def _beside(column: Column, first: Row, last: Row) -> str:
    before, after = value(first.get(column.key)), value(last.get(column.key))
    if after is None:
        return ""
    against = f" against {text(before, column.digits)}" if before is not None and column.key not in RATIOS else ""
    return f"{' '.join(column.title.split())} {text(after, column.digits)}{against}"


def _place(origin: str, stages: Sequence[str]) -> int:
    """Which stage made it, counted from 1; 0 if none did."""
    maker = origin.removeprefix("$").partition("/")[0].partition(",")[0]
    return 1 + stages.index(maker) if origin.startswith("$") and maker in stages else 0


def _in_order(columns: Mapping[str, Column]) -> list[Column]:
    """Costs, then speeds, then quality, whichever stage came first."""
    first = [*COSTS, *(column.key for column in SPEEDS.values())]
    return [columns[key] for key in [*(k for k in first if k in columns), *(k for k in columns if k not in first)]]


def _rows(each: Measured, table: Table) -> list[tuple[str, str, Row]]:
    names = [(str(row[NAME]), row) for row in table.rows if NAME in row]
    return [(each.origins[name], name, row) for name, row in names if name in each.origins]


def _tables(report: Report, *keys: str) -> list[Table]:
    """The tables that have these columns."""
    tables = [part for part in report.parts if isinstance(part, Table)]
    return [table for table in tables if {NAME, *keys} <= {column.key for column in table.columns}]


def _put_costs(joined: _Joined, each: Measured) -> None:
    for table in _tables(each.report, COSTS[0]):
        columns = [column for column in table.columns if column.key in COSTS]
        for origin, name, row in _rows(each, table):
            for column in columns:
                joined.put(origin, name, column, row.get(column.key))


def _put_speeds(joined: _Joined, each: Measured) -> None:
    """Ratios stand in rows; who the others are compared with has none, and is 1."""
    for table in _tables(each.report, WHAT, SPEEDUP):
        for origin, name, row in _rows(each, table):
            joined.put(origin, name, SPEEDS[str(row[WHAT])], row[SPEEDUP])
        for what in {str(row[WHAT]): None for row in table.rows}:
            first = next(str(row["against"]) for row in table.rows if row[WHAT] == what)
            if first in each.origins:
                joined.put(each.origins[first], first, SPEEDS[what], 1.0)


def _put_quality(joined: _Joined, each: Measured) -> None:
    if each.report.verb != "eval":
        return
    table = _tables(each.report)[0]
    columns = [column for column in table.columns if column.key not in NOT_QUALITY]
    for origin, name, row in _rows(each, table):
        for column in columns:
            joined.put(origin, name, column, row.get(column.key))


def _plot(joined: _Joined) -> list[Part]:
    speed = next((c for c in reversed(SPEEDS.values()) if c.key in joined.columns), None)
    quality = next((joined.columns[key] for key in QUALITY if key in joined.columns), None)
    if speed is None or quality is None:
        return []
    points = [_point(row, speed, quality) for row in joined.rows.values()]
    drawn = [point for point in points if point is not None]
    better = f"{quality.better or 'lower'} is better"
    return [Scatter("Speed and quality", speed.title, f"{quality.title} ({better})", drawn)] if len(drawn) > 1 else []


def _point(row: Row, speed: Column, quality: Column) -> Point | None:
    x, y, cell = value(row.get(speed.key)), value(row.get(quality.key)), row.get(quality.key)
    if x is None or y is None:
        return None
    point = Point(x, y, str(row[NAME]))
    return replace(point, y_low=cell.low, y_high=cell.high) if isinstance(cell, Interval) else point


def _note(measured: Sequence[Measured]) -> str:
    titles = [each.report.title for each in measured if each.origins]
    return (
        f"From: {'; '.join(titles)}. Speed-ups are over the first model of each benchmark. How each figure was made "
        "stands with its own table below."
    )
