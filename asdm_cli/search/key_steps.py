"""From what a plain run's values have in common: forecasts that are fitted call by call, and the key steps from which
all others are forecast with the least error. Plain numbers, no torch.

A forecast of call k is a linear combination of the UNet's input at hand, if its output is forecast, and of the values
at the last key steps. All that least squares want to know of them are inner products, so one run that keeps those of
every two calls answers for all key steps there could be. An error of call k counts as what becomes of it in the end:
times its gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEPTH = 3
"""Key steps that a forecast looks back at."""
LONG = 64
"""Calls beyond which key steps are chosen as if it looked back at two: the table of three grows with the 4th power."""
RIDGE = 1e-8
"""Share of each one's own square: values of neighbouring calls are nearly the same."""

Matrix = NDArray[np.float64]
Combination = Callable[[int, Sequence[int]], Sequence[float]]
"""Call and key steps before it, newest first -> the weights of their values, by a rule that fits nothing."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Means over prompts of the inner products of what was recorded, T calls.

    `gram` is of all recorded vectors: for each group of rows in `groups` those of calls 0..T-1 (zeros where a call has
    no such rows), then, if `inputs`, the UNet's inputs. `mixes[k]`: how call k combines groups into a value, group ->
    weight; what it names, call k has. `gains[k]`: what an error of one at a call becomes in the final latents.
    """

    gram: Matrix
    groups: tuple[str, ...]
    mixes: tuple[tuple[tuple[str, float], ...], ...]
    gains: tuple[float, ...]
    inputs: bool = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Moments) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    @cached_property
    def _content(self) -> tuple[Any, ...]:
        return self.gram.tobytes(), self.groups, self.mixes, self.gains, self.inputs

    @property
    def calls(self) -> int:
        return len(self.mixes)

    def value(self, call: int, at: int) -> Matrix:
        """The value at a call as another combines its rows, in recorded vectors."""
        found = np.zeros(len(self.gram))
        for group, weight in self.mixes[call]:
            found[self.groups.index(group) * self.calls + at] = weight
        return found

    def input(self, call: int) -> Matrix:
        """Nothing, where values are features, which no input resembles."""
        found = np.zeros(len(self.gram))
        if self.inputs:
            found[len(self.groups) * self.calls + call] = 1
        return found

    def known(self, call: int, keys: Sequence[int]) -> list[int]:
        """Of these key steps, newest first, those before the first that lacks rows which this call has."""
        wanted = {group for group, _ in self.mixes[call]}
        have = [wanted <= {group for group, _ in self.mixes[key]} for key in keys]
        return list(keys[: have.index(False)] if False in have else keys)

    @cached_property
    def kinds(self) -> dict[tuple[tuple[str, float], ...], tuple[list[int], Matrix, Matrix]]:
        """Mix -> its calls, inner products of all calls' values so mixed, and of inputs with those values."""
        inputs = np.stack([self.input(call) for call in range(self.calls)])
        found = {}
        for mix in dict.fromkeys(self.mixes):
            calls = [call for call, each in enumerate(self.mixes) if each == mix]
            values = np.stack([self.value(calls[0], at) for at in range(self.calls)])
            found[mix] = calls, values @ self.gram @ values.T, inputs @ self.gram @ values.T
        return found

    @cached_property
    def squares(self) -> Matrix:
        """Of inputs."""
        start = len(self.groups) * self.calls
        return self.gram.diagonal()[start:] if self.inputs else np.zeros(self.calls)

    def errors(self, keys: Sequence[int], combine: Combination | None = None) -> Matrix:
        """Squared errors, times the squared gain, of all calls after the newest of these key steps (which come newest
        first) that are forecast from them: by `combine`, or as well as can be. Infinite where there is nothing."""
        found = np.full(self.calls, np.inf)
        for calls, values, inputs in self.kinds.values():
            later = [call for call in calls if call > keys[0]]
            if not later or not (known := self.known(later[0], keys)):
                continue
            gram = np.empty((len(later), len(known) + 1, len(known) + 1))
            gram[:, 0, 0], gram[:, 1:, 1:] = self.squares[later], values[np.ix_(known, known)]
            gram[:, 0, 1:] = gram[:, 1:, 0] = inputs[np.ix_(later, known)]
            target = np.concatenate([inputs[later, later][:, None], values[np.ix_(later, known)]], 1)
            if combine is None:
                weights = solved(gram, target)
            else:
                weights = np.array([[0.0, *combine(call, known)] for call in later])
            left = (
                values[later, later] - 2 * (weights * target).sum(1) + np.einsum("ki,kij,kj->k", weights, gram, weights)
            )
            found[later] = np.maximum(left, 0) * np.array(self.gains)[later] ** 2
        return found[keys[0] + 1 :]


def solved(gram: Matrix, target: Matrix) -> Matrix:
    """Weights of least squares, for each of several systems; 0 for what is nothing itself."""
    own = np.diagonal(gram, axis1=-2, axis2=-1)
    held = np.where(own > 0, own * (1 + RIDGE), 1.0)
    found = np.linalg.solve(gram + (held - own)[..., None] * np.eye(gram.shape[-1]), target[..., None])[..., 0]
    return np.asarray(found, np.float64)


def fitted(moments: Moments, keys: Sequence[int], carried: float = 0.0, corrected: bool = False) -> list[list[float]]:
    """Of each call the weights of its forecast: of the input, then of the last key steps' values, newest first.

    `carried`, 0 to 1: how much of the sum of all errors so far, each times its gain, a call makes up for beside its own
    error. `corrected`: key steps do, too: their own values, the first there, tell what the forecasts before missed.
    Calls without weights are what they are.
    """
    found: list[list[float]] = []
    sum_of_errors = np.zeros(len(moments.gram))
    for call in range(moments.calls):
        own, before = call in keys, sorted((key for key in keys if key < call), reverse=True)[:DEPTH]
        if own and (not corrected or call == 0):
            found.append([])
            continue
        known = moments.known(call, [call, *before] if own else before)
        basis = np.stack([moments.input(call), *(moments.value(call, key) for key in known)])
        truth = np.zeros(len(sum_of_errors)) if own else moments.value(call, call)
        gain = moments.gains[call]
        wanted = truth - carried * sum_of_errors / gain if gain else truth
        weights = solved(basis @ moments.gram @ basis.T, basis @ moments.gram @ wanted)
        sum_of_errors += gain * (weights @ basis - truth)
        found.append([float(each) for each in weights + (np.eye(len(weights))[1] if own else 0)])
    return found


class KeySteps:
    """The key steps with the least sum of squared errors, by their number; so many calls at the start among them.

    Dynamic programming, exact: a state is the last key steps, as many as a forecast looks at, and what is left between
    two key steps depends on nothing else. More key steps go on from where fewer ended.
    """

    def __init__(self, moments: Moments, combine: Combination | None = None, first: int = 1) -> None:
        self.calls, self.first = moments.calls, first
        self.depth = DEPTH if moments.calls <= LONG else DEPTH - 1
        self.sums = {
            keys: np.cumsum([0.0, *moments.errors(keys, combine)]) for keys in _states(moments.calls, self.depth)
        }
        self.found: list[tuple[int, ...] | None] = [None]
        self.least: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {(0,): (0.0, (0,))}
        """Of as many key steps as were looked for last: state -> the least sum up to its newest, and all of them."""

    def best(self, count: int) -> tuple[int, ...] | None:
        """So many, call 0 among them; None where any would leave a call with nothing to be forecast from."""
        while len(self.found) <= min(count, self.calls):
            self._one_more()
        return self.found[count] if count < len(self.found) else None

    def _one_more(self) -> None:
        count = len(self.found)
        total, path = min((spent + self.sums[state][-1], path) for state, (spent, path) in self.least.items())
        self.found.append(path if np.isfinite(total) and count >= self.first else None)
        following: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {}
        for state, (spent, path) in self.least.items():
            for key in range(count, count + 1) if count < self.first else range(state[0] + 1, self.calls):
                total = spent + self.sums[state][key - state[0] - 1]
                reached = (key, *state)[: self.depth]
                if reached not in following or total < following[reached][0]:
                    following[reached] = (total, (*path, key))
        self.least = following or self.least


key_steps = lru_cache(maxsize=8)(KeySteps)
"""Worked out once: a search asks again and again, for more or fewer of the same."""


def _states(calls: int, depth: int) -> list[tuple[int, ...]]:
    """Every way in which the last key steps, newest first, may lie: fewer than `depth` only back to call 0."""
    found: list[tuple[int, ...]] = [(0,)]
    for newest in range(1, calls):
        for size in range(1, depth):
            older = combinations(range(newest - 1, -1, -1), size)
            found += [(newest, *each) for each in older if size == depth - 1 or each[-1] == 0]
    return found


def summed(moments: Moments, keys: Sequence[int], combine: Combination | None = None) -> float:
    """The sum that the best key steps have least of."""
    depth, ordered = DEPTH if moments.calls <= LONG else DEPTH - 1, sorted(keys)
    total = 0.0
    for number, (key, following) in enumerate(zip(ordered, [*ordered[1:], moments.calls], strict=True)):
        before = ordered[max(0, number + 1 - depth) : number + 1]
        total += moments.errors(before[::-1], combine)[: following - key - 1].sum()
    return float(total)
