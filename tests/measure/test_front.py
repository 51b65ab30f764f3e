"""Fronts of time and fidelity by hand and by their laws, and the tables that are read off them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from asdm_cli.measure.front import Shot, front, psnr_at, time_at
from asdm_cli.measure.front_tables import LEVELS_DB, NOTE, equal_fidelity, equal_speed
from hypothesis import given
from hypothesis import strategies as st

PLAIN = Shot(1.0, 100.0)
OURS = (Shot(0.4, 20.0), Shot(0.5, 30.0), PLAIN)
PEER = (Shot(0.3, 10.0), Shot(0.5, 20.0), Shot(0.8, 40.0), Shot(1.0, 45.0))
SHOTS = st.lists(st.builds(Shot, st.floats(0.01, 2), st.floats(0, 100)), max_size=12)


def test_front_by_hand() -> None:
    beaten = [Shot(0.6, 25.0), Shot(0.5, 28.0), Shot(1.0, 30.0), Shot(1.2, 100.0)]
    assert front([*beaten[:2], *OURS[::-1], *beaten[2:]]) == OURS
    assert front([]) == ()


@given(SHOTS)
def test_front_rises_and_beats_everything(shots: list[Shot]) -> None:
    line = front(shots)
    assert set(line) <= set(shots)
    assert bool(line) == bool(shots)
    assert all(one.time < next_.time and one.psnr < next_.psnr for one, next_ in pairwise(line))
    assert all(any(best.time <= shot.time and best.psnr >= shot.psnr for best in line) for shot in shots)


@given(SHOTS.filter(bool))
def test_reading_a_front_at_its_shots_gives_them_back(shots: list[Shot]) -> None:
    line = front(shots)
    assert [time_at(line, shot.psnr) for shot in line] == pytest.approx([shot.time for shot in line])
    assert [psnr_at(line, shot.time) for shot in line] == pytest.approx([shot.psnr for shot in line])


@given(SHOTS.filter(bool), st.floats(-10, 120), st.floats(0, 3))
def test_between_its_ends_a_front_has_an_answer_and_beyond_them_none(
    shots: list[Shot], psnr: float, time: float
) -> None:
    line = front(shots)
    slack, low, high = 1e-9, line[0], line[-1]
    taken, reached = time_at(line, psnr), psnr_at(line, time)
    assert (taken is None) == (not low.psnr <= psnr <= high.psnr)
    assert (reached is None) == (time < low.time)
    assert taken is None or low.time - slack <= taken <= high.time + slack
    assert reached is None or low.psnr - slack <= reached <= high.psnr + slack


def test_between_shots_lies_a_straight_line() -> None:
    assert [time_at(OURS, psnr) for psnr in (25, 65)] == pytest.approx([0.45, 0.75])
    assert [psnr_at(OURS, time) for time in (0.45, 0.75, 7)] == pytest.approx([25, 65, 100])
    assert (time_at(OURS, 19.9), time_at(OURS, 100.1), psnr_at(OURS, 0.39)) == (None, None, None)
    assert (time_at((), 20), psnr_at((), 1)) == (None, None)


def test_equal_fidelity_by_hand() -> None:
    (table,) = equal_fidelity(OURS, {"peer": PEER, "fewer": (Shot(0.6, 22.0), PLAIN)}, "PSNR, dB")
    rows = {row["level_db"]: row for row in table.rows}
    assert list(rows) == list(LEVELS_DB)
    assert {column.key for column in table.columns} == set(rows[25])
    assert table.note == NOTE
    # ours 0.45; the peer 0.5 + 5 / 20 of 0.3; fewer 0.6 + 3 / 78 of 0.4
    wanted = {"asdm_pct": 45.0, "peer_pct": 57.5, "fewer_pct": 60 + 40 * 3 / 78}
    wanted |= {"peer_ratio": 57.5 / 45, "fewer_ratio": wanted["fewer_pct"] / 45, "best_ratio": 57.5 / 45}
    assert rows[25] == pytest.approx({"level_db": 25, **wanted})
    assert (rows[50]["peer_pct"], rows[50]["peer_ratio"]) == (None, None)
    assert rows[50]["best_ratio"] == rows[50]["fewer_ratio"]


def test_equal_fidelity_where_there_is_nothing_to_compare() -> None:
    assert equal_fidelity(OURS, {}, "PSNR") == []
    assert equal_fidelity((Shot(0.4, 3.0), Shot(1.0, 9.0)), {"peer": PEER}, "PSNR") == []
    (table,) = equal_fidelity(OURS, {"nobody": ()}, "PSNR")
    assert {row["best_ratio"] for row in table.rows} == {None}


def test_equal_speed_by_hand() -> None:
    (table,) = equal_speed(OURS, PEER, "PSNR")
    assert [row["time_pct"] for row in table.rows] == pytest.approx([30, 50, 80, 100])
    assert [row["gain_db"] for row in table.rows] == [None, *map(pytest.approx, (10, 32, 55))]
    assert [column.key for column in table.columns] == list(table.rows[0])
    assert equal_speed((), PEER, "PSNR") == equal_speed(OURS, (), "PSNR") == []
