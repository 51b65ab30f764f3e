"""Key steps: the golden vectors of the literature, and what holds for every schedule and length of run."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from asdm_cli.recipe.patches import Explicit, Schedule, Threshold

ADAPTER: TypeAdapter[Schedule] = TypeAdapter(Schedule)

COMPLEX = {
    2: "0,2,4,6,7,9,11,12,14,15,17,18,20,22,24,26,28,30,32,35,37,39,42,44,47",
    3: "0,3,6,8,11,13,15,17,20,22,25,28,32,35,38,42,46",
    4: "0,4,7,10,14,16,19,23,27,31,35,40,45",
    5: "0,5,9,13,17,21,26,31,37,43",
    6: "0,5,10,15,18,24,29,36,42",
    7: "0,6,11,15,21,27,34,42",
    8: "0,7,13,18,25,32,40",
    10: "0,9,17,26,37",
}
SIGNED = {
    2: "0,3,5,7,9,11,12,14,15,16,17,19",
    3: "0,4,7,10,12,14,15,16,18,20,23,26,29,33,37,41,45",
    4: "0,5,9,12,15,16,19,22,26,30,35,39,44",
    5: "0,6,11,14,15,19,24,29,35,42",
    6: "0,7,12,15,17,21,27,34,41",
    7: "0,7,13,15,19,25,32,40",
    8: "0,8,14,16,22,30,39",
    10: "0,11,15,24,35",
}
"""Of 50 calls about 15 with power 1.4, by interval. The signed row of interval 2 is known to its 12th step only."""
GOLDEN = [(form, interval) for form, rows in (("complex", COMPLEX), ("signed", SIGNED)) for interval in rows]
COUNTED = ("uniform", "early", "late", "center", "quadratic", "random")


def schedule(mode: str, **keys: object) -> Schedule:
    return ADAPTER.validate_python({"mode": mode, **keys})


def steps(mode: str, calls: int, **keys: object) -> tuple[int, ...]:
    found = schedule(mode, **keys).key_steps(calls)
    assert found is not None
    return found


@st.composite
def schedules(draw: st.DrawFn, modes: tuple[str, ...] = (*COUNTED, "explicit")) -> dict[str, Any]:
    """The keys of any schedule that is decided beforehand."""
    mode = draw(st.sampled_from(modes))
    if mode == "explicit":
        entry = st.integers(0, 80) | st.sampled_from(["5-9", "0-0", "20-", "0%-40%", "33.3%-70%", "60%-"])
        return {"mode": mode, "steps": draw(st.lists(entry, min_size=1, max_size=5, unique=True))}
    keys: dict[str, Any] = {"mode": mode, "interval": draw(st.integers(1, 70))}
    if mode in ("early", "late", "center"):
        keys["power"] = draw(st.floats(1, 10))
    if mode == "center":
        keys["center"] = draw(st.none() | st.integers(0, 70).map(float) | st.floats(0, 1e300))
        keys["form"] = draw(st.sampled_from(["complex", "signed"]))
    if mode == "random":
        keys["seed"] = draw(st.integers(0, 2**63 - 1))
    return keys


CALLS = st.integers(1, 60)


@pytest.mark.parametrize(("form", "interval"), GOLDEN)
def test_center_is_the_schedule_of_the_literature(form: str, interval: int) -> None:
    row = (COMPLEX if form == "complex" else SIGNED)[interval]
    wanted = tuple(int(step) for step in row.split(","))
    found = steps("center", 50, interval=interval, center=15, power=1.4, form=form)
    assert found[: len(wanted)] == wanted
    assert len(found) == math.ceil(50 / interval)
    assert len(wanted) == len(found) or (form, interval, len(wanted)) == ("signed", 2, 12)


def test_where_a_center_may_be() -> None:
    assert (
        steps("center", 50, interval=5)
        == steps("center", 50, interval=5, center=15)
        != steps("center", 50, interval=5, center=9)
    )
    assert steps("center", 100, interval=5) == steps("center", 100, interval=5, center=30), "three tenths of the run"
    assert steps("center", 20, interval=3, center=99) == steps("center", 20, interval=3, center=20), "its end"
    for form, interval in product(("complex", "signed"), (3, 5, 7)):
        early = steps("early", 50, interval=interval, power=1.5)
        assert steps("center", 50, interval=interval, center=0, power=1.5, form=form) == early, "the law to one side"


def test_vectors_by_hand() -> None:
    assert steps("uniform", 10, interval=3) == (0, 3, 6, 9)
    assert steps("early", 16, interval=4, power=2) == (0, 1, 4, 9), "squares"
    assert steps("late", 16, interval=4, power=2) == (0, 7, 12, 15), "distances 1, 3, 5, 7 in reverse"
    assert steps("early", 10, interval=3, power=1) == (0, 2, 5, 7), "even: 10 k / 4"
    assert steps("quadratic", 16, interval=4) == (0, 1, 4, 9)
    assert steps("quadratic", 50, interval=5) == (0, 1, 2, 4, 8, 12, 18, 24, 32, 40), "k^2 / 2; 0 and 1 moved on"
    assert steps("random", 50, interval=5, seed=7) == (0, 4, 7, 9, 11, 12, 22, 26, 34, 35), "the same on any machine"
    # Half way from -sqrt(2.5) to sqrt(7.5) is 0.579; its square 0.335 beyond 2.5 is within call 2.
    assert steps("center", 10, interval=5, center=2.5, power=2, form="signed") == (0, 2)
    # The real part of the squared way from sqrt(-18) to sqrt(18) is even; roots and powers lose the last bit.
    assert steps("center", 36, interval=6, center=18, power=2) == (0, 6, 12, 18, 24, 30)
    found = [steps("early", 50, interval=3, power=power) for power in (1.4, 1.38, 1.36)]
    assert found[0] == found[1] != found[2], "at 1.4 the law puts step 1 on call 0, so it falls by 0.02"
    assert Threshold(mode="threshold", threshold=0.1).key_steps(50) is None
    assert steps("explicit", 3, first=10**9, steps=["0-999999999", 10**9]) == (0, 1, 2), "a huge recipe is no memory"
    assert steps("uniform", 3, interval=10**9) == (0,)


@pytest.mark.parametrize(
    ("entries", "calls", "wanted"),
    [
        ([7], 10, (0, 7)),
        ([0, "5-9"], 8, (0, 5, 6, 7)),
        (["6-"], 9, (0, 6, 7, 8)),
        (["0%-40%"], 6, (0, 1, 2)),
        (["40%-100%"], 5, (0, 2, 3, 4)),
        (["33.3%-70%"], 1000, (0, *range(333, 700))),
        (["5-6", 6, "1-2", "90%-"], 10, (0, 1, 2, 5, 6, 9)),
    ],
)
def test_explicit_by_hand(entries: list[int | str], calls: int, wanted: tuple[int, ...]) -> None:
    assert Explicit(mode="explicit", steps=entries).key_steps(calls) == wanted


@given(st.integers(1, 999), st.integers(1, 300))
def test_shares_that_touch_share_no_call_and_miss_none(tenths: int, calls: int) -> None:
    cut = f"{tenths / 10}%"
    before, after = steps("explicit", calls, steps=[f"0%-{cut}"]), steps("explicit", calls, steps=[f"{cut}-100%"])
    assert {*before, *after} == set(range(calls))
    assert not set(before[1:]) & set(after[1:])
    assert all(10 * 100 * call < tenths * calls for call in before)


@given(schedules(), CALLS, st.integers(0, 70))
def test_steps_are_calls_in_order_with_the_first(keys: dict[str, Any], calls: int, first: int) -> None:
    found = steps(calls=calls, first=first, **keys)
    assert list(found) == sorted({*range(min(first, calls)), *steps(calls=calls, **keys), 0})
    assert set(found) <= set(range(calls))


@given(schedules(COUNTED), CALLS)
def test_there_are_as_many_as_the_interval_says(keys: dict[str, Any], calls: int) -> None:
    assert len(steps(calls=calls, **keys)) == math.ceil(calls / keys["interval"])
    assert steps(calls=calls, **keys | {"interval": 1}) == tuple(range(calls))


@given(CALLS, st.integers(1, 20), st.floats(1, 10))
def test_late_is_early_backwards(calls: int, interval: int, power: float) -> None:
    def distances(mode: str) -> list[int]:
        found = (*steps(mode, calls, interval=interval, power=power), calls)
        return [b - a for a, b in pairwise(found)]

    assert distances("late") == distances("early")[::-1]


def by(threshold: float, longest: int = 8) -> Threshold:
    return Threshold(mode="threshold", threshold=threshold, longest=longest)


@pytest.mark.parametrize(
    ("error", "distance", "order", "threshold", "wanted"),
    [
        (0.02, 1, 0, 0.1, 5),
        (0.1, 3, 0, 0.1, 3),
        (0.1, 3, 2, 0.1, 3),
        (0.01, 1, 1, 0.09, 3),
        (0.01, 1, 1, 0.0899, 2),
        (0.001, 1, 2, 0.064, 4),
        (0.4, 4, 0, 0.1, 1),
        (9.0, 1, 0, 0.1, 1),
        (0.0, 1, 0, 0.1, 8),
        (1e-9, 2, 0, 0.1, 8),
        (5e-324, 2, 0, 0.1, 8),
        (math.nan, 1, 0, 0.1, 1),
        (math.inf, 1, 0, 0.1, 1),
    ],
)
def test_next_distance_by_hand(error: float, distance: int, order: int, threshold: float, wanted: int) -> None:
    assert by(threshold).next_distance(error, distance, order) == wanted


ERRORS = st.floats(1e-6, 1e3)


@given(ERRORS, st.integers(1, 12), st.integers(0, 3), ERRORS, st.integers(1, 30))
def test_next_distance_is_the_largest(error: float, distance: int, order: int, threshold: float, longest: int) -> None:
    found = by(threshold, longest).next_distance(error, distance, order)

    def expected(far: int) -> float:
        return error * (far / distance) ** (order + 1)

    assert 1 <= found <= longest
    assert found == 1 or expected(found) <= threshold * (1 + 1e-6)
    assert found == longest or expected(found + 1) >= threshold * (1 - 1e-6)
