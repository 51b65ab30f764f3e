"""Schedules that are worth drawing with under a budget, from what each choice costs and errs at each call: the best by
several ways to weigh errors, and those that anybody would try. Plain numbers, no torch.

Errors of single calls are taken to add up. They do not quite: a later call sees what an earlier one did. So these are
candidates, of which drawing tells the best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

FARTHEST = 3
"""Calls from a prediction to the last one that it stands for, and so null calls in a row at most."""
GAPS = FARTHEST + 1
"""Calls from one prediction to the next: null calls lie in between."""
GRID = 100
"""Units of cost in a mean call of the first UNet."""

POWERS = {"errors": 1, "squared errors": 2}
EMPHASES = {
    "all calls alike": 0.0,
    "early calls weigh more": 1.0,
    "early calls weigh much more": 3.0,
    "late calls weigh more": -1.0,
}
"""Powers of the share of calls that are still to come, which errors are multiplied with."""
NO_NULLS = "no call skipped"

Errors = NDArray[np.float64]
Schedule = tuple[str, ...]
"""Who serves each call."""


@dataclass(frozen=True)
class Choices:
    """What there is to choose from at each call, `calls` of them.

    `errors[unet][call]`, `costs[unet][call]` in whole units. The null model costs nothing; of a prediction made
    `distance` calls ago, `reuse[distance - 1][call]`, and of the line through two that are `gap` calls apart,
    `extrapolate[distance - 1][gap - 1][call]`. Infinite: not to be had.
    """

    errors: Mapping[str, Errors]
    costs: Mapping[str, NDArray[np.int64]]
    reuse: Errors
    extrapolate: Errors

    @property
    def calls(self) -> int:
        return self.reuse.shape[-1]

    def cost(self, schedule: Schedule) -> int:
        """Units that a schedule takes."""
        return sum(int(self.costs[name][call]) for call, name in enumerate(schedule) if name in self.costs)


def best(choices: Choices, budget: int) -> Schedule | None:
    """The schedule of least error whose cost is at most `budget` units; None if there is none.

    Dynamic programming, exact for these numbers. The state is what has been spent, how long ago the last prediction
    was made, and how far the one before lies from it. Of equal ones the cheapest.
    """
    if budget < 0:
        return None
    states = list(product(range(FARTHEST + 1), range(GAPS + 1)))
    at = {state: number for number, state in enumerate(states)}
    least = np.full((len(states), budget + 1), np.inf)
    least[at[0, 0], 0] = 0.0
    who = [*choices.errors, "reuse", "extrapolate"]
    steps: list[NDArray[np.int32]] = []
    """Of each call: for every state and amount spent, by whom, from which state and at what cost it was reached."""
    for call in range(choices.calls):
        following = np.full_like(least, np.inf)
        origins = np.zeros((*least.shape, 3), dtype=np.int32)
        for number, (distance, gap) in enumerate(states):
            if np.isinf(least[number]).all():
                continue
            for name, reached, error, cost in _moves(choices, call, distance, gap):
                if cost > budget or np.isinf(error):
                    continue
                offered = np.full(budget + 1, np.inf)
                offered[cost:] = least[number][: budget + 1 - cost] + error
                better = offered < following[at[reached]]
                following[at[reached]][better] = offered[better]
                origins[at[reached], better] = who.index(name), number, cost
        least = following
        steps.append(origins)
    spent = int(least.min(axis=0).argmin())
    number = int(least[:, spent].argmin())
    if np.isinf(least[number, spent]):
        return None
    names: list[str] = []
    for origins in reversed(steps):
        served, number, cost = map(int, origins[number, spent])
        names.append(who[served])
        spent -= cost
    return tuple(reversed(names))


def _moves(choices: Choices, call: int, distance: int, gap: int) -> Iterator[tuple[str, tuple[int, int], float, int]]:
    """Who may serve a call, the state afterwards, the error and the cost."""
    for name, errors in choices.errors.items():
        yield name, (0, distance + 1 if call else 0), float(errors[call]), int(choices.costs[name][call])
    if call == 0 or distance == FARTHEST:
        return
    reached = distance + 1, gap
    yield "reuse", reached, float(choices.reuse[distance, call]), 0
    if gap:
        yield "extrapolate", reached, float(choices.extrapolate[distance, gap - 1, call]), 0


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
