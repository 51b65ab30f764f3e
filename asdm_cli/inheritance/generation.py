"""One generation's memory: kept values by module, and what each call does. It lives from a pipeline call's start to
its end, in one thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.inheritance import forecast
from asdm_cli.inheritance.course import KEEP, Course, Pattern, Resting
from asdm_cli.recipe.patches import Rule, Threshold

ONE_CALL = (
    "several views, or a guidance that calls it alone, cannot be told apart: draw this without plans and turns "
    "(asdm_cli.remove, or remove() on the handle)"
)


class Memory:
    """What one module hands on. `known` are the coordinates of its newest key steps, newest first."""

    def __init__(self, order: int):
        self.order = order
        self.known: tuple[float, ...] = ()
        self.differences: forecast.Differences | None = None
        self.owned: forecast.Differences | None = None
        self.scales: tuple[float, ...] = ()
        self.factors: tuple[float, ...] = ()
        self.repeats = False
        self.probed = False
        self.error: Tensor | None = None

    def prepare(self, coordinate: float, keeps: bool) -> None:
        """Set the numbers that this call multiplies with, before the UNet runs.

        Two calls may lie at one coordinate (a sampler's timesteps may repeat): the later one's value counts there.
        """
        self.factors = forecast.factors(coordinate, self.known, self.order)
        self.repeats = keeps and self.known[:1] == (coordinate,)
        if keeps and not self.repeats:
            self.scales = forecast.scales(coordinate, self.known, self.order)
            self.known = (coordinate, *self.known[: self.order])

    def keep(self, value: Tensor) -> None:
        if self.differences is None:
            self.differences = forecast.first(value, self.order)
            return
        if self.probed:
            self.error = forecast.relative_error(forecast.forecast(self.differences, self.factors), value)
        before = self.differences
        self.differences = (value, *before[1:]) if self.repeats else forecast.differences(value, before, self.scales)

    def take_over(self) -> None:
        if self.differences is not None and self.differences is not self.owned:
            self.differences = self.owned = tuple(each.clone() for each in self.differences)

    def hand_on(self) -> Tensor:
        assert self.differences is not None, "the first call of a generation computes everything"
        return forecast.forecast(self.differences, self.factors)


Texts = dict[str, tuple[Tensor, int, Tensor]]
"""Projection of the text -> what it read, the version of that, and what it answered."""


class Announced:
    """The calls of a generation, held against those that were announced: one for each element of a list of timesteps.

    Which element it is, is told by where it lies in memory: nothing is read from a GPU, and a value may stand in the
    list more than once. Timesteps that are no elements of a list are only counted.
    """

    def __init__(self, calls: int):
        self.calls, self.count = calls, 0
        self._last: Tensor | None = None

    def next(self, timestep: Tensor | float) -> None:
        """Raises ModelError for a call beyond the last, and for a second one at a timestep."""
        self.count += 1
        if self.count > self.calls:
            what = f"the UNet was called {self.count} times where {self.calls} calls were announced"
            raise ModelError(f"{what}; {ONE_CALL}")
        element = timestep if isinstance(timestep, Tensor) and _is_element(timestep) else None
        if element is not None and self._last is not None and _is_no_later(element, self._last):
            raise ModelError(f"the UNet was called again at a timestep (call {self.count}); {ONE_CALL}")
        self._last = element  # and with it the list, whose memory nothing else can get meanwhile


def _is_element(timestep: Tensor) -> bool:
    """Or an expanded one."""
    return not any(timestep.stride()) and timestep.untyped_storage().nbytes() > timestep.element_size()


def _is_no_later(one: Tensor, other: Tensor) -> bool:
    """In the same list."""
    alike = one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    return alike and one.storage_offset() <= other.storage_offset()


@dataclass
class Call:
    """What the hooks of this call look up. `protect`: others write into features in place, so copies are kept.
    `compiled`: what was kept at this call are outputs of a graph."""

    roles: Mapping[str, int]
    memory: Mapping[str, Memory]
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

    def is_key(self, call: int, memory: Memory | None) -> bool:
        """Read the error of the last key step, if there is a new one; the only value that is read from the device."""
        if memory is not None and memory.error is not None:
            error, memory.error = float(memory.error), None
            self.next = self.last + self.schedule.next_distance(error, self.distance, self.measured_order)
        return call >= self.next or call < self.schedule.first

    def note_key(self, call: int, memory: Memory | None) -> None:
        self.distance, self.last, self.next = max(1, call - self.last), call, call + 1
        known = len(memory.known) if memory else 0
        self.measured_order = min(memory.order if memory else 0, max(0, known - 1))


@dataclass
class Generation:
    """`coordinates`: name of a coordinate -> where each call of the generation lies in it."""

    course: Course
    coordinates: Mapping[str, Sequence[float]]
    announced: Announced
    call: int = -1
    memory: dict[str, Memory] = field(default_factory=dict)
    texts: Texts = field(default_factory=dict)
    owned_texts: dict[str, Tensor] = field(default_factory=dict)
    adaptive: dict[int, Adaptive] = field(default_factory=dict)
    shape: torch.Size | None = None
    steps: list[Resting] = field(default_factory=list)

    def __post_init__(self) -> None:
        for rule, keys in enumerate(self.course.keys):
            schedule = self.rule(rule).schedule
            if keys is None and isinstance(schedule, Threshold):
                self.adaptive[rule] = Adaptive(schedule)

    def rule(self, index: int) -> Rule:
        return self.course.nodes.plan.rules[index]

    def begin(self, sample: Tensor, timestep: Tensor | float, protect: bool) -> Call:
        """Decide what the next UNet call does. A new shape in the middle of a generation starts from nothing."""
        self.announced.next(timestep)
        self.call += 1
        if sample.shape != self.shape:
            self.shape = sample.shape
            self.memory.clear()
        resting = self._resting()
        self.steps.append(resting)
        pattern = self.course.pattern(resting)
        self._prepare(pattern)
        return Call(pattern.roles, self.memory, self.texts, protect)

    def take_over(self) -> None:
        """Copy what the last call kept, if it is not copied yet: a CUDA graph's outputs are gone with the next run."""
        for memory in self.memory.values():
            memory.take_over()
        for name, (read, version, answer) in self.texts.items():
            if self.owned_texts.get(name) is not answer:
                self.owned_texts[name] = answer.clone()
                self.texts[name] = (read, version, self.owned_texts[name])

    def cache_bytes(self) -> int:
        kept = [tensor for memory in self.memory.values() for tensor in memory.differences or ()]
        return sum(tensor.nbytes for tensor in (*kept, *(answer for _, _, answer in self.texts.values())))

    def _resting(self) -> Resting:
        if not self.memory:
            resting: set[int] = set()
        else:
            resting = set(self.course.resting(self.call))
            resting |= {rule for rule, each in self.adaptive.items() if not each.is_key(self.call, self._probe(rule))}
        for rule, each in self.adaptive.items():
            if rule not in resting:
                each.note_key(self.call, self._probe(rule))
        return frozenset(resting)

    def _prepare(self, pattern: Pattern) -> None:
        for module in self.course.kept:
            role = pattern.roles.get(module)
            if role is None:
                continue
            rule = self.rule(self.course.nodes.rule_of[module])
            if module not in self.memory:
                self.memory[module] = Memory(rule.order)
            places = self.coordinates[rule.coordinate]
            self.memory[module].prepare(places[min(self.call, len(places) - 1)], keeps=role == KEEP)
        for rule_index in self.adaptive:
            if probe := self._probe(rule_index):
                probe.probed = True

    def _probe(self, rule: int) -> Memory | None:
        """The memory that a threshold is measured on: that of the rule's last node in forward order."""
        rule_of = self.course.nodes.rule_of
        mine = [module for module in rule_of if rule_of[module] == rule and module in self.memory]
        return self.memory[mine[-1]] if mine else None
