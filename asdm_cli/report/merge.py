"""Several reports as one: what contestants cost beside what their pictures are worth.

Columns and contestants are found by key and by name, never by their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from asdm_cli.errors import ModelError
from asdm_cli.report.document import Cell, Column, Grid, Interval, Part, Point, Report, Scatter, Section, Table
from asdm_cli.report.figures import value
from asdm_cli.report.render_json import NAME, from_json, part_at
from asdm_cli.unet.weights import inside, read_mapping

CONTESTANT = "name"
SPEED = ("image_ms", "unet_ms")
"""Columns of bench that tell speed; the first that every contestant has a figure in is drawn."""
QUALITY = "kid"


def read(folder: Path) -> Report:
    """The report of a run directory, with its pictures found from here. Raises ModelError."""
    report = from_json(read_mapping(inside(folder, folder / NAME)))
    parts = [part_at(part, folder) for part in report.parts]
    for picture in _pictures(parts):
        inside(folder, picture)
    return replace(report, parts=parts)


def combine(title: str, reports: Sequence[Report], folded: bool = False) -> Report:
    """A section for each of several reports: its title, its summary as a note, its parts. `folded` even for one.

    Cards that share a name but differ are told apart by their verb.
    """
    cards: dict[str, dict[str, Cell | list[str]]] = {}
    parts: list[Part] = []
    sections = folded or len(reports) > 1
    for report in reports:
        names = {name: _free_name(name, report, cards) for name in report.cards}
        cards |= {names[name]: card for name, card in report.cards.items()}
        parts += [Section(report.title, report.summary, report.verb, folded)] if sections else []
        parts += [_with_card(part, names) for part in report.parts]
    summary = "" if sections else reports[0].summary
    return Report(" + ".join(dict.fromkeys(report.verb for report in reports)), title, summary, parts, cards)


def speed_quality(bench: Report, evaluation: Report) -> Scatter:
    """KID over latency, one point per contestant that both reports name.

    Raises ModelError if a report lacks the figures, or if the two have no contestant in common.
    """
    quality_column, quality = _figures(evaluation, QUALITY)
    candidates = [_figures(bench, key) for key in SPEED if _has(bench, key)]
    if not candidates:
        raise ModelError(f"{bench.title}: no table has a column {' or '.join(SPEED)}; give a run of asdm bench")
    common = [name for name in quality if any(name in times for _, times in candidates)]
    if not common:
        raise ModelError(
            f"{bench.title} and {evaluation.title} have no contestant in common "
            f"({_listed(candidates[0][1])}; {_listed(quality)}); give the models the same names in both recipes"
        )
    complete = [pair for pair in candidates if all(name in pair[1] for name in common)]
    speed_column, times = (complete or candidates)[0]
    drawn = [name for name in common if name in times]
    return Scatter(
        title="Speed and quality",
        x_title=f"{_one_line(speed_column)} (less is faster)",
        y_title=f"{_one_line(quality_column)} ({quality_column.better or 'lower'} is better)",
        points=[_point(name, times[name], quality[name]) for name in drawn],
        note=_note(bench, evaluation, set(drawn) ^ (set(quality) | set(times))),
    )


def _figures(report: Report, key: str) -> tuple[Column, dict[str, float | Interval]]:
    """The column called `key`, and its finite figures by contestant."""
    for part in report.parts:
        if not isinstance(part, Table):
            continue
        columns = {column.key: column for column in part.columns}
        if CONTESTANT in columns and key in columns:
            cells = {str(row.get(CONTESTANT)): row.get(key) for row in part.rows}
            return columns[key], {name: cell for name, cell in cells.items() if _is_figure(cell)}  # type: ignore[misc]
    raise ModelError(
        f"{report.title}: no table has the columns {CONTESTANT} and {key}; give a run whose recipe measures {key}"
    )


def _has(report: Report, key: str) -> bool:
    tables = [part for part in report.parts if isinstance(part, Table)]
    return any({CONTESTANT, key} <= {column.key for column in table.columns} for table in tables)


def _is_figure(cell: Cell | Interval) -> bool:
    return value(cell) is not None


def _point(name: str, speed: float | Interval, quality: float | Interval) -> Point:
    x, y = value(speed), value(quality)
    assert x is not None, name
    assert y is not None, name
    if isinstance(quality, Interval):
        return Point(x, y, name, y_low=quality.low, y_high=quality.high)
    return Point(x, y, name)


def _note(bench: Report, evaluation: Report, left_out: set[str]) -> str:
    sources = f"Speed: {bench.title}. Quality: {evaluation.title}."
    if not left_out:
        return sources
    return f"{sources} Measured in only one of the two, so not drawn: {_listed(left_out)}."


def _listed(names: Sequence[str] | set[str] | dict[str, float | Interval]) -> str:
    return ", ".join(sorted(names)) or "none"


def _one_line(column: Column) -> str:
    return " ".join(column.title.split())


def _free_name(name: str, report: Report, cards: dict[str, dict[str, Cell | list[str]]]) -> str:
    """`name`, or one with the verb (and a number) added where it is taken by another card."""
    options = [name, f"{name} ({report.verb})", *(f"{name} ({report.verb} {number})" for number in range(2, 100))]
    return next(option for option in options if cards.get(option, report.cards[name]) == report.cards[name])


def _with_card(part: Part, names: dict[str, str]) -> Part:
    return replace(part, card=names.get(part.card, "")) if isinstance(part, Table) else part


def _pictures(parts: Sequence[Part]) -> list[Path]:
    return [path for part in parts if isinstance(part, Grid) for row in part.pictures for path in row if path]
