"""Views of a report as tables. No rendering, no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from operator import attrgetter
from typing import Any

from asdm_cli.records import Record, Report
from asdm_cli.report import metrics
from asdm_cli.report.metrics import COST, METRICS, QUALITY, in_order, metric, number, shown, tied

MOST, FEW = 5, 3
"""Columns of figures in the main table, and on a phone."""
GROUPS = {COST: "All costs", QUALITY: "All that the pictures are worth", "": "Other figures"}
JUDGES = ("kid", "label_accuracy", "clip_score", "fd")
"""What pictures are judged by; where none of these is known, by how near they are to the first set-up's."""
RUINED = {"kid": (1.5, 0.15), "label_accuracy": (2.0, 0.2)}
"""So many times as bad, and by so much: pictures that show little of what they should. The KID of two feature networks
is not the same, but by 0.15 more hardly anything can be told (of the bundled model's students, label accuracy 0.07)."""
BEST = "Bold: the best of those that show what was asked for, or not told apart from it."
PAPER = {"params_m", "macs_g", "plain_macs_g"}
"""Costs that are counted, not measured: where they are all that is known, no set-up is told to be the best."""
NEAR_DB, OTHER_DB = 30.0, 20.0
"""PSNR from which pictures are hardly told apart; below the second they show other things."""
PARTS = {
    "block": "UNet by block",
    "batch": "Images at once, times of all of them",
    "split": "The parts of the data apart",
    "removed alone": "Every unit removed alone",
    "part": "Every part of another donor alone",
    "latents": "On the latents of other prompts",
    "front": "More pictures of the front",
    "component": "Components",
    "unet": "UNets that take turns",
    "inherited": "UNet calls of the plans",
    "generation": "A generation under the plans",
    "of": "The ratios in the other ways that they are published in",
    "calibrated": "What UNets cost and err",
    "budget": "Searched schedules",
    "loss": "Where the losses ended",
}
"""What the parts of a kind are called together."""
OF_METRICS = ("of", "loss")
"""Kinds whose parts are figures; those of others have names that people gave them."""
WHO = ("contestants", "setups")
"""Lines of a card that say who took part, not how figures were made."""

Columns = Mapping[str, Mapping[str, Record]]
"""Metric -> set-up -> its figure."""


class Verdict(IntEnum):
    """What became of the pictures of the first set-up. From OTHER on, speed is worth nothing."""

    BETTER, ALIKE, NEAR, CHANGED, WORSE, OTHER, RUINED = range(7)


@dataclass(frozen=True)
class Cell:
    """`spread` stands behind the text, and rows are sorted by `sort`."""

    text: str
    spread: str = ""
    best: bool = False
    sort: float | str = ""


@dataclass(frozen=True)
class Column:
    """`interval` says what the spreads of its figures are; what is `minor` a small screen leaves out."""

    title: str
    unit: str = ""
    number: bool = False
    interval: str = ""
    minor: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    note: str = ""


def named(report: Report) -> list[str]:
    """All set-ups, references last; what has figures is one, even if nothing is said of it."""
    names = dict.fromkeys([*report.setups, *map(attrgetter("setup"), report.records)])
    return sorted(filter(None, names), key=lambda name: is_reference(report, name))


def is_reference(report: Report, name: str) -> bool:
    return bool(report.setups.get(name, {}).get("reference"))


def comparisons(report: Report) -> list[list[str]]:
    """The set-ups in groups: those of which something was measured as it was of the first one; and, of reports put
    together, those of each other comparison: something was measured as it was of its first, and beside the same."""
    cards = {name: _how(report, name) for name in {each.protocol for each in report.records}}
    ways: dict[str, set[tuple[str, str]]] = {}
    for each in report.records:
        if not each.of and each.at is None:
            ways.setdefault(each.setup, set()).add((cards[each.protocol], each.against))
    names = named(report)
    if not names:
        return []
    mine = {card for card, _ in ways.get(names[0], ())}
    found = [
        [each for each in names if each == names[0] or not mine or any(card in mine for card, _ in ways.get(each, ()))]
    ]
    while left := [name for name in names if name in ways and not any(name in group for group in found)]:
        found.append([name for name in left if ways[name] & ways[left[0]]])
    return found


def compared(report: Report) -> list[str]:
    """The first of these groups."""
    return next(iter(comparisons(report)), [])


def whole(report: Report) -> dict[str, dict[str, Record]]:
    """Figures of whole set-ups by metric. One beside itself has the figure that needs no measuring."""
    inside = [each for each in report.records if not each.of and each.at is None]
    keys = in_order([each.metric for each in inside])
    columns = {key: {each.setup: each for each in reversed(inside) if each.metric == key} for key in keys}
    first = (named(report) or [""])[0]
    for key, column in columns.items():
        if (alone := metric(key).alone) is not None:
            for each in [each for each in column.values() if each.against]:
                itself = Record(each.against, key, alone, against=each.against, protocol=each.protocol)
                column.setdefault(each.against, itself)
                if each.against == first:  # also where another comparison, put beside it, has it over another set-up
                    column[first] = itself
    return columns


def beside_first(report: Report) -> dict[str, dict[str, Record]]:
    """The same, without what compares a set-up with another one than the first."""
    first = named(report)[:1]
    kept = {
        key: {name: each for name, each in column.items() if not each.against or [each.against] == first}
        for key, column in whole(report).items()
    }
    return {key: column for key, column in kept.items() if column}


def main(report: Report, most: int = MOST) -> Table | None:
    """The figures that matter most; None without figures."""
    return _of_group(report, "Figures", compared(report), most)


def others(report: Report, most: int = MOST) -> list[Table]:
    """The same of each other comparison."""
    groups = [(f"Figures: {names[0]}, and what was measured with it", names) for names in comparisons(report)[1:]]
    found = [_of_group(report, title, names, most) for title, names in groups]
    return [table for table in found if table is not None]


def _of_group(report: Report, title: str, names: list[str], most: int) -> Table | None:
    columns = whole(report)
    mine = {key: own for key, each in columns.items() if (own := {name: each[name] for name in names if name in each})}
    return _figures(report, title, names, leading(mine, most), leading(mine, FEW)) if mine else None


def everything(report: Report) -> list[Table]:
    """All figures of whole set-ups, where the main table has not all of them."""
    keys, names = list(whole(report)), named(report)
    groups = {title: [key for key in keys if metric(key).group == group] for group, title in GROUPS.items()}
    if len(keys) <= MOST and names == compared(report):
        return []
    return [_figures(report, title, names, own, own) for title, own in groups.items() if own]


def _figures(report: Report, title: str, names: list[str], keys: list[str], major: Collection[str]) -> Table:
    """Set-ups down, figures across. The best is marked among those that compete: of costs, and of nearness to another
    set-up, those whose pictures are still what was asked for."""
    columns = whole(report)
    names = [name for name in names if any(name in columns[key] for key in keys)]
    hurt = {name for name in names if (judged := verdict(report, columns, name)) and judged[0] >= Verdict.OTHER}
    figures, unlike = [], []
    for key in keys:
        beside = any(each.against for each in columns[key].values())
        out = hurt if metric(key).group == COST or beside else set()
        rivals = [None if is_reference(report, name) or name in out else columns[key].get(name) for name in names]
        alike = key in PAPER or len({(_how(report, each.protocol), each.against) for each in rivals if each}) < 2
        unlike += [] if alike else [metric(key).title]
        best = metrics.best(rivals) if alike and not columns.keys() <= PAPER else ()
        head, cells = column(key, [columns[key].get(name) for name in names], best=best)
        figures.append((replace(head, minor=key not in major), cells))
    notes = [BEST] if any(cell.best for _, cells in figures for cell in cells) else []
    notes += [f"Not made alike, so not compared: {', '.join(unlike)}."] if unlike else []
    return of_columns(title, ["set-up"], [[name] for name in names], figures, " ".join(notes))


def verdict(report: Report, columns: Columns, name: str) -> tuple[Verdict, Record | None, Record] | None:
    """The worst that is told of a set-up's pictures, with the first set-up's figure, where it has one, and its own.
    None where nothing is known, or nothing that was made alike."""
    first, *others = named(report)
    pairs = [(columns.get(key, {}).get(first), columns.get(key, {}).get(name)) for key in JUDGES]
    known = [(one, own) for one, own in pairs if one and own and math.isfinite(one.value + own.value)]
    known = [(one, own) for one, own in known if _how(report, one.protocol) == _how(report, own.protocol)]
    if name not in others or is_reference(report, name):
        return None
    if known:
        return max(((_judged(one, own), one, own) for one, own in known), key=lambda each: each[0])
    own = columns.get("psnr_db", {}).get(name)
    if own is None or not math.isfinite(own.value) or own.against not in ("", first):
        return None
    near = own.value >= NEAR_DB
    return Verdict.NEAR if near else Verdict.CHANGED if own.value >= OTHER_DB else Verdict.OTHER, None, own


def _judged(first: Record, own: Record) -> Verdict:
    if tied(first, own):
        return Verdict.ALIKE
    if metrics.better(own, first):
        return Verdict.BETTER
    lower = metric(own.metric).better == "lower"
    factor, gap = RUINED.get(own.metric, (math.inf, math.inf))
    good, bad = sorted((first.value, own.value), reverse=not lower)
    far = bad > factor * good if lower else factor * bad < good
    return Verdict.RUINED if far and abs(bad - good) > gap else Verdict.WORSE


def leading(columns: Columns, most: int) -> list[str]:
    """The metrics that matter most, in the table's order; what is the same for all matters least."""

    def rank(key: str) -> tuple[bool, int]:
        return len(columns[key]) > 1 and len({shown(each) for each in columns[key].values()}) == 1, metric(key).rank

    kept = sorted(columns, key=rank)[:most]
    return [key for key in columns if key in kept]


def _how(report: Report, protocol: str) -> str:
    """Its card, without who took part."""
    card = report.protocols.get(protocol, {})
    return repr({key: value for key, value in card.items() if key not in WHO})


def parts(report: Report) -> dict[str, list[Record]]:
    """Figures of parts by what their kind is called. Of set-ups that have the same in all, the first stands for all."""
    found: dict[str, dict[str, dict[tuple[str, str], Record]]] = {}
    for each in report.records:
        kind, _, name = each.of.partition("/")
        if kind and each.at is None:
            if kind in OF_METRICS and name in METRICS:
                each = replace(each, of=f"{kind}/{METRICS[name].title}")
            found.setdefault(kind, {}).setdefault(each.setup, {})[each.of, each.metric] = each
    tables: dict[str, list[Record]] = {}
    for kind, setups in found.items():
        alike: dict[str, list[str]] = {}
        for setup, own in setups.items():
            alike.setdefault(repr([(key, each.value) for key, each in own.items()]), []).append(setup)
        for first, *others in alike.values():
            name = f"{first} and {len(others)} alike" if others else first
            same = [replace(each, setup=name) for each in setups[first].values()]
            tables.setdefault(PARTS.get(kind, f"By {kind}"), []).extend(same)
    return tables


def of_parts(title: str, records: Sequence[Record]) -> Table:
    """Few figures of few set-ups stand side by side, more below each other."""
    found = {(each.of.partition("/")[2], each.setup, each.metric): each for each in records}
    names, setups = (list(dict.fromkeys(key[place] for key in found)) for place in (0, 1))
    keys = in_order([each.metric for each in records])
    if len(setups) * len(keys) <= MOST:
        rows = [[name] for name in names]
        before = {setup: f"{setup}: " if len(setups) > 1 else "" for setup in setups}
        figures = [
            column(key, [found.get((name, setup, key)) for name in names], before[setup] + metric(key).title)
            for key in keys
            for setup in setups
        ]
    else:
        there = {key[:2] for key in found}
        rows = [[name, setup] for name in names for setup in setups if (name, setup) in there]
        figures = [column(key, [found.get((name, setup, key)) for name, setup in rows]) for key in keys]
    return of_columns(title, ["part", "set-up"][: len(rows[0])], rows, figures)


def column(
    key: str, records: Sequence[Record | None], title: str = "", best: Collection[int] = ()
) -> tuple[Column, list[Cell]]:
    """Figures of one metric, as they read below each other; `best` are the places that are marked."""
    known = [each for each in records if each]
    intervals = dict.fromkeys(each.interval for each in known if each.interval and each.low is not None)
    unit = next((each.unit for each in known if each.unit), metric(key).unit)
    sorts = [each.value if each and math.isfinite(each.value) else "" for each in records]
    spreads = [metrics.spread(each) if each else "" for each in records]
    cells = map(Cell, metrics.column(records), spreads, [at in best for at in range(len(sorts))], sorts)
    return Column(title or metric(key).title, unit, True, ", ".join(intervals)), list(cells)


def of_columns(
    title: str,
    first: Sequence[str],
    names: Sequence[Sequence[str]],
    figures: Sequence[tuple[Column, list[Cell]]],
    note: str = "",
) -> Table:
    """Names in front, under the `first` titles, then the figures."""
    rows = [[*map(_plain, row), *(cells[place] for _, cells in figures)] for place, row in enumerate(names)]
    return Table(title, [*map(Column, first), *(head for head, _ in figures)], rows, note)


def facts(report: Report) -> list[Table]:
    """What is no figure. Texts and numbers stand together; what has entries or rows of its own is a table."""
    plain, tables = {}, []
    for key, value in report.facts.items():
        if isinstance(value, dict):
            tables.append(pairs(key, value))
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            tables.append(of_rows(key, value))
        elif key != "title":
            plain[key] = value
    return [pairs("Facts", plain), *tables] if plain else tables


def pairs(title: str, entries: Mapping[str, Any]) -> Table:
    return Table(title, [Column(""), Column("")], [[_plain(key), _plain(value)] for key, value in entries.items()])


def of_rows(title: str, rows: Sequence[Mapping[str, Any]], note: str = "") -> Table:
    """Rows as they are, under the keys that any of them has."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    heads = [Column(key, number=not any(isinstance(row.get(key), str) for row in rows)) for key in keys]
    return Table(title, heads, [[_plain(row.get(key)) for key in keys] for row in rows], note)


def _plain(value: Any) -> Cell:
    """As it was given, without digits that say nothing; the entries of a list in lines."""
    if isinstance(value, Cell):
        return value
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
