"""One generation's memory: stored values by module, and what each call does. It lives from a generation's start to its
end, in one thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor

from asdm_cli.patches.base import Trajectory
from asdm_cli.patches.feature_cache.plan import STORE, ResolvedPlan, Reused
from asdm_cli.recipe.patches import Threshold

ALL = ("all",)
"""The one group of rows where they never change."""


class FeatureHistory:
    """What one module hands on, of one group of rows, extrapolated by Newton's divided differences.

    With values F at places c0 > c1 > c2 (of the newest key steps, newest first), D1 = (F0 - F1) / (c0 - c1) and
    D2 = (D1 - D1') / (c0 - c2), the value at c is F0 + (c - c0) D1 + (c - c0)(c - c1) D2: exact for polynomials of its
    order, however far apart the key steps are. Order 0 hands on F0 itself. Before enough is known of the change it is
    taken for zero, which is a lower order.
    """

    def __init__(self, order: int):
        self.order = order
        self.known: tuple[float, ...] = ()
        """c0, c1, c2."""
        self.differences: tuple[Tensor, ...] | None = None
        """F0, D1, D2: as many as the order says and one more, all of the feature's shape and dtype."""
        self.owned: tuple[Tensor, ...] | None = None
        self.scales: tuple[float, ...] = ()
        """1 / (c - c_k) of a new key step at c; 0 where there is no such place, or no distance."""
        self.factors: tuple[float, ...] = ()
        """Newton's products (c - c0), (c - c0)(c - c1)."""
        self.repeats = False
        self.probed = False
        self.error: Tensor | None = None

    def prepare(self, place: float, stores: bool) -> None:
        """Set the numbers that this call multiplies with, before the UNet runs.

        Two calls may lie at one place (a sampler's timesteps may repeat): the later one's value counts there.
        """
        distances, unknown = [place - each for each in self.known], [0.0] * self.order
        self.factors = tuple([*accumulate(distances[:-1], mul), *unknown][: self.order])
        self.repeats = stores and self.known[:1] == (place,)
        if stores and not self.repeats:
            inverse = [1 / distance if distance else 0.0 for distance in distances[: self.order]]
            self.scales = tuple([*inverse, *unknown][: self.order])
            self.known = (place, *self.known[: self.order])

    def store(self, value: Tensor) -> None:
        if self.differences is None:
            self.differences = (value, *(torch.zeros_like(value) for _ in range(self.order)))
            return
        if self.probed:
            self.error = relative_error(self.value(), value)
        found = [value]
        if self.repeats:
            found += self.differences[1:]
        else:
            for old, scale in zip(self.differences, self.scales, strict=False):  # the last has nothing to differ from
                found.append((found[-1] - old).mul_(scale))
        self.differences = tuple(found)

    def value(self) -> Tensor:
        """At the place of this call; of order 0 the kept tensor, not a copy."""
        assert self.differences is not None, "the first call of a generation computes everything"
        if not self.factors:
            return self.differences[0]
        value = torch.add(self.differences[0], self.differences[1], alpha=self.factors[0])
        for difference, factor in zip(self.differences[2:], self.factors[1:], strict=True):
            value.add_(difference, alpha=factor)
        return value

    def take_over(self) -> None:
        """Copy what is stored, if it is not copied yet: a CUDA graph's outputs are gone with the next run."""
        if self.differences is not None and self.differences is not self.owned:
            self.differences = self.owned = tuple(each.clone() for each in self.differences)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.differences or ())


def relative_error(guess: Tensor, truth: Tensor) -> Tensor:
    """Scalar: the norm of the difference over the norm of the truth, in float32."""
    norm = torch.linalg.vector_norm
    return norm(guess - truth, dtype=torch.float32) / norm(truth, dtype=torch.float32)


class ModuleHistory:
    """What one module hands on: each group of rows has a history of its own, as one may be missing at a call."""

    def __init__(self, order: int):
        self.order = order
        self.groups: dict[str, FeatureHistory] = {}
        self.present: list[FeatureHistory] = []

    def prepare(self, place: float, stores: bool, groups: Sequence[str]) -> None:
        self.present = [self.groups.setdefault(group, FeatureHistory(self.order)) for group in groups]
        for history in self.present:
            history.prepare(place, stores)

    def store(self, value: Tensor) -> None:
        parts = value.chunk(len(self.present)) if len(self.present) > 1 else (value,)
        for history, part in zip(self.present, parts, strict=True):
            history.store(part)

    def value(self) -> Tensor:
        values = [history.value() for history in self.present]
        return values[0] if len(values) == 1 else torch.cat(values)


Texts = dict[str, tuple[Tensor, int, Tensor]]
"""Projection of the text -> what it read, the version of that, and what it answered."""


@dataclass
class StepContext:
    """What the hooks of this call look up. `protect`: others write into features in place, so copies are stored.
    `compiled`: what was stored at this call are outputs of a graph."""

    roles: Mapping[str, int]
    memory: Mapping[str, ModuleHistory]
    texts: Texts
    protect: bool
    compiled: bool = False


@dataclass
class Adaptive:
    """A threshold rule while it runs: where its next key step is."""

    schedule: Threshold
    last: int = 0
    distance: int = 0
    measured_order: int = 0
    next: int = 0

    def is_key(self, call: int, history: FeatureHistory | None, must: bool) -> bool:
        """Read the error of the last key step, if there is a new one; the only value that is read from the device."""
        if history is not None and history.error is not None and not must:
            error, history.error = float(history.error), None
            self.next = self.last + self.schedule.next_distance(error, self.distance, self.measured_order)
        if not must and self.schedule.first <= call < self.next:
            return False
        self.distance, self.last, self.next = max(1, call - self.last), call, call + 1
        self.measured_order = min(history.order, max(0, len(history.known) - 1)) if history else 0
        return True


class CacheState:
    """Of one generation. `places`: name of a time axis -> where each call lies on it."""

    def __init__(self, resolved: ResolvedPlan, trajectory: Trajectory):
        self.rules, self.by_module = resolved.plan.rules, resolved.by_module
        self.steps, self.trajectory = trajectory.plan or resolved.steps(trajectory.calls), trajectory
        axes = {"step", *(rule.axis for rule in self.rules)}
        self.places = {axis: [float(place) for place in trajectory.places(axis)] for axis in axes}
        schedules = {index: self.rules[index].schedule for index, keys in enumerate(self.steps.keys) if keys is None}
        self.adaptive = {index: Adaptive(each) for index, each in schedules.items() if isinstance(each, Threshold)}
        self.call = -1
        self.memory: dict[str, ModuleHistory] = {}
        self.texts: Texts = {}
        self.owned_texts: dict[str, Tensor] = {}
        self.shape: tuple[int, ...] = ()
        self.seen: set[str] = set()
        """Groups of rows that were computed in full."""
        self.reused: list[Reused] = []
        """Of each call so far."""

    def next(self, sample: Tensor, protect: bool) -> StepContext:
        """Decide what the next UNet call does. A new shape in the middle of a generation starts from nothing, and so
        does a group of rows that was not there before."""
        self.call += 1
        groups = ALL if self.trajectory.rows is None else self.trajectory.rows[self.call]
        shape = (len(sample) // len(groups), *sample.shape[1:])
        if shape != self.shape:
            self.shape = shape
            self.memory.clear()
            self.seen.clear()
        new = not self.seen.issuperset(groups)
        self.seen |= set(groups)
        kept = {index for index, each in self.adaptive.items() if not each.is_key(self.call, self._probe(index), new)}
        reused = frozenset(kept) if new else self.steps.reused(self.call) | kept
        self.reused.append(reused)
        roles = self.steps.roles(reused)
        for module in self.steps.stored.intersection(roles):
            rule = self.rules[self.by_module[module].rule]
            history = self.memory.setdefault(module, ModuleHistory(rule.order))
            history.prepare(self.places[rule.axis][self.call], roles[module] == STORE, groups)
        for index in self.adaptive:
            if probe := self._probe(index):
                probe.probed = True
        return StepContext(roles, self.memory, self.texts, protect)

    def _probe(self, rule: int) -> FeatureHistory | None:
        """The history that a threshold is measured on: that of the rule's last node in forward order, and of the last
        group of rows, which sees the prompt."""
        mine = [module for module, outlet in self.by_module.items() if outlet.rule == rule and module in self.memory]
        present = self.memory[mine[-1]].present if mine else []
        return present[-1] if present else None

    def take_over(self) -> None:
        """Copy what the last call stored, if it is not copied yet."""
        for module in self.memory.values():
            for history in module.groups.values():
                history.take_over()
        for name, (read, version, answer) in self.texts.items():
            if self.owned_texts.get(name) is not answer:
                self.owned_texts[name] = answer.clone()
                self.texts[name] = (read, version, self.owned_texts[name])

    @property
    def cache_bytes(self) -> int:
        stored = sum(history.nbytes for module in self.memory.values() for history in module.groups.values())
        return stored + sum(answer.nbytes for _, _, answer in self.texts.values())
