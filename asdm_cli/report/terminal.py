"""A report in the terminal: the result in words, the main table, and where the rest is."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from textwrap import wrap
from typing import Any

from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table as Grid
from rich.text import Text

from asdm_cli.records import Report, Timeline
from asdm_cli.report import plots, tables
from asdm_cli.report.tables import MOST, Table
from asdm_cli.report.words import headline, unbroken

NARROWEST, WIDEST = 8, 32
"""Letters in a line of a head above narrower figures; of a name or a text."""
ROWS = 40
PLAIN: dict[str, Any] = {"box": None, "pad_edge": False, "padding": (0, 2, 0, 0), "header_style": "dim"}
COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")


def show(report: Report, console: Console, page: Path | None = None, known: bool = False) -> None:
    """What `page` has too is left to it; without one, as of a dry run, everything is shown but plots. Where figures are
    `known`, neither they nor the title are shown again."""
    if not known:
        _title(report, console)
    lead = _lead(report, console)
    parts = [_grid(tables.of_parts(name, records)) for name, records in tables.parts(report).items()]
    blocks = [lead] if lead else parts[:1]
    if page is None:
        blocks = [
            *([lead] if lead else []),
            *parts,
            *map(_grid, tables.facts(report)),
            *map(_timeline, report.timelines),
        ]
    for block in blocks if not known else ():
        console.print()
        console.print(block)
    for note in report.notes:
        console.print(Text(f"\n{note}", style="dim"))
    if page is not None:
        console.print(Text(f"\n{_rest(report)}: {page}", style="dim"))
    console.print()


def _title(report: Report, console: Console) -> None:
    title, summary = headline(report)
    if title != (name := report.facts.get("title", title)):
        console.print(Text(name, style="dim"))
    for line, style in [(title, "bold"), *((line, "") for line in summary.splitlines())]:
        console.print(Text("\n".join(wrap(unbroken(line), console.width)).replace("\u00a0", " "), style=style))


def _rest(report: Report) -> str:
    drawn = len(plots.scatters(report)) + len(plots.curves(report))
    images = report.images and len(report.images.prompts) * len(report.images.folders)
    counted = [f"{count} {what}{'s' * (count != 1)}" for count, what in ((drawn, "plot"), (images, "image")) if count]
    return " and ".join([", ".join(counted), "all figures"] if counted else ["all figures"])


def _lead(report: Report, console: Console) -> Group | None:
    """The main table with its spreads, without them, or with as many columns as there is room for."""
    options = console.options.update(max_width=1000)
    for most, spreads in ((MOST, True), *((most, False) for most in range(MOST, 0, -1))):
        table = tables.main(report, most)
        grid = _grid(table, spreads) if table else None
        if grid is None or most == 1:
            return grid
        _, figures, *_ = grid.renderables  # a title and a note may break
        if Measurement.get(console, options, figures).maximum <= console.width:
            return grid
    return None


def _grid(table: Table, spreads: bool = True) -> Group:
    grid = Grid(**PLAIN, show_header=any(column.title for column in table.columns))
    for place, column in enumerate(table.columns):
        cells = [row[place] for row in table.rows]
        width = max([NARROWEST, *(len(cell.text) for cell in cells)])
        head = "\n".join(wrap(f"{column.title} {column.unit}", min(width, WIDEST), break_long_words=False))
        if column.number:
            grid.add_column(head, justify="right", vertical="bottom", no_wrap=True)
        else:
            most = WIDEST if grid.show_header else None
            grid.add_column(head, vertical="bottom" if most else "top", max_width=most, overflow="fold")
        if spreads and any(cell.spread for cell in cells):
            grid.add_column(
                Text("\n".join(wrap(column.interval, 2 * NARROWEST)), "italic"), vertical="bottom", no_wrap=True
            )
    for row in table.rows:
        texts = []
        for place, cell in enumerate(row):
            texts.append(Text(cell.text.replace("\n", ", "), "bold green" if cell.best else ""))
            if spreads and any(each[place].spread for each in table.rows):
                texts.append(Text(cell.spread, "dim"))
        grid.add_row(*texts)
    note = [Text(table.note, "dim")] if table.note else []
    return Group(Text(table.title, "bold cyan"), grid, *note)


def _timeline(timeline: Timeline) -> Group:
    """A row of letters for each row, one for each call, and what the letters are."""
    colours = dict(zip(timeline.letters, cycle(COLOURS), strict=False))
    used = [letter for letter in timeline.letters if any(letter in row for row in timeline.rows.values())]
    words = "  ".join(f"{letter} {timeline.letters[letter]}" for letter in used)
    more = f"{len(timeline.rows) - ROWS} more rows" if len(timeline.rows) > ROWS else ""
    caption = "\n".join(line for line in (more, words, timeline.note) if line)
    grid = Grid(**PLAIN, show_header=False)
    grid.add_column(no_wrap=True, overflow="ellipsis", max_width=WIDEST)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    for name, row in list(timeline.rows.items())[:ROWS]:
        grid.add_row(Text(name), Text.assemble(*((letter, colours[letter]) for letter in row)))
    return Group(Text(timeline.title, "bold cyan"), grid, Text(caption, "dim"))
