"""Reports in terminals, wide and narrow."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from asdm_cli.console import Terminal
from asdm_cli.records import Report
from asdm_cli.report.terminal import show
from tests.report import made

PAGE = Path("runs/x/report.html")


def shown(report: Report, width: int, page: Path | None = PAGE) -> str:
    console = Terminal(stderr=True)
    console.file, console.width = io.StringIO(), width
    show(report, console, page)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_80_columns_show_the_result_the_main_table_and_where_the_rest_is() -> None:
    lines = [line.rstrip() for line in shown(made.compared(), 80).splitlines()]
    assert lines[0] == "Everything"
    assert lines[1] == "plans 2: 3.30 times as fast, pictures as good (KID 0.031 → 0.039)"
    row = next(line for line in lines if line.startswith("tiny "))
    assert row.split() == ["tiny", "3.20", "1.80", "0.131", "21.7", "–"]
    assert "3 plots, 20 images and all figures: runs/x/report.html" in lines
    wide = shown(made.compared(), 160)
    assert "1.78–1.82" in wide, "intervals, where there is room"


@pytest.mark.parametrize(("width", "figures"), [(24, 1), (44, 3), (80, 5), (120, 5)])
def test_a_narrow_terminal_shows_fewer_figures_and_no_line_is_too_long(width: int, figures: int) -> None:
    lines = [line.rstrip() for line in shown(made.compared(), width).splitlines()]
    assert max(map(len, lines)) <= width
    assert "\\u" not in "".join(lines), "blanks that set figures under one another are no escapes"
    row = next(line for line in lines if line.startswith("tiny  "))
    assert len(re.sub(r"[\d.,]+–\S+", "", row).split()) == 1 + figures


def test_texts_are_no_markup() -> None:
    report = Report("eval", {"[bold]x[/]": {}}, facts={"[red]": "[/i]"}, notes=["[u]"])
    out = shown(report, 80, None)
    assert all(text in out for text in ("[bold]x[/]", "[red]", "[/i]", "[u]"))
    shown(made.odd(), 80, None)
