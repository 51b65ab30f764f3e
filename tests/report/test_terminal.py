"""Reports in terminals, wide and narrow."""

from __future__ import annotations

import io
import math

import pytest

from asdm_cli.console import Terminal
from asdm_cli.report.document import Column, Curves, Report, Section, Table, Timeline
from asdm_cli.report.terminal import show


def shown(report: Report, width: int) -> str:
    console = Terminal(stderr=True)
    console.file, console.width = io.StringIO(), width
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
    assert "█" in out
    assert "\\u" not in out, "blanks that set figures under one another are no escapes"
    words = out.split()
    for figure in ("8.80", "0.220", "31.2", "1,622", "320"):
        assert figure in words


def test_a_section_is_a_line_a_title_and_a_note(bench: Report) -> None:
    lines = [
        line.rstrip()
        for line in shown(Report("run", "All", "", [Section("Cost", "Low."), *bench.parts]), 60).splitlines()
    ]
    at = lines.index("Cost")
    assert set(lines[at - 1]) == {"─"}
    assert lines[at + 1 : at + 4] == ["Low.", "", "Cost"], "and then its first part"


def test_of_a_folded_section_only_the_head_is_shown(bench: Report) -> None:
    parts = [*bench.parts, Section("Folded", "Its note.", folded=True), *bench.parts, Section("Open"), bench.parts[0]]
    text = shown(Report("run", "All", "", parts), 120)
    title = bench.parts[0].title
    assert text.count(title) == 2, "before it, and behind it"
    assert "Folded  see report.html" in text
    assert "Its note." in text


def test_plots_and_pictures_are_announced(evaluation: Report) -> None:
    out = " ".join(shown(evaluation, 100).split())
    assert "plot of 4 points; see report.html" in out
    assert "15 pictures; see report.html" in out


def test_a_timeline_has_a_character_per_call_and_a_legend(bench: Report) -> None:
    lines = [line.rstrip() for line in shown(bench, 80).splitlines()]
    at = lines.index("What each call computes")
    assert lines[at + 1 : at + 7] == [
        "              0",
        "down.0.0.res  ███████████",
        "up.2.1.attn   █▒▒▒██▒▒▒█▒",
        "mid           █···█····█·",
        "█ computed  ▒ inherited  · dead",
        "Key steps: 0, 4, 9.",
    ]


def test_other_letters_stand_for_themselves() -> None:
    letters = {"a": "original", "b": "base", "q": "tiny"}
    lines = shown(Report("switch", "", "", [Timeline("", ["half"], ["aaabbb"], letters=letters)]), 80).splitlines()
    assert [line.rstrip() for line in lines[-4:-1]] == ["      0", "half  aaabbb", "a original  b base"]


def test_a_large_timeline_is_cut_and_says_so() -> None:
    rows = [f"node {index} of a long name" for index in range(60)]
    lines = shown(Report("generate", "", "", [Timeline("", rows, ["c" + "i" * 99] * 60)]), 38).splitlines()
    drawn = [line for line in lines if "▒▒" in line]
    assert len(drawn) == 40
    assert {len(line.rstrip()) for line in drawn} == {38}
    assert drawn[39] == "node 39 of a l…  █" + "▒" * 20
    assert "                 0         10" in [line.rstrip() for line in lines], "no half of the number 20"
    assert "20 more rows and 79 more calls; see report.html" in " ".join(" ".join(lines).split())


@pytest.mark.parametrize("width", [24, 80])
def test_curves_tell_where_they_begin_and_end(training: Report, width: int) -> None:
    out = shown(training, width)
    assert max(len(line.rstrip()) for line in out.splitlines()) <= width
    assert "plot of 2 lines; see report.html" in " ".join(out.split())
    assert "plot of 1 line; see report.html" in " ".join(out.split())
    assert {"first", "last", "lowest", "base", "small", "0.000100"} <= set(out.replace(":", "").split())
    assert "Less is better." in out


def test_odd_curves_make_a_table() -> None:
    lines = {"[b]": [(0.0, 2.5), (1.0, -math.inf), (2.0, math.nan)], "nothing": []}
    rows = [line.split() for line in shown(Report("", "", "", [Curves("", "", "", lines)]), 80).splitlines()]
    assert ["[b]", "2.50", "n/a", "2.50"] in rows
    assert ["nothing", "–", "–", "–"] in rows


def test_texts_are_no_markup() -> None:
    report = Report("eval", "[bold]x[/]", "[/]", [Table("[red]", [Column("name", "[b]")], [{"name": "[/i]"}], "[u]")])
    out = shown(report, 80)
    assert all(text in out for text in ("[bold]x[/]", "[/]", "[red]", "[b]", "[/i]", "[u]"))
