"""The best schedule under a budget, from what each choice costs and errs at each call. Plain numbers, no torch.

Errors of single calls are taken to add up. They do not quite: a later call sees what an earlier one did. So this
gives candidates, by several ways to weigh errors, of which drawing tells the best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

FARTHEST = 3
"""Calls from a prediction to the last one that it stands for, and so null calls in a row at most."""
GAPS = FARTHEST + 1
"""Calls from one prediction to the next: null calls lie in between."""
GRID = 100
"""Units of cost in a mean call of the first UNet."""

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

    def error(self, schedule: Schedule) -> float:
        """The sum of its errors; infinite for one that cannot be had."""
        total, distance, gap = 0.0, 0, 0
        for call, name in enumerate(schedule):
            if name in self.errors:
                total += self.errors[name][call]
                distance, gap = 0, distance + 1 if call else 0
                continue
            if call == 0 or distance == FARTHEST or (name == "extrapolate" and not gap):
                return float("inf")
            total += self.reuse[distance, call] if name == "reuse" else self.extrapolate[distance, gap - 1, call]
            distance += 1
        return float(total)


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
    steps: list[dict[int, _Origins]] = []
    for call in range(choices.calls):
        following = np.full_like(least, np.inf)
        origins: dict[int, _Origins] = {}
        for number, state in enumerate(states):
            if np.isinf(least[number]).all():
                continue
            for name, reached, error, cost in _moves(choices, call, *state):
                _relax(following, origins, at[reached], least[number], (name, number, error, cost))
        least = following
        steps.append(origins)
    return _walk_back(least, steps)


class _Origins:
    """For each amount spent: by whom, and from which state and amount, it was reached."""

    def __init__(self, size: int):
        self.names = np.empty(size, dtype=object)
        self.states = np.zeros(size, dtype=np.int64)
        self.costs = np.zeros(size, dtype=np.int64)


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


def _relax(
    following: Errors,
    origins: dict[int, _Origins],
    target: int,
    before: Errors,
    move: tuple[str, int, float, int],
) -> None:
    name, number, error, cost = move
    if cost >= len(before) or np.isinf(error):
        return
    offered = np.full_like(before, np.inf)
    offered[cost:] = before[: len(before) - cost] + error
    better = offered < following[target]
    if not better.any():
        return
    following[target][better] = offered[better]
    found = origins.setdefault(target, _Origins(len(before)))
    found.names[better], found.states[better], found.costs[better] = name, number, cost


def _walk_back(least: Errors, steps: Sequence[dict[int, _Origins]]) -> Schedule | None:
    by_spent = least.min(axis=0)
    spent = int(by_spent.argmin())
    if np.isinf(by_spent[spent]):
        return None
    state = int(least[:, spent].argmin())
    names: list[str] = []
    for origins in reversed(steps):
        found = origins[state]
        names.append(found.names[spent])
        state, spent = int(found.states[spent]), spent - int(found.costs[spent])
    return tuple(reversed(names))
