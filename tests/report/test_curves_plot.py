"""Curves: thinned honestly, inside their frame, and drawn whatever the figures are."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asdm_cli.report.axis import text_width
from asdm_cli.report.curves_plot import MOST, CurvesPlot, lay_out, thinned
from asdm_cli.report.document import Curves, Report

COLOURS = {"base": 0, "small": 1, "a": 2}
heights = st.floats(allow_nan=True, allow_infinity=True)


def places(points: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]


def drawn(line: list[tuple[float, float]], log: bool = False, width: float = 720) -> CurvesPlot:
    return lay_out(Curves("", "", "", {"a": line}, log), width, COLOURS)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(1, 20))
def test_thinning_keeps_ends_means_and_extremes(ys: list[float], most: int) -> None:
    points = [(3.0 * index, y) for index, y in enumerate(ys)]
    stretches = thinned(points, most)
    assert len(stretches) == min(most, len(points))
    if len(stretches) > 1:
        assert (stretches[0].x, stretches[-1].x) == (points[0][0], points[-1][0])
    assert all(a.x < b.x for a, b in pairwise(stretches))
    assert (min(each.low for each in stretches), max(each.high for each in stretches)) == (min(ys), max(ys))
    if len(ys) % len(stretches) == 0:
        assert fmean(each.mean for each in stretches) == pytest.approx(fmean(ys), abs=1e-6)


def test_thinning_takes_means_of_neighbours() -> None:
    points = [(float(index), y) for index, y in enumerate([1.0, 3.0, 5.0, 9.0, 2.0, 2.0])]
    found = [(each.x, each.mean, each.low, each.high) for each in thinned(points, 3)]
    assert found == [(0.0, 2.0, 1.0, 3.0), (2.5, 7.0, 5.0, 9.0), (5.0, 2.0, 2.0, 2.0)]


def test_a_short_line_is_drawn_as_it_is() -> None:
    points = [(float(index), float(index % 7)) for index in range(100)]
    (line,) = drawn(points).lines
    assert line.band == ""
    assert len(places(line.points)) == 100


@pytest.mark.parametrize("width", [348, 720])
def test_a_long_line_is_thinned_and_its_noise_stays(training: Report, width: float) -> None:
    curves = training.parts[0]
    assert isinstance(curves, Curves)
    plot = lay_out(curves, width, COLOURS)
    box = plot.frame.box
    assert [line.colour for line in plot.lines] == [0, 1]
    for line in plot.lines:
        means, edge = places(line.points), places(line.band.strip("Mz"))
        assert 100 < len(means) <= MOST
        assert (means[0][0], means[-1][0]) == (box.left, box.right)
        assert len(edge) == 2 * len(means)
        assert all(box.left <= x <= box.right and box.top <= y <= box.bottom for x, y in edge)
        upper, lower = edge[: len(means)], edge[len(means) :][::-1]
        assert all(up[1] <= mean[1] <= low[1] for up, mean, low in zip(upper, means, lower, strict=True))
        assert max(low[1] - up[1] for up, low in zip(upper, lower, strict=True)) > 20


@given(st.lists(heights, max_size=8), st.booleans(), st.sampled_from([348, 720]))
def test_whatever_the_figures_the_frame_holds_them(ys: list[float], log: bool, width: float) -> None:
    plot = drawn([(float(index), y) for index, y in enumerate(ys)], log, width)
    box = plot.frame.box
    assert 0 < box.left < 0.5 * width
    assert all(box.top - 0.1 <= tick.at <= box.bottom + 0.1 for tick in plot.frame.y_ticks)
    for line in plot.lines:
        assert all(box.left <= x <= box.right and box.top <= y <= box.bottom for x, y in places(line.points))


def test_figures_without_a_place_are_left_out_and_counted() -> None:
    points = [(0.0, 4.0), (1.0, 0.0), (2.0, math.nan), (3.0, math.inf), (4.0, -1.0), (5.0, 2.0)]
    logarithmic, linear = drawn(points, log=True), drawn(points)
    assert len(places(logarithmic.lines[0].points)) == 2
    assert len(places(linear.lines[0].points)) == 4
    assert logarithmic.left_out == ["a: 4 of 6 (not finite, or not above 0)"]
    assert linear.left_out == ["a: 2 of 6 (not finite)"]
    assert drawn(points[:1]).left_out == []


def test_a_line_of_one_point_is_a_dot_and_one_of_none_is_not_drawn() -> None:
    (line,) = drawn([(5.0, 1.0)]).lines
    assert line.alone == places(line.points)[0]
    assert drawn([]).lines == []
    assert drawn([(1.0, math.nan)]).lines == []


@pytest.mark.parametrize("last", [9, 100, 2000, 123_456, 10_000_000])
@pytest.mark.parametrize("width", [348, 720])
def test_ticks_across_do_not_touch(last: float, width: float) -> None:
    ticks = drawn([(0.0, 1.0), (float(last), 2.0)], width=width).frame.x_ticks
    assert len(ticks) >= 2
    for one, other in pairwise(ticks):
        assert other.at - one.at > (text_width(one.text) + text_width(other.text)) / 2


def test_a_tip_says_where_a_line_begins_and_ends() -> None:
    tips = [drawn(line).lines[0].tip for line in ([(0.0, 1.5), (1.0, 0.25), (2.0, 0.5)], [(0.0, 2.0), (1.0, math.nan)])]
    assert tips == ["a: from 1.5 to 0.5, lowest 0.25", "a: from 2 to n/a, lowest 2"]
