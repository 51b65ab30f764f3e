"""The page of a report as Markdown, for a repository: all its figures, without pictures and plots."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from asdm_cli.records import Report
from asdm_cli.report import page
from asdm_cli.report.export import markdown
from asdm_cli.report.run_directory import RECIPE
from asdm_cli.report.tables import Table
from asdm_cli.report.words import headline

MARKUP = str.maketrans({"|": "\\|", "<": "&lt;", "&": "&amp;", "*": "\\*", "_": "\\_", "`": "\\`", "\n": "<br>"})
MADE = f"<!-- {page.GENERATOR} made by asdm show from report.json -->"
"""The first line: it is ours."""
DIGITS = 8
"""Of a recipe's digest."""


def render(report: Report, recipes: Mapping[str, str]) -> str:
    """What the result is, every table with what its intervals are, notes, and the cards of how the figures were made
    (machine, versions and date among them). `recipes` has the digest of each run's recipe."""
    title, summary = headline(report)
    named = str(report.facts.get("title") or f"asdm {report.verb}")
    texts = [MADE, f"# {named.translate(MARKUP)}", title.translate(MARKUP), *summary.translate(MARKUP).split("<br>")]
    found = [f"{run.translate(MARKUP)} `{digest}`" for run, digest in recipes.items()]
    texts.append(f"Recipes, by their digests: {', '.join(found)}." if found else "")
    for entry in page.entries(report):
        texts += _section(entry.table, entry.note)
    texts += ["## Notes"] * bool(report.notes) + ["\n".join(f"* {note.translate(MARKUP)}" for note in report.notes)]
    for name, card in report.protocols.items():
        texts += _section(page.card(name, card))
    return "\n\n".join(text for text in texts if text) + "\n"


def digest(run: Path) -> str:
    """Of a run's recipe with all its keys, wherever it was run."""
    lines = (run / RECIPE).read_text(encoding="utf-8").splitlines()
    return hashlib.sha256("\n".join(line for line in lines if not line.startswith("out:")).encode()).hexdigest()[
        :DIGITS
    ]


def _section(table: Table, note: str = "") -> list[str]:
    kinds = " or ".join(dict.fromkeys(column.interval for column in table.columns if column.interval))
    brackets = f"In brackets: {kinds}." if kinds else ""
    notes = [each.translate(MARKUP) for each in (brackets, table.note, note) if each]
    return [f"## {table.title.translate(MARKUP)}", markdown(table, lambda text: text.translate(MARKUP)), *notes]
