"""Views of a report: tables, what plots draw, and the result in words. No rendering, no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from asdm_cli.compare.pareto import DEEPCACHE, FEWER_STEPS, Front, Shot, front, quality_at, time_at
from asdm_cli.records import Record, Report, Timeline
from asdm_cli.report import metrics
from asdm_cli.report.metrics import QUALITY, SPEEDS, in_order, metric, number, shown

MOST = 7
"""Columns of figures in the main table; a terminal of 80 letters has room for them."""
TOLD = 4
"""Set-ups that the words under the title tell of."""
LEVELS_DB = (25, 30, 35, 40, 45, 50, 55, 60)
PARTS = {
    "block": "UNet by block",
    "batch": "Images at once",
    "split": "The parts of the data apart",
    "component": "Components",
    "call": "UNet calls",
    "removed": "What was removed",
    "loss": "Where the losses ended",
    "expert": "How experts are used",
}
"""What the parts of a kind are called together."""
WHO = ("contestants", "setups")
"""Lines of a card that say who took part, not how figures were made."""

Columns = Mapping[str, Mapping[str, Record]]
"""Metric -> set-up -> its figure."""


@dataclass(frozen=True)
class Cell:
    """`spread` stands behind the text, and rows are sorted by `sort`."""

    text: str
    spread: str = ""
    best: bool = False
    sort: float | str = ""


@dataclass(frozen=True)
class Column:
    """`interval` says what the spreads of its figures are."""

    title: str
    unit: str = ""
    number: bool = False
    interval: str = ""


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Point:
    """A set-up in a plot. `front`: nothing of its series is both faster and better."""

    name: str
    series: str
    x: Record
    y: Record
    front: bool


@dataclass(frozen=True)
class Scatter:
    """`lines` joins the points on the front of each series by their names, from left to right."""

    title: str
    x: str
    y: str
    points: list[Point]
    lines: dict[str, list[str]]
    table: Table
    note: str = ""


@dataclass(frozen=True)
class Curves:
    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float]]]
    log: bool
    table: Table


@dataclass(frozen=True)
class Bars:
    """`values[series][category]`; None where there is no figure."""

    title: str
    unit: str
    categories: list[str]
    values: dict[str, list[float | None]]
    texts: dict[str, list[str]]


@dataclass(frozen=True)
class Grid:
    """The same prompts across, one set-up a row; None where there is no picture."""

    prompts: list[str]
    rows: dict[str, list[Path | None]] = field(default_factory=dict)


class _Figures(NamedTuple):
    """A column of figures, and the places that are marked as the best."""

    head: Column
    records: Sequence[Record | None]
    best: Collection[int] = ()


def main(report: Report, most: int = MOST) -> Table | None:
    """Set-ups down, the figures that matter most across; references last. None where no set-up has figures."""
    columns = whole(report)
    keys = _leading(columns, _ranked(report, columns), most)
    return _of_setups(report, "Figures", {key: columns[key] for key in keys}) if keys else None


def everything(report: Report) -> list[Table]:
    """All figures of whole set-ups, where the main table has not all of them."""
    columns = whole(report)
    return [_of_setups(report, "All figures", columns)] if len(columns) > MOST else []


def parts(report: Report) -> list[tuple[Table, Bars | None]]:
    """A table for every kind of part, and bars of the figure that matters most in it."""
    inside = [each for each in report.records if each.of and each.at is None]
    kinds = dict.fromkeys(each.of.partition("/")[0] for each in inside)
    return [_of_parts(kind, [each for each in inside if each.of.partition("/")[0] == kind]) for kind in kinds]


def curves(report: Report) -> list[Curves]:
    """Figures along a way: the set-ups as lines, one plot for each part; of one set-up, its parts as lines."""
    found: dict[tuple[str, str], dict[str, list[Record]]] = {}
    along = [each for each in report.records if each.at is not None]
    for each in along:
        alone = len({other.setup for other in along if other.metric == each.metric}) == 1
        kind, _, part = each.of.partition("/")
        plot, line = (kind, part or each.setup) if alone else (each.of, each.setup)
        found.setdefault((each.metric, plot), {}).setdefault(line, []).append(each)
    return [_curves(key, plot, lines) for (key, plot), lines in found.items()]


def scatters(report: Report) -> list[Scatter]:
    """Quality over speed, for every quality that at least two set-ups have. The one with most points comes first."""
    columns = whole(report)
    found = [plot for key in columns if metric(key).group == QUALITY for plot in _scatter(report, columns, key)]
    return sorted(found, key=lambda plot: -len(plot.points))


def comparisons(report: Report) -> list[Table]:
    """What each series takes for equal fidelity, and what others reach in the time of the DeepCache package."""
    found = []
    for key in ("psnr_db", "psnr_converged_db"):
        fronts = _fronts(report, key)
        if len(fronts) > 1:
            found += [*_equal_quality(metric(key).label, fronts), *_equal_speed(metric(key).label, fronts)]
    return found


def facts(report: Report) -> list[Table]:
    """What is no figure. Texts and numbers stand together; whatever has rows of its own is a table."""
    plain = {key: value for key, value in report.facts.items() if not _is_rows(value) and not isinstance(value, dict)}
    plain.pop("title", None)
    tables = [_pairs("Facts", plain)] if plain else []
    for key, value in report.facts.items():
        if isinstance(value, dict):
            tables.append(_pairs(key, value))
        elif _is_rows(value):
            heads = list(dict.fromkeys(head for row in value for head in row))
            rows = [[_plain(row.get(head)) for head in heads] for row in value]
            are_numbers = [all(not isinstance(row.get(head), str) for row in value) for head in heads]
            tables.append(
                Table(key, [Column(head, number=is_one) for head, is_one in zip(heads, are_numbers, strict=True)], rows)
            )
    return tables


def cards(report: Report) -> list[Table]:
    """How the figures were made."""
    return [_pairs(name, card) for name, card in report.protocols.items()]


def timeline_table(timeline: Timeline) -> Table:
    """How many calls of each row have which letter."""
    used = [letter for letter in timeline.letters if any(letter in row for row in timeline.rows.values())]
    heads = [Column("row"), *(Column(timeline.letters[letter], "UNet calls", number=True) for letter in used)]
    counts = {name: Counter(row) for name, row in timeline.rows.items()}
    rows = [[_plain(name), *(_plain(counts[name][letter]) for letter in used)] for name in timeline.rows]
    return Table(timeline.title, heads, rows)


def images(report: Report, folder: Path) -> Grid | None:
    """Pictures found from `folder`, the run directory; set-ups before references."""
    if report.images is None or not report.images.prompts:
        return None
    names = sorted(report.images.folders, key=lambda name: bool(report.setups.get(name, {}).get("reference")))
    files = {
        name: [folder / report.images.folders[name] / f"{place:06d}.png" for place in _places(report)] for name in names
    }
    return Grid(
        report.images.prompts, {name: [file if file.exists() else None for file in row] for name, row in files.items()}
    )


def _places(report: Report) -> range:
    return range(len(report.images.prompts) if report.images else 0)


def headline(report: Report) -> tuple[str, str]:
    """The result in words: of the set-up that most is known of, and below it of the next ones."""
    told = {name: _told(report, name) for name in sorted(_others(report), key=lambda name: _is_peer(report, name))}
    told = {name: words + _learned(report, name) for name, words in told.items() if words}
    if told:
        hero = max(told, key=lambda name: (not _is_peer(report, name), len(told[name])))
        more = [f"{name}: {', '.join(words)}." for name, words in told.items() if name != hero][:TOLD]
        return f"{hero}: {', '.join(told[hero])}", "\n".join(more)
    alone = {name: _alone(report, name) for name in _named(report)}
    known = [f"{name}: {', '.join(words)}" for name, words in alone.items() if words]
    title, *more = known[: TOLD + 1] or [", ".join([f"asdm {report.verb}", *_named(report)[:TOLD]])]
    return title, "\n".join(f"{each}." for each in more)


def _named(report: Report) -> list[str]:
    """Set-ups with references last; whoever has figures is one, even if nothing is said of it."""
    names = dict.fromkeys([*report.setups, *(each.setup for each in report.records if each.setup)])
    return sorted(names, key=lambda name: _is_reference(report, name))


def _is_reference(report: Report, name: str) -> bool:
    return bool(report.setups.get(name, {}).get("reference"))


def _is_peer(report: Report, name: str) -> bool:
    return report.setups.get(name, {}).get("series") in (FEWER_STEPS, DEEPCACHE)


def _others(report: Report) -> list[str]:
    return [name for name in _named(report)[1:] if not _is_reference(report, name)]


def whole(report: Report) -> dict[str, dict[str, Record]]:
    """Figures of whole set-ups. One beside itself has the figure that needs no measuring."""
    found: dict[str, dict[str, list[Record]]] = {}
    for each in report.records:
        if not each.of and each.at is None:
            found.setdefault(each.metric, {}).setdefault(each.setup, []).append(each)
    columns = {key: {name: _over_seeds(rows) for name, rows in found[key].items()} for key in in_order(list(found))}
    for key, column in columns.items():
        alone = metric(key).alone
        for against in {each.against for each in column.values()} - {"", *column} if alone is not None else ():
            column[against] = Record(
                against, key, alone or 0.0, against=against, protocol=next(iter(column.values())).protocol
            )
    return columns


def _over_seeds(records: Sequence[Record]) -> Record:
    """Several seeds are shown as their mean and how far they lie apart."""
    if len({each.seed for each in records}) == 1:
        return records[0]
    values = [each.value for each in records]
    return replace(
        records[0],
        value=sum(values) / len(values),
        low=min(values),
        high=max(values),
        interval="seeds",
        n=len(values),
        seed=None,
    )


def _ranked(report: Report, columns: Columns) -> list[str]:
    return [name for name in _named(report) if any(name in column for column in columns.values())]


def _leading(columns: Columns, names: Sequence[str], most: int) -> list[str]:
    """The metrics that matter most, in the table's order; what is the same for all matters least."""

    def rank(key: str) -> tuple[bool, int]:
        same = len(names) > 1 and len({shown(each) for each in columns[key].values()}) == 1
        return same, metric(key).rank

    kept = sorted(columns, key=rank)[:most]
    return [key for key in columns if key in kept]


def _of_setups(report: Report, title: str, columns: Columns) -> Table:
    names = _ranked(report, columns)
    figures, unlike = [], []
    for key, column in columns.items():
        rivals = [None if _is_reference(report, name) else column.get(name) for name in names]
        alike = len({_how(report, each) for each in rivals if each}) < 2
        marked = metrics.best(rivals) if alike else set()
        unlike += [] if alike else [metric(key).title]
        figures.append(_Figures(_head(key, column.values()), [column.get(name) for name in names], marked))
    note = f"Not made alike, so not compared: {', '.join(unlike)}." if unlike else ""
    return _table(title, ["set-up"], [[name] for name in names], figures, note)


def _how(report: Report, record: Record) -> str:
    """The card of a figure, without who took part."""
    card = report.protocols.get(record.protocol, {})
    return repr({key: value for key, value in card.items() if key not in WHO})


def _head(key: str, records: Iterable[Record | None], before: str = "") -> Column:
    known = [each for each in records if each]
    intervals = dict.fromkeys(each.interval for each in known if each.interval and each.low is not None)
    unit = next((each.unit for each in known if each.unit), metric(key).unit)
    return Column(before + metric(key).title, unit, True, ", ".join(intervals))


def _table(
    title: str,
    heads: Sequence[str],
    names: Sequence[Sequence[str]],
    figures: Sequence[_Figures],
    note: str = "",
) -> Table:
    """Names in front, then the figures."""
    rows = [[_plain(name) for name in row] for row in names]
    for _, records, marked in figures:
        for place, (text, spread) in enumerate(zip(metrics.column(records), metrics.spreads(records), strict=True)):
            record = records[place]
            sort: float | str = record.value if record and math.isfinite(record.value) else ""
            rows[place].append(Cell(text, spread, place in marked, sort))
    return Table(title, [*(Column(head) for head in heads), *(head for head, _, _ in figures)], rows, note)


def _of_parts(kind: str, records: Sequence[Record]) -> tuple[Table, Bars | None]:
    """Few figures of few set-ups stand side by side, more below each other."""
    names = list(dict.fromkeys(each.of.partition("/")[2] for each in records))
    setups = list(dict.fromkeys(each.setup for each in records))
    keys = in_order([each.metric for each in records])
    found = {(each.of.partition("/")[2], each.setup, each.metric): each for each in records}
    title = PARTS.get(kind, f"By {kind}")
    if len(setups) * len(keys) <= MOST:
        rows: list[list[str]] = [[name] for name in names]
        columns: list[tuple[str, str | None]] = [(key, setup) for key in keys for setup in setups]
    else:
        there = {(name, setup) for name, setup, _ in found}
        rows = [[name, setup] for name in names for setup in setups if (name, setup) in there]
        columns = [(key, None) for key in keys]
    figures = []
    for key, setup in columns:
        column = [found.get((row[0], row[-1] if setup is None else setup, key)) for row in rows]
        figures.append(_Figures(_head(key, column, f"{setup}: " if setup and len(setups) > 1 else ""), column))
    table = _table(title, [kind, "set-up"][: len(rows[0])], rows, figures)
    key = min(keys, key=lambda key: metric(key).rank)
    if len(names) < 2:
        return table, None
    values = {setup: [found.get((name, setup, key)) for name in names] for setup in setups}
    values = {setup: row for setup, row in values.items() if any(row)}
    numbers = {setup: [each.value if each else None for each in row] for setup, row in values.items()}
    texts = {setup: [shown(each) if each else "" for each in row] for setup, row in values.items()}
    return table, Bars(title, metric(key).label, names, numbers, texts)


def _curves(key: str, plot: str, lines: Mapping[str, list[Record]]) -> Curves:
    lines = {name: sorted(line, key=lambda each: each.at or 0.0) for name, line in lines.items()}
    part = plot.rpartition("/")[2] if "/" in plot else ""
    title = f"{part} {metric(key).title}".strip()
    finite = {name: [each for each in line if math.isfinite(each.value)] for name, line in lines.items()}
    ends: dict[str, list[Record | None]] = {
        "first": [line[0] for line in lines.values()],
        "last": [line[-1] for line in lines.values()],
        "lowest": [min(line, key=lambda each: each.value, default=None) for line in finite.values()],
    }
    figures = [_Figures(Column(which, number=True), each) for which, each in ends.items()]
    table = _table(title, ["line"], [[name] for name in lines], figures)
    points = {name: [(each.at or 0.0, each.value) for each in line] for name, line in lines.items()}
    return Curves(title[:1].upper() + title[1:], metric(key).axis, metric(key).label, points, metric(key).log, table)


def _scatter(report: Report, columns: Columns, key: str) -> Iterator[Scatter]:
    """Over the speed that most set-ups have; none where there is nothing to see."""
    quality = {name: each for name, each in columns[key].items() if math.isfinite(each.value)}
    quality = {name: each for name, each in quality.items() if not _is_reference(report, name)}
    both = {speed: [name for name in quality if name in columns[speed]] for speed in SPEEDS if speed in columns}
    both = {speed: names for speed, names in both.items() if len({columns[speed][name].value for name in names}) > 1}
    if not both:
        return
    speed = max(both, key=lambda each: len(both[each]))
    names = [name for name in _named(report) if name in both[speed]]
    x, first = columns[speed], _named(report)[0]
    members = _members(report, names)
    lines = {series: _on_front(x, quality, within) for series, within in members.items()}
    on_front = {name for line in lines.values() for name in line}
    points = [
        Point(name, report.setups.get(name, {}).get("series", ""), x[name], quality[name], name in on_front)
        for name in names
    ]
    figures = [
        _Figures(_head(each, columns[each].values()), [columns[each][name] for name in names]) for each in (speed, key)
    ]
    title = f"{metric(key).title} and speed"
    against = f" over {first}" if metric(speed).alone else ""
    better = "Lower" if metric(key).better == "lower" else "Higher"
    better += f" and further {'right' if metric(speed).better == 'higher' else 'left'} is better"
    yield Scatter(
        title,
        metric(speed).label + against,
        metric(key).label,
        points,
        {series: line for series, line in lines.items() if series},
        _table(title, ["set-up", "series"], [[point.name, point.series] for point in points], figures),
        f"{better}; lines join what nothing of their series is both faster and better than.",
    )


def _members(report: Report, names: Sequence[str]) -> dict[str, list[str]]:
    """The set-ups of every series; the first of all belongs to each of them."""
    first, series = _named(report)[0], {name: report.setups.get(name, {}).get("series", "") for name in names}
    return {
        each: [name for name in names if series[name] == each or name == first]
        for each in dict.fromkeys(series[name] for name in names if name != first)
    }


def _on_front(x: Mapping[str, Record], y: Mapping[str, Record], names: Sequence[str]) -> list[str]:
    """Names on the front, from left to right."""
    shots = {name: _shot(x[name], y[name]) for name in names}
    kept = set(front(shots.values()))
    return sorted((name for name in names if shots[name] in kept), key=lambda name: x[name].value)


def _shot(x: Record, y: Record) -> Shot:
    """Less time and more quality are better, whichever way the figures go."""
    time = 1 / x.value if metric(x.metric).better == "higher" and x.value else x.value
    return Shot(time, -y.value if metric(y.metric).better == "lower" else y.value)


def _fronts(report: Report, key: str) -> dict[str, Front]:
    """Of every named series, in time as a share of the first set-up's."""
    columns = whole(report)
    speed = next((each for each in SPEEDS if each in columns and metric(each).alone), None)
    if speed is None or key not in columns:
        return {}
    names = [name for name in _named(report) if name in columns[speed] and name in columns[key]]
    names = [name for name in names if math.isfinite(columns[key][name].value)]
    found = {
        series: front(_shot(columns[speed][name], columns[key][name]) for name in within)
        for series, within in _members(report, names).items()
        if series
    }
    return dict(sorted(found.items(), key=lambda item: item[0] in (FEWER_STEPS, DEEPCACHE)))


def _equal_quality(what: str, fronts: Mapping[str, Front]) -> list[Table]:
    """A row for each level that the first series reaches; above 1 in the last column says that it is the fastest."""
    ours, *others = fronts
    rows = []
    for level in LEVELS_DB:
        times = {series: time_at(line, level) for series, line in fronts.items()}
        mine, rivals = times[ours], [time for name in others if (time := times[name]) is not None]
        if mine is not None:
            cells = [_figure(None if time is None else 100 * time, 1) for time in times.values()]
            rows.append([_figure(level, 0), *cells, _figure(min(rivals) / mine if rivals else None, 2)])
    heads = [Column(what), *(Column(f"{series}: time", "%", True) for series in fronts)]
    note = (
        "Per cent of what the first set-up takes, read off the fronts by straight lines between their points. "
        "Nothing stands where a front does not reach."
    )
    heads.append(Column(f"{ours}: times as fast as the best of the others", number=True))
    return [Table(f"At equal fidelity: {what}", heads, rows, note)] if rows else []


def _equal_speed(what: str, fronts: Mapping[str, Front]) -> list[Table]:
    """A row for each point of the package's front."""
    ours = next(iter(fronts))
    if DEEPCACHE not in fronts or ours == DEEPCACHE:
        return []
    rows = []
    for shot in fronts[DEEPCACHE]:
        mine = quality_at(fronts[ours], shot.time)
        gain = None if mine is None else mine - shot.quality
        rows.append([_figure(100 * shot.time, 1), _figure(shot.quality, 1), _figure(mine, 1), _figure(gain, 1)])
    heads = [Column("time", "% of the first set-up's"), Column(DEEPCACHE, "dB", True), Column(ours, "dB", True)]
    return [Table(f"At DeepCache's speed: {what}", [*heads, Column("gain", "dB", True)], rows)]


def _told(report: Report, name: str) -> list[str]:
    """What a set-up gains and loses beside the first one."""
    columns, first = whole(report), _named(report)[0]
    mine = {key: column[name] for key, column in columns.items() if name in column}
    words = [
        f"{shown(mine[key])} times as fast ({what})"
        for key, what in (("image_speedup", "image"), ("unet_speedup", "UNet call"))
        if key in mine
    ][:1]
    for key, unit, what in () if words else (("params_m", "M", "parameters"), ("macs_g", "G", "MACs a call")):
        before = columns.get(key, {}).get(first)
        if key in mine and before and _both_finite(before, mine[key]) and shown(before) != shown(mine[key]):
            change = f"{100 * (mine[key].value / before.value - 1):+.0f}".replace("-", "−")
            words.append(f"{shown(mine[key])} {unit} of {shown(before)} {unit} {what} ({change} %)")
    for key in [key for key in mine if metric(key).group == QUALITY and metric(key).rank <= 2][:2]:
        before = columns[key].get(first)
        title, unit = metric(key).title, f" {metric(key).unit}" if metric(key).unit else ""
        if before and _both_finite(before, mine[key]):
            words.append(f"{title} {shown(before)} → {shown(mine[key])}{unit}")
        else:
            words.append(f"{title} {shown(mine[key])}{unit}")
    return words


def _both_finite(before: Record, after: Record) -> bool:
    return before.value != 0 and math.isfinite(before.value) and math.isfinite(after.value)


def _alone(report: Report, name: str) -> list[str]:
    """The figures that matter most of a set-up."""
    columns = {key: {name: column[name]} for key, column in whole(report).items() if name in column}
    words = [
        f"{metric(key).title} {shown(columns[key][name])} {metric(key).unit}" for key in _leading(columns, [name], 3)
    ]
    return [each.strip() for each in words] + _learned(report, name)


def _learned(report: Report, name: str) -> list[str]:
    """How the first of its losses went."""
    line = [each for each in report.records if each.setup == name and each.metric == "loss" and each.at is not None]
    line = [each for each in line if each.of == line[0].of]
    if len(line) < 2:
        return []
    ends = f"{number(line[0].value)} → {number(line[-1].value)}"
    return [f"{line[0].of.rpartition('/')[2]} loss {ends} in {number(line[-1].at or 0, 0)} steps"]


def _pairs(title: str, entries: Mapping[str, Any]) -> Table:
    return Table(title, [Column(""), Column("")], [[_plain(key), _plain(value)] for key, value in entries.items()])


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _plain(value: Any) -> Cell:
    """As it was given, without digits that say nothing; the entries of a list in lines."""
    if isinstance(value, bool) or value is None:
        return Cell({True: "yes", False: "no", None: metrics.NOTHING}[value])
    if isinstance(value, (list, tuple)):
        return Cell("\n".join(_plain(each).text for each in value))
    if isinstance(value, dict):
        return Cell(", ".join(f"{key}: {_plain(each).text}" for key, each in value.items()))
    if isinstance(value, (int, float)):
        text = f"{value:,}" if isinstance(value, int) else f"{value:.10g}" if math.isfinite(value) else number(value)
        return Cell(text.replace("-", "−"), sort=value if math.isfinite(value) else "")
    return Cell(str(value), sort=str(value))


def _figure(value: float | None, digits: int) -> Cell:
    return Cell(metrics.NOTHING) if value is None else Cell(number(value, digits), sort=value)
