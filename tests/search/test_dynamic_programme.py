"""The search is exact for its table: held against every schedule that there is."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asdm_cli.recipe.patches import NULLS
from asdm_cli.search.dynamic_programme import FARTHEST, GAPS, Choices, Schedule, best

INF = float("inf")


@st.composite
def tables(draw: st.DrawFn, most: int = 5) -> Choices:
    """Small ones of whole numbers, whose sums are exact; some predictions are not to be had."""
    calls = draw(st.integers(1, most))
    unets = ["a", "b", "c"][: draw(st.integers(1, 3 if calls < 5 else 2))]
    dice = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    null = lambda *shape: np.where(dice.random(shape) < 0.2, INF, dice.integers(0, 9, shape))  # noqa: E731
    return Choices(
        {name: dice.integers(0, 9, calls).astype(float) for name in unets},
        {name: dice.integers(0, 5, calls) for name in unets},
        null(FARTHEST, calls),
        null(FARTHEST, GAPS, calls),
    )


def error_of(choices: Choices, schedule: Schedule) -> float:
    """The sum of its errors; infinite for one that cannot be had."""
    total, distance, gap = 0.0, 0, 0
    for call, name in enumerate(schedule):
        if name in choices.errors:
            total += choices.errors[name][call]
            distance, gap = 0, distance + 1 if call else 0
            continue
        if call == 0 or distance == FARTHEST or (name == "extrapolate" and not gap):
            return INF
        total += choices.reuse[distance, call] if name == "reuse" else choices.extrapolate[distance, gap - 1, call]
        distance += 1
    return float(total)


def everything(choices: Choices, budget: int) -> Iterator[tuple[float, int, Schedule]]:
    """Error and cost of every schedule within the budget that can be had."""
    for schedule in product([*choices.errors, *NULLS], repeat=choices.calls):
        error, cost = error_of(choices, schedule), choices.cost(schedule)
        if cost <= budget and error < INF:
            yield error, cost, schedule


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(-1, 20))
def test_nothing_within_the_budget_is_better_or_as_good_and_cheaper(choices: Choices, budget: int) -> None:
    found = best(choices, budget)
    others = list(everything(choices, budget))
    if found is None:
        assert not others
        return
    assert (error_of(choices, found), choices.cost(found)) == min(others)[:2]


def test_the_comparison_sees_schedules_of_every_kind() -> None:
    dice = np.random.default_rng(0)
    choices = Choices(
        {name: dice.random(4) for name in "ab"},
        {name: np.ones(4, dtype=np.int64) for name in "ab"},
        dice.random((FARTHEST, 4)),
        dice.random((FARTHEST, GAPS, 4)),
    )
    seen = [schedule for *_, schedule in everything(choices, 4)]
    assert len(seen) == len(set(seen)) == 86, "a UNet first, no line before there are two predictions"
    assert {"extrapolate", "reuse", "a", "b"} == set().union(*seen)


def by_hand() -> Choices:
    """Six calls; what an error or a cost is made of can be read off its digits."""
    calls = np.arange(6)
    reuse = np.stack([100 * distance + calls for distance in range(1, FARTHEST + 1)]).astype(float)
    line = np.stack([[1000 * d + 100 * gap + calls for gap in range(1, GAPS + 1)] for d in range(1, FARTHEST + 1)])
    costs = {"a": np.full(6, 10), "b": calls}
    return Choices({"a": np.zeros(6), "b": 10.0 + calls}, costs, reuse, line.astype(float))


@pytest.mark.parametrize(
    ("schedule", "error", "cost"),
    [
        ("a a a a a a", 0, 60),
        ("b b a a a a", 10 + 11, 40 + 0 + 1),
        ("a reuse reuse reuse a a", (101 + 202 + 303), 30),
        ("a reuse a reuse b a", (101 + 103 + 14), 34),
        ("a a extrapolate extrapolate a a", (1102 + 2103), 40),
        ("a reuse a extrapolate a a", (101 + 1203), 40),
        ("a reuse reuse reuse a extrapolate", (101 + 202 + 303 + 1405), 20),
        ("a a reuse extrapolate a extrapolate", (102 + 2103 + 1305), 30),
        ("reuse a a a a a", INF, 50),
        ("a extrapolate a a a a", INF, 50),
        ("a reuse reuse reuse reuse a", INF, 20),
    ],
)
def test_what_a_schedule_errs_and_costs(schedule: str, error: float, cost: int) -> None:
    """Reuse by its distance; a line by its distance and by how far its two predictions lie apart."""
    choices = by_hand()
    assert (error_of(choices, tuple(schedule.split())), choices.cost(tuple(schedule.split()))) == (error, cost)


def test_a_budget_for_all_takes_the_best_and_one_below_the_cheapest_takes_nothing() -> None:
    choices = by_hand()
    assert best(choices, 60) == ("a",) * 6
    flat = Choices(choices.errors, {"a": np.full(6, 10), "b": np.full(6, 4)}, choices.reuse, choices.extrapolate)
    assert best(flat, 3) is None, "the first call needs a UNet"
    assert best(flat, -1) is None
    assert best(flat, 8) is not None, "two calls, and nulls after each"
    assert best(flat, 7) is None, "no null is farther than three calls from a prediction"
