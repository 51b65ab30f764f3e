"""The report of `asdm assemble` with `explore`: one ranking, the front of speed and fidelity, the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asdm_cli.measure.explore_run import Candidate, Seconds
from asdm_cli.measure.front import Shot, front
from asdm_cli.measure.judging import Figures
from asdm_cli.profiling.latency import quartiles, speedup
from asdm_cli.records import Card
from asdm_cli.report.document import Cell, Column, Grid, Interval, Part, Point, Report, Scatter, Table
from asdm_cli.sampling.image_set import ImageSet

CARD = "figures"
MOST_COLUMNS = 6
"""Of the picture grid: more are too small to compare."""
FRONT = "front"

Row = dict[str, Cell | Interval]


@dataclass(frozen=True)
class LeftOut:
    """A combination above the budget; figures that were not needed to know it are None."""

    name: str
    why: str
    parameters: int
    macs: int | None = None
    ratio: Interval | None = None


@dataclass(frozen=True)
class Explored:
    """Everything that was found out; `first` is the first donor itself, which all are compared with."""

    first: Candidate
    candidates: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...]
    seconds: Seconds
    figures: Mapping[str, Figures]
    pictures: Mapping[str, ImageSet]
    prompts: Sequence[str]
    columns: tuple[Column, ...]
    """Of the figures; the first one ranks."""
    same: tuple[str, ...] = ()
    """Combinations that are the same weights as another one."""

    def score(self, name: str) -> Interval:
        return self.figures[name][self.columns[0].key]

    @property
    def sign(self) -> int:
        return -1 if self.columns[0].better == "lower" else 1

    @property
    def ranked(self) -> list[Candidate]:
        """Best figure first; of equal ones the fastest."""
        return sorted(
            self.candidates, key=lambda one: (-self.sign * self.score(one.name).value, self.ratio(one.name).value)
        )

    @property
    def on_front(self) -> set[str]:
        """Those than which no other one is both faster and better."""
        shots = {
            one.name: Shot(self.ratio(one.name).value, self.sign * self.score(one.name).value)
            for one in self.candidates
        }
        best = set(front(shots.values()))
        return {name for name, shot in shots.items() if shot in best}

    def ratio(self, name: str) -> Interval:
        """Of the UNet call's time over the first donor's."""
        return time_ratio(self.seconds, self.first.name, name)


def time_ratio(seconds: Seconds, first: str, this: str) -> Interval:
    """Median over rounds of this/first: below 1 is faster."""
    return speedup(seconds[this], seconds[first])


def explore_report(found: Explored, card: Card, grid: int) -> Report:
    parts: list[Part] = [_ranking(found), *left_out_table(found.left_out)]
    if found.candidates:
        parts.append(_scatter(found))
    parts.append(_grid(found, grid))
    title = f"Assembly: {len(found.candidates)} combinations beside {found.first.name}"
    return Report("assemble", title, _summary(found), parts, {CARD: card})


def cost_columns() -> list[Column]:
    return [Column("params_m", "parameters (M)", "lower"), Column("macs_g", "GMACs a call", "lower", 3)]


def _ranking(found: Explored) -> Table:
    shown = [
        Column("rank", "rank", digits=0),
        Column("name", "combination"),
        *cost_columns(),
        Column("latency_ms", "UNet call (ms)", "lower", 1),
        Column("latency_ratio", f"of {found.first.name}'s", "lower", 3),
        *found.columns,
        Column(FRONT, "on the front"),
    ]
    rows = [_row(found, found.first)]
    for rank, one in enumerate(found.ranked, 1):
        rows.append({"rank": rank, **_row(found, one), FRONT: "yes" if one.name in found.on_front else "no"})
    note = (
        f"Nothing was distilled: this is where distillation starts. Fidelity is to the pictures of {found.first.name} "
        "of the same prompts and seeds. No other combination is both faster and better than one on the front. "
        f"Levels from fine to coarse, then the mid block; donors: {', '.join(found.first.made.donors)}."
    )
    if found.same:
        note += f" {len(found.same)} more have the weights of another one and were not built, such as {found.same[0]}."
    return Table("Ranking", shown, rows, note, CARD)


def _row(found: Explored, one: Candidate) -> Row:
    return {
        "name": one.name,
        "params_m": one.parameters / 1e6,
        "macs_g": one.macs / 1e9,
        "latency_ms": quartiles(found.seconds[one.name], 1e3),
        "latency_ratio": found.ratio(one.name),
        **found.figures[one.name],
    }


def left_out_table(left_out: Sequence[LeftOut]) -> list[Table]:
    """No table where the budget leaves nothing out."""
    rows: list[Row] = [
        {
            "name": one.name,
            "params_m": one.parameters / 1e6,
            "macs_g": None if one.macs is None else one.macs / 1e9,
            "latency_ratio": one.ratio,
            "why": one.why,
        }
        for one in left_out
    ]
    shown = [Column("name", "combination"), *cost_columns(), Column("latency_ratio", "time of a call", digits=3)]
    return [Table("Above the budget", [*shown, Column("why", "because of")], rows)] if rows else []


def _scatter(found: Explored) -> Scatter:
    points = []
    for one in found.ranked:
        figure = found.score(one.name)
        speed = 1 / found.ratio(one.name).value
        series = FRONT if one.name in found.on_front else ""
        points.append(Point(speed, figure.value, one.name, series, figure.low, figure.high))
    title = found.columns[0].title
    better = "Higher" if found.sign > 0 else "Lower"
    note = f"{better} and further right is better; {found.first.name} itself has speed 1."
    return Scatter("Speed and fidelity", f"UNet call's speed-up over {found.first.name}", title, points, note)


def _grid(found: Explored, count: int) -> Grid:
    names = [found.first.name, *(one.name for one in found.ranked[:MOST_COLUMNS])]
    rows = list(found.prompts[:count])
    cells = [[found.pictures[name].path(index) for name in names] for index in range(len(rows))]
    note = "The best ones." if len(found.candidates) > MOST_COLUMNS else ""
    return Grid("The same prompts and seeds", names, rows, [[*row] for row in cells], note)


def _summary(found: Explored) -> str:
    counted = f"{len(found.prompts)} prompts. {len(found.candidates)} combinations ranked"
    counted += f", {len(found.left_out)} above the budget." if found.left_out else "."
    if not found.candidates:
        return f"{counted} Nothing is left to rank: raise the budget."
    best, column = found.ranked[0], found.columns[0]
    return (
        f"{counted} Best: {best.name} ({column.title}: {found.score(best.name).value:.{column.digits}f}); its UNet "
        f"call takes {found.ratio(best.name).value:.2f} of {found.first.name}'s time, its parameters are "
        f"{best.parameters / found.first.parameters - 1:+.1%}."
    )
