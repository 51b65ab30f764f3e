"""Fronts of time and quality by hand and by their laws."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asdm_cli.compare.pareto import ParetoPoint, front, quality_at, time_at

PLAIN = ParetoPoint(1.0, 100.0)
OURS = (ParetoPoint(0.4, 20.0), ParetoPoint(0.5, 30.0), PLAIN)
SHOTS = st.lists(st.builds(ParetoPoint, st.floats(0.01, 2), st.floats(0, 100)), max_size=12)


def test_front_by_hand() -> None:
    beaten = [ParetoPoint(0.6, 25.0), ParetoPoint(0.5, 28.0), ParetoPoint(1.0, 30.0), ParetoPoint(1.2, 100.0)]
    assert front([*beaten[:2], *OURS[::-1], *beaten[2:]]) == OURS
    assert front([]) == ()


@given(SHOTS)
def test_front_rises_and_beats_everything(shots: list[ParetoPoint]) -> None:
    line = front(shots)
    assert set(line) <= set(shots)
    assert bool(line) == bool(shots)
    assert all(one.time < next_.time and one.quality < next_.quality for one, next_ in pairwise(line))
    assert all(any(best.time <= shot.time and best.quality >= shot.quality for best in line) for shot in shots)


@given(SHOTS.filter(bool), st.floats(-10, 120), st.floats(0, 3))
def test_a_front_gives_its_shots_back_and_has_no_answer_beyond_its_ends(
    shots: list[ParetoPoint], quality: float, time: float
) -> None:
    line = front(shots)
    assert [time_at(line, shot.quality) for shot in line] == pytest.approx([shot.time for shot in line])
    assert [quality_at(line, shot.time) for shot in line] == pytest.approx([shot.quality for shot in line])
    slack, low, high = 1e-9, line[0], line[-1]
    taken, reached = time_at(line, quality), quality_at(line, time)
    assert (taken is None) == (quality > high.quality)
    assert (reached is None) == (time < low.time)
    assert taken is None or low.time - slack <= taken <= high.time + slack
    assert reached is None or low.quality - slack <= reached <= high.quality + slack


def test_between_shots_lies_a_straight_line() -> None:
    assert [time_at(OURS, quality) for quality in (25, 65)] == pytest.approx([0.45, 0.75])
    assert [quality_at(OURS, time) for time in (0.45, 0.75, 7)] == pytest.approx([25, 65, 100])
    assert (time_at(OURS, 19.9), time_at(OURS, 100.1), quality_at(OURS, 0.39)) == (0.4, None, None)
    assert (time_at((), 20), quality_at((), 1)) == (None, None)
