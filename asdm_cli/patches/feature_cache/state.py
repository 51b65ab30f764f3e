"""One generation's memory: stored values by module, and what each call does. It lives from a generation's start to its
end, in one thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from asdm_cli.patches.base import Trajectory
from asdm_cli.patches.feature_cache import extrapolate
from asdm_cli.patches.feature_cache.plan import STORE, ResolvedPlan, Reused, StepPattern, StepPlan
from asdm_cli.recipe.patches import CacheRule, Threshold

ALL = ("all",)
"""The one group of rows where they never change."""


class FeatureHistory:
    """What one module hands on, of one group of rows. `known` are the places of its newest key steps, newest first."""

    def __init__(self, order: int):
        self.order = order
        self.known: tuple[float, ...] = ()
        self.differences: extrapolate.Differences | None = None
        self.owned: extrapolate.Differences | None = None
        self.scales: tuple[float, ...] = ()
        self.factors: tuple[float, ...] = ()
        self.repeats = False
        self.probed = False
        self.error: Tensor | None = None

    def prepare(self, place: float, stores: bool) -> None:
        """Set the numbers that this call multiplies with, before the UNet runs.

        Two calls may lie at one place (a sampler's timesteps may repeat): the later one's value counts there.
        """
        self.factors = extrapolate.factors(place, self.known, self.order)
        self.repeats = stores and self.known[:1] == (place,)
        if stores and not self.repeats:
            self.scales = extrapolate.scales(place, self.known, self.order)
            self.known = (place, *self.known[: self.order])

    def store(self, value: Tensor) -> None:
        if self.differences is None:
            self.differences = extrapolate.first(value, self.order)
            return
        if self.probed:
            self.error = extrapolate.relative_error(self.value(), value)
        before = self.differences
        self.differences = (value, *before[1:]) if self.repeats else extrapolate.differences(value, before, self.scales)

    def take_over(self) -> None:
        """Copy what is stored, if it is not copied yet: a CUDA graph's outputs are gone with the next run."""
        if self.differences is not None and self.differences is not self.owned:
            self.differences = self.owned = tuple(each.clone() for each in self.differences)

    def value(self) -> Tensor:
        assert self.differences is not None, "the first call of a generation computes everything"
        return extrapolate.extrapolate(self.differences, self.factors)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.differences or ())


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

    def is_key(self, call: int, history: FeatureHistory | None) -> bool:
        """Read the error of the last key step, if there is a new one; the only value that is read from the device."""
        if history is not None and history.error is not None:
            error, history.error = float(history.error), None
            self.next = self.last + self.schedule.next_distance(error, self.distance, self.measured_order)
        return call >= self.next or call < self.schedule.first

    def note_key(self, call: int, history: FeatureHistory | None) -> None:
        self.distance, self.last, self.next = max(1, call - self.last), call, call + 1
        known = len(history.known) if history else 0
        self.measured_order = min(history.order if history else 0, max(0, known - 1))


@dataclass
class CacheState:
    """Of one generation. `places`: name of a time axis -> where each call lies on it."""

    steps: StepPlan
    trajectory: Trajectory
    places: Mapping[str, Sequence[float]]
    call: int = -1
    memory: dict[str, ModuleHistory] = field(default_factory=dict)
    texts: Texts = field(default_factory=dict)
    owned_texts: dict[str, Tensor] = field(default_factory=dict)
    adaptive: dict[int, Adaptive] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    seen: set[str] = field(default_factory=set)
    """Groups of rows that were computed in full."""
    reused: list[Reused] = field(default_factory=list)
    """Of each call so far."""

    def __post_init__(self) -> None:
        for rule, keys in enumerate(self.steps.keys):
            schedule = self.rule(rule).schedule
            if keys is None and isinstance(schedule, Threshold):
                self.adaptive[rule] = Adaptive(schedule)

    @staticmethod
    def of(resolved: ResolvedPlan, trajectory: Trajectory) -> CacheState:
        axes: set[str] = {"step", *(rule.axis for rule in resolved.plan.rules)}
        places = {axis: [float(place) for place in trajectory.places(axis)] for axis in axes}
        return CacheState(trajectory.plan or resolved.steps(trajectory.calls), trajectory, places)

    def rule(self, index: int) -> CacheRule:
        return self.steps.resolved.plan.rules[index]

    def next(self, sample: Tensor, protect: bool) -> StepContext:
        """Decide what the next UNet call does. A new shape in the middle of a generation starts from nothing, and so
        does a group of rows that was not there before."""
        self.call += 1
        rows = self.trajectory.rows
        groups = ALL if rows is None else rows[self.call]
        shape = (len(sample) // len(groups), *sample.shape[1:])
        if shape != self.shape:
            self.shape = shape
            self.memory.clear()
            self.seen.clear()
        reused = self._reused(groups)
        self.seen |= set(groups)
        self.reused.append(reused)
        pattern = self.steps.pattern(reused)
        self._prepare(pattern, groups)
        return StepContext(pattern.roles, self.memory, self.texts, protect)

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

    def _reused(self, groups: Sequence[str]) -> Reused:
        reused: set[int] = set()
        if self.seen.issuperset(groups):
            reused |= self.steps.reused(self.call)
            reused |= {rule for rule, each in self.adaptive.items() if not each.is_key(self.call, self._probe(rule))}
        for rule, each in self.adaptive.items():
            if rule not in reused:
                each.note_key(self.call, self._probe(rule))
        return frozenset(reused)

    def _prepare(self, pattern: StepPattern, groups: Sequence[str]) -> None:
        for module in self.steps.stored:
            role = pattern.roles.get(module)
            if role is None:
                continue
            rule = self.rule(self.steps.resolved.by_module[module].rule)
            if module not in self.memory:
                self.memory[module] = ModuleHistory(rule.order)
            self.memory[module].prepare(self.places[rule.axis][self.call], role == STORE, groups)
        for index in self.adaptive:
            if probe := self._probe(index):
                probe.probed = True

    def _probe(self, rule: int) -> FeatureHistory | None:
        """The history that a threshold is measured on: that of the rule's last node in forward order, and of the last
        group of rows, which sees the prompt."""
        by_module = self.steps.resolved.by_module
        mine = [module for module, outlet in by_module.items() if outlet.rule == rule and module in self.memory]
        present = self.memory[mine[-1]].present if mine else []
        return present[-1] if present else None
