"""A report in the terminal: what fits there, and where to find the rest."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import wrap
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table as RichTable
from rich.text import Text

from asdm_cli.report.document import Bars, Column, Curves, Grid, Part, Report, Scatter, Section, Table, Timeline
from asdm_cli.report.figures import best_rows, interval_kinds, is_numeric, spreads, text
from asdm_cli.report.tabulate import tabulate
from asdm_cli.report.timeline_text import draw

GAP = 2
TITLE_WIDTHS = (16, 11, 7)
"""How wide a title may stand above a narrower column: the first at which the table fits."""
LONGEST_UNBROKEN = 24


def show(report: Report, console: Console) -> None:
    """Title, summary, tables, timelines and the ends of curves. A line says what else is on the page. Of a folded
    section only its head is shown."""
    console.print(Text(report.title, style="bold"))
    if report.summary:
        console.print(Text(report.summary))
    folded = False
    for part in report.parts:
        folded = part.folded if isinstance(part, Section) else folded
        if folded and not isinstance(part, Section):
            continue
        console.print()
        for line in _part(part, console):
            console.print(line)
    console.print()


def _part(part: Part, console: Console) -> list[RenderableType]:
    title = Text(part.title, style="bold cyan")
    note = [Text(part.note, style="dim")] if part.note else []
    if isinstance(part, Section):
        more = ("  see report.html", "dim") if part.folded else ""
        return [
            Rule(style="dim"),
            Text.assemble((part.title, "bold"), more),
            *([Text(part.note)] if part.note else []),
        ]
    if isinstance(part, Table):
        return [title, _fitting(part, console), *note]
    if isinstance(part, Bars):
        return [title, _fitting(tabulate(part), console), *note]
    if isinstance(part, Timeline):
        return [title, *draw(part, console.width), *note]
    if isinstance(part, Curves):
        return [_announced(part), _fitting(tabulate(part), console), *note]
    return [_announced(part)]


def _announced(part: Scatter | Grid | Curves) -> Text:
    return Text.assemble((part.title, "bold cyan"), (f"  {_what(part)}; see report.html", "dim"))


def _what(part: Scatter | Grid | Curves) -> str:
    if isinstance(part, Scatter):
        return f"plot of {len(part.points)} points"
    if isinstance(part, Curves):
        return f"plot of {len(part.lines)} {'line' if len(part.lines) == 1 else 'lines'}"
    return f"{sum(path is not None for row in part.pictures for path in row)} pictures"


def _fitting(table: Table, console: Console) -> RenderableType:
    """A grid of cells, or a block of lines per row where the terminal is too narrow for that."""
    cells = _cells(table)
    for title_width in TITLE_WIDTHS:
        heads = _heads(table, cells, title_width)
        needs = [_needed(head, [row[place] for row in cells]) for place, head in enumerate(heads)]
        if sum(needs) + GAP * (len(needs) - 1) <= console.width:
            return _wide(table, cells, heads, needs)
    return _tall(table, cells)


def _wide(table: Table, cells: list[list[Text]], heads: list[Text], needs: list[int]) -> RichTable:
    grid = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for column, head, need in zip(table.columns, heads, needs, strict=True):
        justify: Literal["left", "right"] = "right" if is_numeric(table, column) else "left"
        grid.add_column(head, justify=justify, min_width=need, vertical="bottom")
    for row in cells:
        grid.add_row(*row)
    return grid


def _heads(table: Table, cells: list[list[Text]], title_width: int) -> list[Text]:
    """Titles in lines hardly wider than what stands below them, with what the small figures are."""
    kinds = interval_kinds(table, table.columns)
    heads = []
    for place, column in enumerate(table.columns):
        width = max([title_width, *(row[place].cell_len for row in cells)])
        lines = [line for part in column.title.split("\n") for line in wrap(part, width, break_long_words=False)]
        head = Text("\n".join(lines))
        heads.append(head.append(f"\n{kinds[column.key]}", style="italic") if column.key in kinds else head)
    return heads


def _needed(head: Text, cells: Iterable[Text]) -> int:
    """Columns of the screen without which a line of the head or a cell would be broken; long texts may be."""
    lines = [*head.plain.split("\n"), *(cell.plain for cell in cells)]
    return max(min(cell_len(line), LONGEST_UNBROKEN) for line in lines)


def _tall(table: Table, cells: list[list[Text]]) -> Group:
    """The first column as a heading, the others as `title: cell` below it."""
    blocks: list[RenderableType] = []
    for row in cells:
        blocks.append(Text.assemble(row[0], style="bold"))
        for column, cell in zip(table.columns[1:], row[1:], strict=True):
            line = Text.assemble((f"{' '.join(column.title.split())}: ", "dim"), cell)
            blocks.append(Padding(line, (0, 0, 0, 2)))
    return Group(*blocks)


def _cells(table: Table) -> list[list[Text]]:
    """Formatted cells by row: best ones green, spreads dim."""
    columns = [_column(table, column) for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def _column(table: Table, column: Column) -> list[Text]:
    best = best_rows(table, column)
    return [
        Text.assemble(
            (text(row.get(column.key), column.digits), "bold green" if index in best else ""),
            (f"  {between}" if between else "", "dim"),
        )
        for index, (row, between) in enumerate(zip(table.rows, spreads(table, column), strict=True))
    ]
