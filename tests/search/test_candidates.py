"""Candidates keep to their budget, and those that anybody would try are among them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings

from asdm_cli.recipe.patches import NULLS
from asdm_cli.search.dynamic_programme import Choices, candidates, least_cost, two_parts, weighed
from tests.search.test_dynamic_programme import INF, by_hand, error_of, everything, tables


@settings(max_examples=30, deadline=None)
@given(tables(4))
def test_candidates_keep_to_the_budget_and_can_be_had(choices: Choices) -> None:
    for budget, nulls in product((0, 3, 7, 30), (True, False)):
        found = candidates(choices, budget, nulls)
        assert all(choices.cost(schedule) <= budget and error_of(choices, schedule) < INF for schedule in found)
        assert nulls or not set().union(*found) & set(NULLS)
        assert bool(found) == any(nulls or not set(each) & set(NULLS) for *_, each in everything(choices, budget))
        if nulls and found:
            least = min(error_of(choices, schedule) for schedule in found)
            assert least == min(everything(choices, budget))[0], "the plain search is one of them"


@settings(max_examples=30, deadline=None)
@given(tables(4))
def test_least_cost_is_that_of_the_cheapest(choices: Choices) -> None:
    """Of schedules that skip as many calls as may be, whatever their errors."""
    free = np.zeros_like
    costless = Choices(choices.errors, choices.costs, free(choices.reuse), free(choices.extrapolate))
    for nulls in (True, False):
        schedules = [each for *_, each in everything(costless, 1000) if nulls or not set(each) & set(NULLS)]
        assert least_cost(costless, nulls) == min(map(choices.cost, schedules))


def test_two_parts_use_most_of_the_budget_in_both_orders() -> None:
    flat = Choices({"a": np.zeros(6), "b": np.ones(6)}, {"a": np.full(6, 10), "b": np.full(6, 4)}, *nothing(6))
    assert set(two_parts(flat, 45)) == {tuple("aaabbb"), tuple("bbbaaa")}, "42 units; one more a makes 48"
    assert set(two_parts(flat, 24)) == {tuple("bbbbbb")}
    assert not list(two_parts(flat, 23))


def nothing(calls: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((3, calls), INF), np.full((3, 4, calls), INF)


@pytest.mark.parametrize(("emphasis", "first", "last"), [(0.0, 10, 15), (1.0, 10, 15 / 6), (-1.0, 10, 15 * 6)])
def test_weights_by_what_is_still_to_come(emphasis: float, first: float, last: float) -> None:
    errors = weighed(by_hand(), 1, emphasis).errors["b"]
    assert (errors[0], errors[-1]) == pytest.approx((first, last))
    squared = weighed(by_hand(), 2, emphasis)
    assert squared.errors["b"][0] == 100
    assert squared.reuse[1, 0] == 200**2
    assert squared.extrapolate[2, 3, 0] == 3400**2
