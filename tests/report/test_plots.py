"""Geometry of the plots: round ticks, everything inside, labels off each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asdm_cli.report import bars_plot, scatter_plot
from asdm_cli.report.axis import LogScale, Scale, around, around_log, round_step
from asdm_cli.report.document import Bars, Point, Scatter
from asdm_cli.report.labels import READABLE, Box, place

figures = st.floats(-1e9, 1e9).filter(lambda figure: figure == 0 or abs(figure) > 1e-9)


@pytest.mark.parametrize(
    ("low", "high", "count", "texts"),
    [
        (0, 1, 5, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 10, 4, ["0.0", "2.5", "5.0", "7.5", "10.0"]),
        (900, 1700, 4, ["1,000", "1,200", "1,400", "1,600"]),
        (-0.02, 0.02, 4, ["−0.02", "−0.01", "0.00", "0.01", "0.02"]),
        (0, 0.001, 4, ["0.00000", "0.00025", "0.00050", "0.00075", "0.00100"]),
        (0, 1e30, 4, ["0", "2.50e29", "5.00e29", "7.50e29", "1.00e30"]),
        (-2e-9, 2e-9, 4, ["−2e−9", "−1e−9", "0", "1e−9", "2e−9"]),
    ],
)
def test_ticks_are_round(low: float, high: float, count: int, texts: list[str]) -> None:
    assert [tick.text for tick in Scale(low, high, 0, 100).ticks(count)] == texts


@pytest.mark.parametrize(
    ("low", "high", "count", "texts"),
    [
        (0.015, 1.2, 8, ["0.02", "0.05", "0.1", "0.2", "0.5", "1"]),
        (0.0008, 1200, 8, ["0.001", "0.01", "0.1", "1", "10", "100", "1,000"]),
        (2e-9, 3, 8, ["1e−8", "1e−6", "1e−4", "1e−2", "1e0"]),
        (0.011, 0.019, 8, ["0.012", "0.014", "0.016", "0.018"]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_round(low: float, high: float, count: int, texts: list[str]) -> None:
    scale = LogScale(low, high, 0, 100)
    assert [tick.text for tick in scale.ticks(count)] == texts


def test_equal_factors_are_equal_distances() -> None:
    scale = LogScale(0.01, 100, 0, 400)
    assert [scale(figure) for figure in (0.01, 0.1, 1, 10, 100)] == [0, 100, 200, 300, 400]


@given(st.lists(st.floats(1e-200, 1e200), min_size=1, max_size=6), st.integers(6, 12))
def test_a_logarithmic_axis_holds_its_figures_and_has_ticks(known: list[float], count: int) -> None:
    scale = around_log(known, 50, 650)
    assert all(50 <= scale(figure) <= 650 for figure in known)
    ticks = scale.ticks(count)
    assert 2 <= len(ticks) <= 12
    assert all(49.9 <= tick.at <= 650.1 for tick in ticks)
    assert len({tick.text for tick in ticks}) == len(ticks)


@given(st.lists(figures, min_size=1, max_size=6))
def test_an_axis_holds_its_figures_and_has_ticks(known: list[float]) -> None:
    scale = around(known, 50, 650)
    assert all(50 <= scale(figure) <= 650 for figure in known)
    ticks = scale.ticks(5)
    assert 2 <= len(ticks) <= 8
    assert all(49.9 <= tick.at <= 650.1 for tick in ticks)
    assert len({tick.text for tick in ticks}) == len(ticks)


@given(st.floats(1e-9, 1e9))
def test_a_round_step_is_at_least_the_rough_one(rough: float) -> None:
    assert rough * 0.999 <= round_step(rough) <= 2.5 * rough


def test_labels_keep_off_each_other_and_inside() -> None:
    frame = Box(0, 0, 400, 300)
    crowd = [(120.0 + 40 * index, 150.0, f"contestant {index}") for index in range(4)] + [(395.0, 5.0, "corner")]
    dots = [Box(x - 5, y - 5, x + 5, y + 5) for x, y, _ in crowd]
    labels = place(crowd, dots, frame)
    assert [label.text for label in labels] == [text for _, _, text in crowd]
    corner = labels[-1].box
    assert corner.shared(frame) == pytest.approx(corner.area)
    pairs = [(a, b) for index, a in enumerate(labels) for b in labels[:index]]
    assert len(pairs) == 10
    assert sum(a.box.shared(b.box) for a, b in pairs) == 0


def test_labels_of_a_crowd_are_joined_with_their_points_or_left_out() -> None:
    frame = Box(0, 0, 400, 300)
    cluster = [(200.0 + index, 150.0 + index % 2, f"contestant {index}") for index in range(30)]
    labels = place(cluster, [Box(x - 5, y - 5, x + 5, y + 5) for x, y, _ in cluster], frame)
    shown = [label for label in labels if label.text]
    assert 8 < len(shown) < 30
    assert any(label.leader for label in shown)
    assert not any(label.leader for label in labels if not label.text)
    pairs = [(a.box, b.box) for index, a in enumerate(shown) for b in shown[:index]]
    assert max(a.shared(b) / min(a.area, b.area) for a, b in pairs) <= READABLE


def test_a_label_is_nearest_to_its_own_point() -> None:
    near = [(100.0, 100.0, "a"), (112.0, 100.0, "b"), (100.0, 120.0, "c")]
    labels = place(near, [], Box(0, 0, 400, 300))
    for own, label in enumerate(labels):
        distances = [label.box.distance((x, y)) for x, y, _ in near]
        assert distances[own] == min(distances)


def test_a_point_of_several_series_is_named_once() -> None:
    points = [Point(1.0, 5.0, "plain", "ours"), Point(2.0, 4.0, "half", "ours"), Point(1.0, 5.0, "plain", "theirs")]
    plot = scatter_plot.lay_out(Scatter("", "", "", points), 720, {"ours": 0, "theirs": 1})
    assert [mark.label.text for mark in plot.marks] == ["plain", "half", ""]
    assert [mark.tip.split(":")[0] for mark in plot.marks] == ["plain", "half", "plain"]


def test_points_of_a_named_series_are_joined_in_order_of_x() -> None:
    points = [Point(3, 1, "c", "s"), Point(1, 3, "a", "s"), Point(2, 2, "b"), Point(5, 5, "alone", "t")]
    plot = scatter_plot.lay_out(Scatter("", "", "", points), 720, {"s": 0, "t": 1, "b": 2})
    assert [colour for colour, _ in plot.lines] == [0]
    corners = [float(pair.split(",")[0]) for pair in plot.lines[0][1].split()]
    assert corners == sorted(corners)
    assert [mark.colour for mark in plot.marks] == [0, 0, 2, 1]


@given(st.lists(st.tuples(figures, figures), min_size=1, max_size=5), st.sampled_from([348, 720]))
def test_points_lie_in_the_frame(places: list[tuple[float, float]], width: float) -> None:
    points = [Point(x, y, "p", y_low=y - 1, y_high=y + 1) for x, y in places]
    plot = scatter_plot.lay_out(Scatter("", "", "", points), width, {})
    assert len(plot.marks) == len(points)
    for mark in plot.marks:
        assert plot.frame.box.left <= mark.x <= plot.frame.box.right
        assert mark.whisker is not None
        assert all(plot.frame.box.top <= end <= plot.frame.box.bottom for end in mark.whisker)


def test_bars_are_as_long_as_their_figures() -> None:
    data = Bars("", "ms", ["down.0", "mid"], {"a": [4.0, 2.0], "b": [1.0, 0.0]})
    plot = bars_plot.lay_out(data, 720, {"a": 0, "b": 1})
    lengths = [[bar.length for bar in group.bars] for group in plot.groups]
    longest = lengths[0][0]
    assert lengths == [[longest, pytest.approx(longest / 4, abs=0.1)], [pytest.approx(longest / 2, abs=0.1), 0.0]]
    assert plot.left + longest < 720
    assert [bar.text for group in plot.groups for bar in group.bars] == ["4.00", "1.00", "2.00", "0"]


def test_a_long_category_is_cut() -> None:
    plot = bars_plot.lay_out(Bars("", "", ["x" * 200], {"a": [1.0]}), 348, {"a": 0})
    assert plot.groups[0].name.endswith("…")
    assert plot.left <= 0.4 * 348
