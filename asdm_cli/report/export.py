"""A report for other programs: every record as CSV, the main table as Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import asdict, fields

from asdm_cli.records import Record, Report
from asdm_cli.report.tables import Column, Table, main, of_parts, parts

SPECIAL = str.maketrans(
    {each: f"\\{each}" for each in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
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
    kinds, rows = _table(report, lambda text: text.replace("|", "\\|"), "**{}**")
    rows.insert(1, ["---:" if number else "---" for number in kinds])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def to_latex(report: Report) -> str:
    """A `tabular` for the package booktabs."""
    kinds, rows = _table(report, lambda text: text.translate(SPECIAL), r"\textbf{{{}}}")
    head, *body = [" & ".join(row) + r" \\" for row in rows]
    begin = rf"\begin{{tabular}}{{{''.join('r' if number else 'l' for number in kinds)}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


FORMATS: dict[str, Callable[[Report], str]] = {"csv": to_csv, "markdown": to_markdown, "latex": to_latex}


def _table(report: Report, escape: Callable[[str], str], bold: str) -> tuple[list[bool], list[list[str]]]:
    """Which columns are figures; then the titles, and the rows of the main table, or of the first of parts."""
    found = (of_parts(title, records) for title, records in parts(report).items())
    table = main(report) or next(found, Table("", [Column("set-up")], []))
    head = [f"{column.title} ({column.unit})" if column.unit else column.title for column in table.columns]
    rows = [
        [(" ".join(f"{cell.text} {cell.spread and f'({cell.spread})'}".split()), cell.best) for cell in row]
        for row in table.rows
    ]
    told = [[bold.format(escape(text)) if best else escape(text) for text, best in row] for row in rows]
    return [column.number for column in table.columns], [list(map(escape, head)), *told]
