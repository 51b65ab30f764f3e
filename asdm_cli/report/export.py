"""A report for other programs: every record as CSV, the main table as Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import asdict, fields

from asdm_cli.records import Record, Report
from asdm_cli.report.tables import Cell, Column, Table, main, of_parts, parts

SPECIAL = {each: f"\\{each}" for each in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "×": r"$\times$",
    "∞": r"$\infty$",
    "→": r"$\to$",
    "–": "--",
}


def to_csv(report: Report) -> str:
    """Every record with all its fields."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [field.name for field in fields(Record)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in report.records)
    return out.getvalue().rstrip("\n")


def to_markdown(report: Report) -> str:
    table = _table(report)
    head = [_words(column).replace("|", "\\|") for column in table.columns]
    rules = ["---:" if column.number else "---" for column in table.columns]
    rows = [[_one_line(cell).replace("|", "\\|") for cell in row] for row in table.rows]
    rows = [
        [f"**{text}**" if cell.best else text for text, cell in zip(*each, strict=True)]
        for each in zip(rows, table.rows, strict=True)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rules, *rows])


def to_latex(report: Report) -> str:
    """A `tabular` for the package booktabs."""
    table = _table(report)
    kinds = "".join("r" if column.number else "l" for column in table.columns)
    rows = [
        [f"\\textbf{{{_latex(_one_line(cell))}}}" if cell.best else _latex(_one_line(cell)) for cell in row]
        for row in table.rows
    ]
    lines = [" & ".join(row) + r" \\" for row in [[_latex(_words(column)) for column in table.columns], *rows]]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


FORMATS: dict[str, Callable[[Report], str]] = {"csv": to_csv, "markdown": to_markdown, "latex": to_latex}


def _table(report: Report) -> Table:
    found = (of_parts(title, records) for title, records in parts(report).items())
    return main(report) or next(found, Table("", [Column("set-up")], []))


def _words(column: Column) -> str:
    return f"{column.title} ({column.unit})" if column.unit else column.title


def _one_line(cell: Cell) -> str:
    spread = f" ({cell.spread.strip()})" if cell.spread.strip() else ""
    return " ".join(f"{cell.text.strip()}{spread}".split())


def _latex(text: str) -> str:
    return re.sub(r"[&%$#_{}\\~^−×∞→–]", lambda found: SPECIAL[found[0]], text)
