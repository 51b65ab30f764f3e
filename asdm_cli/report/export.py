"""A report for other programs: every record as CSV, the main table as Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from asdm_cli.records import Record, Report
from asdm_cli.report.tables import WHO, Cell, Column, Table, main, of_parts, others, parts

SPECIAL = str.maketrans(
    {each: f"\\{each}" for each in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}"}
    | {"−": "$-$", "×": r"$\times$", "∞": r"$\infty$", "→": r"$\to$"}
)


def to_csv(report: Report) -> str:
    """Every record with all its fields; behind them what its set-up is of, where that is one of many combinations."""
    out, varied = io.StringIO(), {name: about.get("varied", {}) for name, about in report.setups.items()}
    columns = dict.fromkeys([*(each.name for each in fields(Record)), *(key for own in varied.values() for key in own)])
    writer = csv.DictWriter(out, [*columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(record), **varied.get(record.setup, {})} for record in report.records)
    return out.getvalue().rstrip("\n")


def to_markdown(report: Report) -> str:
    """The main table, and those of other comparisons that it was put together with."""
    told = [(markdown(each, lambda text: text.replace("|", "\\|")), each.note) for each in _mains(report)]
    return "\n\n".join("\n\n".join(filter(None, each)) for each in told)


def to_latex(report: Report) -> str:
    """A `tabular` of each, for the package booktabs."""
    parts = [_tabular(table) for table in _mains(report)]
    below = [f"% {name}: {_line(card)}" for name, card in report.protocols.items()]
    return "\n".join(["\n\n".join(parts), *below])


def _tabular(table: Table) -> str:
    head, *body = [
        " & ".join(row) + r" \\" for row in _told(table, lambda text: text.translate(SPECIAL), r"\textbf{{{}}}")
    ]
    begin = rf"\begin{{tabular}}{{{''.join('r' if column.number else 'l' for column in table.columns)}}}"
    spreads = dict.fromkeys(f"{column.title}: {column.interval}" for column in table.columns if column.interval)
    told = [rf"{table.title}, for \usepackage{{booktabs}}", *([table.note] if table.note else [])]
    told += [f"in brackets: {'; '.join(spreads)}"] if spreads else []
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


def _mains(report: Report) -> list[Table]:
    """Or the first of parts, where nothing is known of whole set-ups."""
    first = main(report) or next((of_parts(title, records) for title, records in parts(report).items()), None)
    return [first or Table("", [Column("set-up")], []), *others(report)]
