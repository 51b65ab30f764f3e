"""A report in the terminal: what fits there, and where to find the rest."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from asdm_cli.report.document import Bars, Column, Grid, Part, Report, Scatter, Table
from asdm_cli.report.figures import best_rows, interval_kinds, is_numeric, spread, text


def show(report: Report, console: Console) -> None:
    """Title, summary and tables. Plots and pictures are on the page; here a line says so."""
    console.print(Text(report.title, style="bold"))
    if report.summary:
        console.print(Text(report.summary))
    for part in report.parts:
        console.print()
        for line in _part(part, console):
            console.print(line)
    console.print()


def _part(part: Part, console: Console) -> list[RenderableType]:
    title = Text(part.title, style="bold cyan")
    note = [Text(part.note, style="dim")] if part.note else []
    if isinstance(part, Table):
        return [title, _fitting(part, console), *note]
    if isinstance(part, Bars):
        return [title, _fitting(_as_table(part), console), *note]
    return [Text.assemble((part.title, "bold cyan"), (f"  {_what(part)}; see report.html", "dim"))]


def _what(part: Scatter | Grid) -> str:
    if isinstance(part, Scatter):
        return f"plot of {len(part.points)} points"
    return f"{sum(path is not None for row in part.pictures for path in row)} pictures"


def _as_table(bars: Bars) -> Table:
    """One row per category, one column per series."""
    columns = [Column("category", ""), *(Column(f"of {name}", f"{name}\n{bars.unit}") for name in bars.values)]
    rows = [
        {"category": category, **{f"of {name}": row[index] for name, row in bars.values.items()}}
        for index, category in enumerate(bars.categories)
    ]
    return Table(bars.title, columns, rows)  # type: ignore[arg-type]


def _fitting(table: Table, console: Console) -> RenderableType:
    """A grid of cells, or a block of lines per row where the terminal is too narrow for that."""
    wide = _wide(table)
    if Measurement.get(console, console.options.update(width=10_000), wide).minimum <= console.width:
        return wide
    return _tall(table)


def _wide(table: Table) -> RichTable:
    grid = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    kinds = interval_kinds(table, table.columns)
    for column in table.columns:
        head = Text(column.title)
        if column.key in kinds:
            head.append(f"\n{kinds[column.key]}", style="italic")
        justify = "right" if is_numeric(table, column) else "left"
        grid.add_column(head, justify=justify, no_wrap=justify == "right", vertical="bottom")
    cells = _cells(table)
    for row in cells:
        grid.add_row(*row)
    return grid


def _tall(table: Table) -> Group:
    """The first column as a heading, the others as `title: cell` below it."""
    blocks: list[RenderableType] = []
    for row in _cells(table):
        blocks.append(Text.assemble(row[0], style="bold"))
        for column, cell in zip(table.columns[1:], row[1:], strict=True):
            line = Text.assemble((f"{' '.join(column.title.split())}: ", "dim"), cell)
            blocks.append(Padding(line, (0, 0, 0, 2)))
    return Group(*blocks)


def _cells(table: Table) -> list[list[Text]]:
    """Formatted cells, best ones green, spreads dim."""
    best = {column.key: best_rows(table, column) for column in table.columns}
    return [
        [_cell(row.get(column.key), column, index in best[column.key]) for column in table.columns]
        for index, row in enumerate(table.rows)
    ]


def _cell(cell: object, column: Column, is_best: bool) -> Text:
    shown = Text(text(cell, column.digits), style="bold green" if is_best else "")  # type: ignore[arg-type]
    between = spread(cell, column.digits)  # type: ignore[arg-type]
    return Text.assemble(shown, (f"  {between}", "dim")) if between else shown
