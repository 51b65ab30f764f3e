"""Reports in terminals, wide and narrow."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from asdm_cli.report.document import Column, Report, Table
from asdm_cli.report.terminal import show


def shown(report: Report, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_wide_terminal_shows_rows(bench: Report) -> None:
    lines = [line.rstrip() for line in shown(bench, 120).splitlines()]
    row = next(line for line in lines if line.startswith("pocket "))
    assert row.split()[:3] == ["pocket", "8.80", "0.220"]
    assert "30.3–33.1" in row
    assert any(line.startswith("mid ") and line.split()[-1] == "0.00" for line in lines), "bars as a table"


@pytest.mark.parametrize("width", [20, 44, 80, 120])
def test_no_figure_is_lost_and_no_line_too_long(bench: Report, width: int) -> None:
    out = shown(bench, width)
    assert max(len(line.rstrip()) for line in out.splitlines()) <= width
    words = out.split()
    for figure in ("8.80", "0.220", "31.2", "1,622", "320"):
        assert figure in words


def test_plots_and_pictures_are_announced(evaluation: Report) -> None:
    out = " ".join(shown(evaluation, 100).split())
    assert "plot of 4 points; see report.html" in out
    assert "15 pictures; see report.html" in out


def test_texts_are_no_markup() -> None:
    report = Report("eval", "[bold]x[/]", "[/]", [Table("[red]", [Column("name", "[b]")], [{"name": "[/i]"}], "[u]")])
    out = shown(report, 80)
    assert all(text in out for text in ("[bold]x[/]", "[/]", "[red]", "[b]", "[/i]", "[u]"))
