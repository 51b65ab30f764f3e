"""A report in the terminal: the result in words, the main table, and where the rest is."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, groupby
from pathlib import Path
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from asdm_cli.records import Report, Timeline
from asdm_cli.report import document, old_terminal, tables
from asdm_cli.report.metrics import NOTHING
from asdm_cli.report.tables import Cell, Column, Table

GAP = 2
HEADS, LONGEST = (14, 9, 6), 24
"""How wide heads may stand above narrower columns: the first at which a table fits; and the longest unbroken word."""
ROWS, NAMES = 40, 0.4
"""Of a timeline: most rows, and the share of the width that their names get."""
RULER = 10
COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")


def show(report: Report | document.Report, console: Console, page: Path | None = None) -> None:
    """What `page` has too is left to it; without one, as of a dry run, everything is shown but plots."""
    if isinstance(report, document.Report):
        old_terminal.show(report, console)
        return
    title, summary = tables.headline(report)
    lead, parts = tables.main(report), [table for table, _ in tables.parts(report)]
    shown = [lead] if lead else parts[:1]
    if page is None:
        shown += [*(parts if lead else parts[1:]), *tables.facts(report)]
    console.print(Text(title, style="bold"))
    if summary:
        console.print(Text(summary))
    for table in shown:
        console.print()
        console.print(_fitting(table, console.width))
        if table.note:
            console.print(Text(table.note, style="dim"))
    for timeline in report.timelines if page is None else ():
        console.print()
        console.print(*_timeline(timeline, console.width), sep="\n")
    for note in report.notes:
        console.print(Text(f"\n{note}", style="dim"))
    if page is not None:
        console.print(Text(f"\n{_rest(report)}: {page}", style="dim"))
    console.print()


def _rest(report: Report) -> str:
    plots = len(tables.scatters(report)) + len(tables.curves(report))
    images = report.images and len(report.images.prompts) * len(report.images.folders)
    counted = [
        f"{count} {what}{'' if count == 1 else 's'}" for count, what in ((plots, "plot"), (images, "image")) if count
    ]
    return " and ".join([*counted, "all figures"])


def _fitting(table: Table, width: int) -> RenderableType:
    """With spreads if there is room, else without; or a block of lines per row where the terminal is narrower still."""
    title = Text(table.title, style="bold cyan")
    for spreads in (True, False):
        for head_width in HEADS:
            grid, needed = _grid(table, head_width, spreads)
            if needed <= width:
                return Group(title, grid)
    return Group(title, *_tall(table))


def _grid(table: Table, head_width: int, spreads: bool) -> tuple[Grid, int]:
    grid = Grid(
        box=None,
        pad_edge=False,
        padding=(0, GAP, 0, 0),
        header_style="dim",
        show_header=any(head.title for head in table.columns),
    )
    cells, needed = [[_text(cell, spreads) for cell in row] for row in table.rows], -GAP
    for place, column in enumerate(table.columns):
        below = [row[place] for row in cells]
        head = _head(column, max([head_width, *(text.cell_len for text in below)]), spreads)
        lines = [line for text in (head, *below) for line in text.plain.split("\n")]
        need = max((min(cell_len(line), LONGEST) for line in lines), default=0)
        justify: Literal["left", "right"] = "right" if column.number else "left"
        grid.add_column(head, justify=justify, min_width=need, vertical="bottom")
        needed += need + GAP
    for row in cells:
        grid.add_row(*row)
    return grid, needed


def _head(column: Column, width: int, spreads: bool) -> Text:
    words = f"{column.title} {column.unit}".split()
    lines = [""]
    for word in words:
        fits = len(f"{lines[-1]} {word}") <= width
        lines[-1:] = [f"{lines[-1]} {word}".strip()] if fits or not lines[-1] else [lines[-1], word]
    head = Text("\n".join(lines))
    return head.append(f"\n{column.interval}", style="italic") if column.interval and spreads else head


def _tall(table: Table) -> Iterator[RenderableType]:
    for first, *others in table.rows:
        yield Text(first.text, style="bold")
        for column, cell in zip(table.columns[1:], others, strict=True):
            if cell.text == NOTHING:
                continue
            yield Padding(
                Text.assemble((f"{column.title} {column.unit}".strip() + ": ", "dim"), _text(cell, True)), (0, 0, 0, 2)
            )


def _text(cell: Cell, spreads: bool) -> Text:
    between = (f"  {cell.spread}", "dim") if cell.spread and spreads else ""
    text = cell.text.replace("\n", ", ")
    return Text.assemble((text, "bold green" if cell.best else ""), between)


def _timeline(timeline: Timeline, width: int) -> list[Text]:
    """A row of letters for each row, one for each call."""
    names = min(max(map(cell_len, timeline.rows), default=0), int(NAMES * width))
    most = max(map(len, timeline.rows.values()), default=0)
    calls = max(1, min(most, width - names - GAP))
    colours = dict(zip(timeline.letters, cycle(COLOURS), strict=False))
    ruler = "".join(str(call).ljust(RULER) for call in range(0, calls, RULER) if call + len(str(call)) <= calls)
    lines = [Text(timeline.title, style="bold cyan"), Text(" " * (names + GAP) + ruler[:calls], style="dim")]
    for name, row in list(timeline.rows.items())[:ROWS]:
        label = Text(name)
        label.truncate(max(1, names), overflow="ellipsis", pad=True)
        runs = [(letter * len(list(group)), colours[letter]) for letter, group in groupby(row[:calls])]
        lines.append(Text.assemble(label, " " * GAP, *runs))
    left = {"rows": len(timeline.rows) - ROWS, "calls": most - calls}
    if more := " and ".join(f"{count} more {what}" for what, count in left.items() if count > 0):
        lines.append(Text(more, style="dim"))
    used = [letter for letter in timeline.letters if any(letter in row for row in timeline.rows.values())]
    legend = Text("  ").join(
        Text.assemble((letter, colours[letter]), f" {timeline.letters[letter]}") for letter in used
    )
    return [*lines, legend, *([Text(timeline.note, style="dim")] if timeline.note else [])]
