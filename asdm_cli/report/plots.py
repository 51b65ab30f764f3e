"""Views of a report that are drawn: quality over speed, curves, bars; and what the front of a series gains."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from asdm_cli.compare.pareto import DEEPCACHE, PEERS, ParetoFront, ParetoPoint, front, quality_at, time_at
from asdm_cli.records import Record, Report
from asdm_cli.report.metrics import QUALITY, SPEEDS, in_order, metric, number
from asdm_cli.report.tables import (
    Cell,
    Columns,
    Table,
    column,
    compared,
    is_reference,
    named,
    of_columns,
    of_rows,
    whole,
)

COLOURS, MOST_BARS = 10, 24
"""What a plot can tell apart, and show."""
LEVELS_DB = (25, 30, 35, 40, 45, 50, 55, 60)


@dataclass(frozen=True)
class Point:
    """A set-up in a plot. `front`: nothing of its series is both faster and better, or it is of none."""

    name: str
    series: str
    x: Record
    y: Record
    front: bool


@dataclass(frozen=True)
class Scatter:
    """`lines` joins the points on the front of each series, from left to right. Of a set-up alone there is none."""

    title: str
    x: str
    y: str
    points: list[Point]
    lines: dict[str, list[Point]]
    table: Table
    note: str


@dataclass(frozen=True)
class Curves:
    """Figures of one metric along a way, by the name of each line."""

    title: str
    metric: str
    lines: dict[str, list[Record]]
    table: Table


@dataclass(frozen=True)
class Bars:
    """`values[series]` has a figure for each category, or None."""

    title: str
    metric: str
    categories: list[str]
    values: dict[str, list[Record | None]]
    which: str = ""
    """Of more than can be drawn, in words."""


def scatters(report: Report) -> list[Scatter]:
    """Quality over speed, for the qualities that at least two set-ups have. The one with most points comes first."""
    columns = whole(report)
    plots = [_scatter(report, columns, key) for key in columns if metric(key).group == QUALITY and metric(key).rank < 5]
    return sorted([plot for plot in plots if plot], key=lambda plot: -len(plot.points))


def _scatter(report: Report, columns: Columns, key: str) -> Scatter | None:
    """Over the speed that most set-ups have; None where it tells none apart."""
    both = {speed: _shots(report, columns, speed, key) for speed in SPEEDS if speed in columns}
    both = {speed: shots for speed, shots in both.items() if len({shot.time for shot in shots.values()}) > 1}
    if not both:
        return None
    speed = max(both, key=lambda each: len(both[each]))
    shots, series = both[speed], _series(report, list(both[speed]), _line)
    best = {own: set(front(shots[name] for name in names)) for own, names in series.items()}
    kept = {own: [name for name in names if not own or shots[name] in best[own]] for own, names in series.items()}
    points = {
        name: Point(
            name,
            _line(report, name),
            columns[speed][name],
            columns[key][name],
            any(name in names for names in kept.values()),
        )
        for name in sorted(shots, key=lambda name: columns[speed][name].value)
    }
    first, title = (
        named(report)[0],
        f"{metric(key).title} and {'speed' if metric(speed).unit in ('', 'ms') else 'cost'}",
    )
    lines = {
        own: [point for name, point in points.items() if name in names]
        for own, names in kept.items()
        if own and {*series[own]} - {first} != {own}  # what has its series to itself is a point
    }
    figures = [column(at, [columns[at][name] for name in shots]) for at in (speed, key)]
    title = title[:1].upper() + title[1:]
    names = [[name, *([_line(report, name)] if lines else [])] for name in shots]
    table = of_columns(title, ["set-up", "series"][: len(names[0])], names, figures)
    better = "Lower" if metric(key).better == "lower" else "Higher"
    side = "right" if metric(speed).better == "higher" else "left"
    joined = " Of each series a line joins what none of it beats in both." if lines else ""
    note = f"{better} and further {side} is better.{joined}"
    x = metric(speed).label + (f" over {first}" if metric(speed).alone else "")
    return Scatter(title, x, metric(key).label, list(points.values()), lines, table, note)


def _shots(report: Report, columns: Columns, speed: str, key: str) -> dict[str, ParetoPoint]:
    """Of all that compete and have both figures: less time and more quality are better, whichever way these go.
    Speed-ups are over the first set-up."""
    found, first = {}, (named(report) or [""])[0]
    for name in compared(report):
        x, y = columns[speed].get(name), columns[key].get(name)
        if is_reference(report, name) or not x or not y or x.against not in ("", first):
            continue
        if x.value and math.isfinite(x.value) and math.isfinite(y.value):
            time = 1 / x.value if metric(speed).better == "higher" else x.value
            found[name] = ParetoPoint(time, -y.value if metric(key).better == "lower" else y.value)
    return found


def _own(report: Report, name: str) -> str:
    return str(report.setups.get(name, {}).get("series", ""))


def _line(report: Report, name: str) -> str:
    """Of many combinations, a line for each of what was varied first."""
    return next((str(each) for each in report.setups.get(name, {}).get("varied", {}).values()), _own(report, name))


def _series(report: Report, names: Sequence[str], of: Callable[[Report, str], str] = _own) -> dict[str, list[str]]:
    """The members of every series, or line; the first set-up of all belongs to each of them."""
    first = named(report)[0]
    own = dict.fromkeys(of(report, name) for name in names if name != first)
    return {each: [name for name in names if name == first or of(report, name) == each] for each in own}


def comparisons(report: Report) -> list[Table]:
    """What each series takes for equal fidelity, and what ours reaches in the time of the DeepCache package."""
    columns, found = whole(report), list[Table]()
    speed = next((each for each in SPEEDS if each in columns and metric(each).alone), None)
    for key in [each for each in ("psnr_db", "psnr_converged_db") if each in columns and speed]:
        shots = _shots(report, columns, speed or "", key)
        members = {own: names for own, names in _series(report, list(shots)).items() if own}
        fronts = {own: front(shots[name] for name in names) for own, names in members.items()}
        fronts = dict(sorted(fronts.items(), key=lambda item: item[0] in PEERS))
        if len(fronts) > 1:
            found += [_equal_fidelity(metric(key).label, fronts), *_equal_speed(metric(key).label, fronts)]
    return [table for table in found if table.rows]


def _equal_fidelity(what: str, fronts: Mapping[str, ParetoFront]) -> Table:
    """A row for each level that the first series reaches, and that is above the fastest of somebody; above 1 in the
    last column says that it is the fastest."""
    ours, *_ = fronts
    rows, lowest = [], min(line[0].quality for line in fronts.values() if line)
    for level in [each for each in LEVELS_DB if each > lowest]:
        times = {own: time_at(line, level) for own, line in fronts.items()}
        mine, rivals = times[ours], [time for own, time in times.items() if own != ours and time is not None]
        if mine is not None:
            told = {f"{own}: time, %": _told(time and 100 * time, 1) for own, time in times.items()}
            gain = _told(min(rivals) / mine if rivals else None, 2)
            rows.append({what: level, **told, f"{ours}: times as fast as the best of the others": gain})
    note = (
        "Per cent of the first set-up's time, read off the fronts by straight lines: its fastest where that is better, "
        "nothing where a series does not reach."
    )
    return of_rows(f"At equal fidelity: {what}", rows, note)


def _equal_speed(what: str, fronts: Mapping[str, ParetoFront]) -> list[Table]:
    """A row for each point of the package's front."""
    ours, rows = next(iter(fronts)), []
    for shot in fronts.get(DEEPCACHE, ()) if ours != DEEPCACHE else ():
        mine = quality_at(fronts[ours], shot.time)
        told = {DEEPCACHE: _told(shot.quality, 1), ours: _told(mine, 1), "gain": _told(mine and mine - shot.quality, 1)}
        rows.append({"time, %": _told(100 * shot.time, 1), **told})
    return [of_rows(f"At DeepCache's speed: {what}", rows)]


def _told(value: float | None, digits: int) -> Cell | None:
    return None if value is None else Cell(number(value, digits), sort=value)


def curves(report: Report) -> list[Curves]:
    """Figures along a way: the set-ups as lines, one plot for each part; of one set-up, its parts as lines."""
    found: dict[tuple[str, str], dict[str, list[Record]]] = {}
    along = sorted((each for each in report.records if each.at is not None), key=lambda each: each.at or 0.0)
    setups = {key: {each.setup for each in along if each.metric == key} for key in {each.metric for each in along}}
    for each in along:
        _, _, part = each.of.partition("/")
        plot, line = ("", part or each.setup) if len(setups[each.metric]) == 1 else (part, each.setup)
        found.setdefault((each.metric, plot), {}).setdefault(line, []).append(each)
    ordered = sorted(found, key=lambda key: (not metric(key[0]).is_loss, metric(key[0]).rank))
    return [_curves(key, f"{part} {metric(key).title}".strip(), found[key, part]) for key, part in ordered]


def _curves(key: str, title: str, lines: dict[str, list[Record]]) -> Curves:
    finite = [[each for each in line if math.isfinite(each.value)] for line in lines.values()]
    lowest = [min(line, key=lambda each: each.value, default=None) for line in finite]
    ends = [[line[end] for line in lines.values()] for end in (0, -1)]
    figures = [column(key, ends[0], "first"), column(key, ends[1], "last"), column(key, lowest, "lowest")]
    title = title[:1].upper() + title[1:]
    return Curves(title, key, lines, of_columns(title, ["line"], [[name] for name in lines], figures))


def _most(names: Collection[str], records: Iterable[Record], key: str) -> tuple[Collection[str], str]:
    """As many parts as can be drawn, by what the first set-up has of them, and in words which these are."""
    if len(names) <= MOST_BARS:
        return names, ""
    sign = 1 if metric(key).better == "lower" else -1
    worth = {each.of.partition("/")[2]: sign * each.value for each in reversed([*records])}
    ranked = sorted(worth, key=lambda name: (not math.isfinite(worth[name]), worth[name]))
    return ranked[:MOST_BARS], f", the {MOST_BARS} {'least' if sign > 0 else 'largest'} of {len(names)}"


def bars(title: str, records: Sequence[Record]) -> Bars | None:
    """Of parts, the figure that matters most, of many those in which it does; None where there is one part only, or
    more set-ups than colours."""
    key = min(in_order([each.metric for each in records]), key=lambda key: metric(key).rank)
    found = {(each.setup, each.of.partition("/")[2]): each for each in records if each.metric == key}
    names = list(dict.fromkeys(part for _, part in found))
    kept, which = _most(names, found.values(), key)
    names = [name for name in names if name in kept]
    values = {setup: [found.get((setup, name)) for name in names] for setup, _ in found}
    return Bars(title, key, names, values, which) if len(names) > 1 and len(values) <= COLOURS else None
