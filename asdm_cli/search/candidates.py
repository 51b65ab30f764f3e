"""Schedules that are worth drawing with under a budget: from several searches, and those that anybody would try."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations, product

import numpy as np

from asdm_cli.search.dynamic_programme import FARTHEST, Choices, Schedule, best

POWERS = {"errors": 1, "squared errors": 2}
EMPHASES = {
    "all calls alike": 0.0,
    "early calls weigh more": 1.0,
    "early calls weigh much more": 3.0,
    "late calls weigh more": -1.0,
}
"""Powers of the share of calls that are still to come, which errors are multiplied with."""
NO_NULLS = "no call skipped"


def candidates(choices: Choices, budget: int, nulls: bool) -> dict[Schedule, str]:
    """Schedules that cost at most `budget` units, each with how it was found; empty if there is none.

    `nulls`: also such as skip calls. Calls that stand for themselves are weighed by what they err, its square, and
    with more weight on early or late ones, because nobody knows how errors of several calls add up.
    """
    found: dict[Schedule, str] = {}
    for skips, power, emphasis in product((True, False) if nulls else (False,), POWERS, EMPHASES):
        asked = weighed(choices if skips else without_nulls(choices), POWERS[power], EMPHASES[emphasis])
        schedule = best(asked, budget)
        if schedule is not None:
            found.setdefault(schedule, ", ".join([power, emphasis, *([] if skips else [NO_NULLS])]))
    for schedule in two_parts(choices, budget):
        found.setdefault(schedule, "in two parts")
    return found


def weighed(choices: Choices, power: float, emphasis: float) -> Choices:
    """The same with other errors: to this power, times (share of calls still to come) to the power of `emphasis`."""
    calls = choices.calls
    weights = ((calls - np.arange(calls)) / calls) ** emphasis
    return replace(
        choices,
        errors={name: weights * errors**power for name, errors in choices.errors.items()},
        reuse=weights * choices.reuse**power,
        extrapolate=weights * choices.extrapolate**power,
    )


def without_nulls(choices: Choices) -> Choices:
    """The same, but that no null model is to be had."""
    nowhere = np.full_like(choices.extrapolate, np.inf)
    return replace(choices, reuse=nowhere[:, 0], extrapolate=nowhere)


def two_parts(choices: Choices, budget: int) -> Iterator[Schedule]:
    """Of every two UNets in either order, the schedule that uses most of the budget."""
    for one, other in permutations(choices.errors, 2):
        splits = [(one,) * split + (other,) * (choices.calls - split) for split in range(choices.calls + 1)]
        within = [schedule for schedule in splits if choices.cost(schedule) <= budget]
        if within:
            yield max(within, key=choices.cost)


def least_cost(choices: Choices, nulls: bool) -> int:
    """Units of the cheapest schedule that there is."""
    cheapest = [min(int(costs[call]) for costs in choices.costs.values()) for call in range(choices.calls)]
    spent = {0: cheapest[0]}
    for cost in cheapest[1:]:
        skipping = {distance + 1: units for distance, units in spent.items() if nulls and distance < FARTHEST}
        spent = {0: min(spent.values()) + cost, **skipping}
    return min(spent.values())
