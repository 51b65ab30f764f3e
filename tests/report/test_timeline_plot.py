"""Geometry of a timeline: every call in one rectangle of its row, and as few of them as there can be."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asdm_cli.report.document import LETTERS, Timeline
from asdm_cli.report.timeline_plot import GAP, LEGEND, ROW, TimelinePlot, lay_out, legend

widths = st.sampled_from([348, 720])
courses = st.integers(1, 120).flatmap(
    lambda calls: st.lists(st.text("cid", min_size=calls, max_size=calls), min_size=1, max_size=4)
)


def drawn(cells: list[str], width: float) -> TimelinePlot:
    return lay_out(Timeline("", [f"up.{row}" for row in range(len(cells))], cells), width, {})


@given(courses, widths)
def test_every_call_is_covered_once_in_the_colour_of_its_state(cells: list[str], width: float) -> None:
    plot = drawn(cells, width)
    cell = (plot.right - plot.left) / len(cells[0])
    assert len(plot.rows) == len(cells)
    for row, letters in zip(plot.rows, cells, strict=True):
        ends = [plot.left, *(span.x + span.width for span in row.spans)]
        assert [span.x for span in row.spans] == pytest.approx(ends[:-1]), "each begins where the last one ends"
        assert ends[-1] == pytest.approx(plot.right)
        for call, letter in enumerate(letters):
            middle = plot.left + (call + 0.5) * cell
            assert [span.state for span in row.spans if span.x <= middle < span.x + span.width] == [LETTERS[letter]]


@given(courses, widths)
def test_equal_neighbours_are_one_rectangle(cells: list[str], width: float) -> None:
    for row, letters in zip(drawn(cells, width).rows, cells, strict=True):
        assert len(row.spans) == len(re.findall(r"c+|i+|d+", letters))


@given(courses, widths)
def test_rows_lie_below_each_other_inside_the_drawing(cells: list[str], width: float) -> None:
    plot = drawn(cells, width)
    assert [row.y for row in plot.rows] == [index * (ROW + GAP) for index in range(len(cells))]
    assert plot.rows[-1].y + ROW == plot.bottom < plot.height
    assert 0 < plot.left < plot.right <= width


@given(courses, widths)
def test_outlines_go_around_the_same_as_the_rectangles(cells: list[str], width: float) -> None:
    for row in drawn(cells, width).rows:
        assert set(row.outlines) == {span.state for span in row.spans}
        for state, outline in row.outlines.items():
            starts = [(float(x), float(y), float(w)) for x, y, w in re.findall(r"M([\d.]+),([\d.]+)h([\d.]+)", outline)]
            assert starts == [(span.x, row.y, span.width) for span in row.spans if span.state == state]


def test_tips_say_which_calls() -> None:
    row = lay_out(Timeline("", ["up.2.1.attn"], ["cciiiidc"]), 720, {}).rows[0]
    assert [span.tip for span in row.spans] == [
        "up.2.1.attn, calls 0–1: computed",
        "up.2.1.attn, calls 2–5: inherited",
        "up.2.1.attn, call 6: dead",
        "up.2.1.attn, call 7: computed",
    ]
    assert row.summary == "up.2.1.attn: 3 computed, 4 inherited, 1 dead"


@pytest.mark.parametrize(
    ("calls", "width", "texts"),
    [
        (1, 720, ["0"]),
        (6, 720, ["0", "1", "2", "3", "4", "5"]),
        (25, 348, ["0", "5", "10", "15", "20"]),
        (50, 720, [str(call) for call in range(0, 50, 2)]),
        (100, 348, ["0", "20", "40", "60", "80"]),
    ],
)
def test_ticks_are_round_and_below_their_call(calls: int, width: float, texts: list[str]) -> None:
    plot = drawn(["c" * calls], width)
    cell = (plot.right - plot.left) / calls
    assert [tick.text for tick in plot.ticks] == texts
    middles = [plot.left + (int(tick.text) + 0.5) * cell for tick in plot.ticks]
    assert [tick.at for tick in plot.ticks] == pytest.approx(middles, abs=0.06)


def test_seams_part_the_calls_where_there_is_room() -> None:
    assert len(drawn(["ci" * 25], 720).seams) == 49
    assert drawn(["ci" * 50], 348).seams == []


def test_a_long_name_is_cut_in_its_label_only() -> None:
    plot = lay_out(Timeline("", ["x" * 200], ["c"]), 348, {})
    assert plot.rows[0].name.endswith("…")
    assert plot.left <= 0.4 * 348
    assert "x" * 200 in plot.rows[0].spans[0].tip


def test_the_legend_has_every_state() -> None:
    assert set(LEGEND.values()) == set(LETTERS.values())
    assert legend(Timeline("", ["a"], ["c"]), {}) == list(LEGEND.items())


def test_letters_may_stand_for_other_words() -> None:
    timeline = Timeline("", ["searched"], ["aabr"], letters={"a": "original", "b": "base", "q": "tiny", "r": "reuse"})
    colours = {"original": 3, "base": 0, "tiny": 7, "reuse": 1}
    row = lay_out(timeline, 720, colours).rows[0]
    assert [span.state for span in row.spans] == ["c3", "c0", "c1"]
    assert row.spans[0].tip == "searched, calls 0–1: original"
    assert row.summary == "searched: 2 original, 1 base, 1 reuse"
    assert legend(timeline, colours) == [("original", "c3"), ("base", "c0"), ("reuse", "c1")], "who serves something"


def test_nothing_makes_an_empty_drawing() -> None:
    for empty in (Timeline("", [], []), Timeline("", ["a"], [""])):
        plot = lay_out(empty, 720, {})
        assert plot.ticks == [] == [span for row in plot.rows for span in row.spans]


@pytest.mark.parametrize(
    ("rows", "cells", "complaint"),
    [
        (["a"], ["cix"], "not x"),
        (["a"], ["ci", "ci"], "one letter per row and call"),
        (["a", "b"], ["ci", "c"], "one letter per row and call"),
    ],
)
def test_a_timeline_of_anything_else_is_refused(rows: list[str], cells: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Timeline("", rows, cells)
