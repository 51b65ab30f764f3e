"""A report for other programs: every record as CSV, the main table as Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from asdm_cli.records import Record, Report
from asdm_cli.report.tables import WHO, Cell, Column, Table, compared, main, named, of_parts, parts, whole

SPECIAL = str.maketrans(
    {each: f"\\{each}" for each in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}"}
    | {"−": "$-$", "×": r"$\times$", "∞": r"$\infty$", "→": r"$\to$"}
)


def to_csv(report: Report) -> str:
    """Every record with all its fields."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [field.name for field in fields(Record)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in report.records)
    return out.getvalue().rstrip("\n")


def to_markdown(report: Report) -> str:
    table = _main(report)
    below = f"\n\n{table.note}" if table.note else ""
    return markdown(table, lambda text: text.replace("|", "\\|")) + below


def to_latex(report: Report) -> str:
    """A `tabular` for the package booktabs."""
    table = _main(report)
    head, *body = [
        " & ".join(row) + r" \\" for row in _told(table, lambda text: text.translate(SPECIAL), r"\textbf{{{}}}")
    ]
    begin = rf"\begin{{tabular}}{{{''.join('r' if column.number else 'l' for column in table.columns)}}}"
    spreads = dict.fromkeys(f"{column.title}: {column.interval}" for column in table.columns if column.interval)
    told = [r"for \usepackage{booktabs}; bold: nothing is told to be better", *([table.note] if table.note else [])]
    told += [f"in brackets: {'; '.join(spreads)}"] if spreads else []
    told += [f"{name}: {_line(card)}" for name, card in report.protocols.items()]
    below = [f"% {' '.join(line.split())}" for line in told]
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", *below])


def _line(card: Mapping[str, Any]) -> str:
    """How figures were made, for whoever cites them."""
    return "; ".join(f"{key} {value}" for key, value in card.items() if key not in WHO and not isinstance(value, list))


FORMATS: dict[str, Callable[[Report], str]] = {"csv": to_csv, "markdown": to_markdown, "latex": to_latex}


def markdown(table: Table, escape: Callable[[str], str]) -> str:
    rows = _told(table, escape, "**{}**")
    rows.insert(1, ["---:" if column.number else "---" for column in table.columns])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _told(table: Table, escape: Callable[[str], str], bold: str) -> list[list[str]]:
    """The titles, then the rows."""
    head = [escape(f"{column.title} ({column.unit})" if column.unit else column.title) for column in table.columns]
    return [head, *([_cell(cell, escape, bold) for cell in row] for row in table.rows)]


def _cell(cell: Cell, escape: Callable[[str], str], bold: str) -> str:
    """Blanks that line figures up mean nothing here."""
    lines = f"{cell.text} {cell.spread and f'({cell.spread})'}".splitlines()
    text = escape("\n".join(re.sub(r"\s+", " ", line).strip() for line in lines))
    return bold.format(text) if cell.best else text


def _main(report: Report) -> Table:
    """The main table, or the first of parts. What a page has in other tables is named."""
    found = (of_parts(title, records) for title, records in parts(report).items())
    table = main(report)
    if table is None:
        return next(found, Table("", [Column("set-up")], []))
    first, *others = [name for name in named(report) if any(name in column for column in whole(report).values())]
    if gone := [name for name in others if name not in compared(report)]:
        told = f"Not here, since nothing of them was measured as of {first}: {', '.join(gone)}."
        table = replace(table, note=f"{table.note} {told}".strip())
    return table
