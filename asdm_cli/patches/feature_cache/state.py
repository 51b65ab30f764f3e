"""One generation's memory: stored values by module, and what each call does. It lives from a generation's start to its
end, in one thread."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.patches.base import PROMPT, Trajectory
from asdm_cli.patches.cache_plan import REUSE, STORE, WHOLE, ResolvedPlan, Reused
from asdm_cli.patches.feature_cache.forecast import NEWEST, Forecast, Weights, forecast_of
from asdm_cli.patches.feature_cache.path import LatentPath
from asdm_cli.patches.noise import in_space
from asdm_cli.recipe.patches import MULTISTEP, CacheRule, Schedule, Span, Stability, Threshold

ALL = ("all",)
"""The one group of rows where they never change."""
SAME_TIMESTEP = 0.01
OUTPUT = (0.0, 1.0)
"""Of the input, and of the output: the output as the model predicts it."""


class FeatureHistory:
    """What one module hands on, of one group of rows: its values at the last key steps, and what calls make of them."""

    def __init__(self, forecast: Forecast):
        self.forecast = forecast
        self.known: tuple[float, ...] = ()
        """Places of the values, newest first, no two alike."""
        self.values: tuple[Tensor, ...] = ()
        self.weights: tuple[float, ...] = ()
        self.latent_weight = 0.0
        """Of this call; apart, as torch's compiler reads them."""
        self.corrected: Weights = NEWEST
        """Of a key step, once its value is stored."""
        self.kept: tuple[int, ...] = ()
        """Which of the older values stay when this call's is stored."""
        self.owned: Tensor | None = None
        self.probed = False
        self.error: Tensor | None = None

    def prepare(self, place: float, call: int, stores: bool) -> None:
        """Set the numbers that this call multiplies with, before the UNet runs.

        Several calls may lie at one place (a sampler's timesteps may repeat): the last one's value counts there.
        """
        self.weights, self.latent_weight = self.forecast.weights(self.known, place, call) if self.known else NEWEST
        if stores:
            older = [number for number, known in enumerate(self.known) if known != place]
            self.kept = tuple(older[: self.forecast.depth - 1])
            self.known = (place, *(self.known[number] for number in self.kept))
            self.corrected = self.forecast.correction(self.known, call)

    def store(self, value: Tensor) -> None:
        if self.probed and self.values:
            self.error = relative_error(self.value(), value)
        self.values = (value, *[self.values[number] for number in self.kept])
        self.weights, self.latent_weight = self.corrected

    def value(self, latent: Tensor | None = None) -> Tensor:
        """At the place of this call; without weights the kept tensor, not a copy. Sums are of float32 at least."""
        assert self.values != (), "the first call of a generation computes everything"
        newest = self.values[0]
        if not self.weights:
            return newest
        wide = torch.promote_types(newest.dtype, torch.float32)
        value = newest.to(wide) * self.weights[0]
        for weight, each in zip(self.weights[1:], self.values[1:], strict=False):
            value = torch.add(value, each.to(wide), alpha=weight)
        if latent is not None and self.latent_weight:
            value = torch.add(value, latent.to(wide), alpha=self.latent_weight)
        return value.to(newest.dtype)

    def take_over(self) -> None:
        """Copy what was stored last, if it is not copied yet: a CUDA graph's outputs are gone with the next run."""
        if self.values and self.values[0] is not self.owned:
            self.owned = self.values[0].clone()
            self.values = (self.owned, *self.values[1:])

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.values)


def relative_error(guess: Tensor, truth: Tensor) -> Tensor:
    """Scalar: the norm of the difference over the norm of the truth, in float32."""
    norm = torch.linalg.vector_norm
    return norm(guess - truth, dtype=torch.float32) / norm(truth, dtype=torch.float32)


class ModuleHistory:
    """What one module hands on: each group of rows has a history of its own, as one may be missing at a call."""

    def __init__(self, forecast: Forecast):
        self.forecast = forecast
        self.groups: dict[str, FeatureHistory] = {}
        self.present: list[FeatureHistory] = []

    def prepare(self, place: float, call: int, stores: bool, groups: Sequence[str]) -> None:
        self.present = [self.groups.setdefault(group, FeatureHistory(self.forecast)) for group in groups]
        for history in self.present:
            history.prepare(place, call, stores)

    def store(self, value: Tensor) -> None:
        for history, part in zip(self.present, self._parts(value), strict=True):
            history.store(part)

    def value(self, latent: Tensor | None = None) -> Tensor:
        latents = [None] * len(self.present) if latent is None else self._parts(latent)
        values = [history.value(each) for history, each in zip(self.present, latents, strict=True)]
        return values[0] if len(values) == 1 else torch.cat(values)

    def _parts(self, value: Tensor) -> Sequence[Tensor]:
        return value.chunk(len(self.present)) if len(self.present) > 1 else (value,)


@dataclass
class OutputStep:
    """What becomes of the UNet's whole output at this call. `mix`: a and b by which a * input + b * output is what is
    kept. `path`: whose expected latents what was kept is put together with, and `pull`: what the answer gains for each
    unit by which the input is not what was expected, so that it says the same picture."""

    history: ModuleHistory
    reused: bool
    mix: tuple[float, float]
    path: LatentPath | None = None
    pull: float = 0.0

    def keep(self, sample: Tensor, output: Tensor) -> Tensor | None:
        """A copy: what a pipeline does with its own is its affair. What is answered in its place, if anything is."""
        self.history.store(self._mixed(sample, output, *self.mix))
        return self.answer(sample) if any(each.weights for each in self.history.present) else None

    def answer(self, sample: Tensor) -> Tensor:
        """Instead of the UNet, a tensor of its own."""
        first = self.history.present[0].values[0]
        latent = sample[:, : first.shape[1]]
        of_input, of_output = self.mix
        answer = self._mixed(latent, self.history.value(latent), -of_input / of_output, 1 / of_output)
        if self.path is None or not self.path.is_known:
            return answer
        gained = (self.pull * self.path.unexpected()).repeat(len(self.history.present), 1, 1, 1)
        return (answer + gained).to(answer.dtype)

    @staticmethod
    def _mixed(sample: Tensor, value: Tensor, of_input: float, of_output: float) -> Tensor:
        if (of_input, of_output) == OUTPUT:
            return value.clone()
        wide = torch.promote_types(value.dtype, torch.float32)
        latent = sample[:, : value.shape[1]].to(wide)
        return torch.add(value.to(wide) * of_output, latent, alpha=of_input).to(value.dtype)


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
    output: OutputStep | None = None
    compiled: bool = False


@dataclass
class Adaptive(ABC):
    """A rule whose key steps are found while it runs."""

    schedule: Threshold | Stability
    last: int = field(default=0, init=False)
    """The last key step."""

    def is_key(self, call: int, history: FeatureHistory | None, must: bool) -> bool:
        """`history`: that of the rule's probe, if it has one yet. Where it `must` be one, nothing is read."""
        if not must and self.rests(call, history) and call >= self.schedule.first:
            return False
        self.computes(call, history)
        self.last = call
        return True

    @abstractmethod
    def rests(self, call: int, history: FeatureHistory | None) -> bool:
        """Whether this call may be left out; what is measured for it is all that is read from the device."""

    @abstractmethod
    def computes(self, call: int, history: FeatureHistory | None) -> None:
        """Take note of a key step at this call; `last` is the one before."""


@dataclass
class ByError(Adaptive):
    """A threshold rule: the error of its last key step's forecast says where the next one is; read once for each."""

    schedule: Threshold
    distance: int = field(default=0, init=False)
    measured_order: int = field(default=0, init=False)
    next: int = field(default=0, init=False)

    def rests(self, call: int, history: FeatureHistory | None) -> bool:
        if history is not None and history.error is not None:
            error, history.error = float(history.error), None
            self.next = self.last + self.schedule.next_distance(error, self.distance, self.measured_order)
        return call < self.next

    def computes(self, call: int, history: FeatureHistory | None) -> None:
        self.distance, self.next = max(1, call - self.last), call + 1
        self.measured_order = min(history.forecast.order, max(0, len(history.known) - 1)) if history else 0


@dataclass
class ByPath(Adaptive):
    """A stability rule: the latents at hand say of each call `within` whether it is left out; one value is read for
    each that may be."""

    schedule: Stability
    within: range
    path: LatentPath

    def rests(self, call: int, history: FeatureHistory | None) -> bool:  # noqa: ARG002 - others look at it
        near = call in self.within and call - self.last < self.schedule.longest
        return near and self.path.is_known and self.path.disagreement() <= self.schedule.threshold

    def computes(self, call: int, history: FeatureHistory | None) -> None:
        pass


class CacheState:
    """Of one generation. `places`: name of a time axis -> where each call lies on it."""

    def __init__(self, resolved: ResolvedPlan, trajectory: Trajectory):
        self.rules, self.by_module = resolved.plan.rules, resolved.by_module
        self.steps, self.trajectory = trajectory.plan or resolved.steps(trajectory.calls), trajectory
        axes = {"step", *(rule.axis for rule in self.rules)}
        self.places = {axis: [float(place) for place in trajectory.places(axis)] for axis in axes}
        measuring = trajectory.plan is not None
        for rule in self.rules if not measuring else ():
            check_fit(rule, trajectory)
        self.forecasts = [forecast_of(rule, self.places[rule.axis], measuring) for rule in self.rules]
        self.pulls = pulls(self.rules, trajectory, resolved)
        self.mixes = mixes(self.rules, trajectory, resolved)
        follows = self.pulls is not None or any(isinstance(rule.schedule, Stability) for rule in self.rules)
        self.path = LatentPath(signal_of(trajectory)) if follows and not measuring else None
        found = [index for index, keys in enumerate(self.steps.keys) if keys is None]
        self.adaptive = {index: self._adaptive(self.rules[index].schedule) for index in found}
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
        """Decide what the next UNet call does; `sample`: its latents. A new shape in the middle of a generation starts
        from nothing, and so does a group of rows that was not there before."""
        self.call += 1
        groups = ALL if self.trajectory.rows is None else self.trajectory.rows[self.call]
        shape = (len(sample) // len(groups), *sample.shape[1:])
        if shape != self.shape:
            self.shape = shape
            self.memory.clear()
            self.seen.clear()
            if self.path is not None:
                self.path.known = ()
        if self.path is not None:
            self.path.arrive(self.call, sample.chunk(len(groups))[-1])
        new = not self.seen.issuperset(groups)
        self.seen |= set(groups)
        kept = {index for index, each in self.adaptive.items() if not each.is_key(self.call, self._probe(index), new)}
        reused = frozenset(kept) if new else self.steps.reused(self.call) | kept
        self.reused.append(reused)
        roles = self.steps.roles(reused)
        for module in self.steps.stored.intersection(roles):
            number = self.by_module[module].rule
            rule = self.rules[number]
            history = self.memory.setdefault(module, ModuleHistory(self.forecasts[number]))
            history.prepare(self.places[rule.axis][self.call], self.call, roles[module] == STORE, groups)
        for index in self.adaptive:
            if probe := self._probe(index):
                probe.probed = True
        return StepContext(roles, self.memory, self.texts, protect, self._output(roles))

    def _output(self, roles: Mapping[str, int]) -> OutputStep | None:
        role = roles.get(WHOLE)
        if role is None:
            return None
        moved = () if self.pulls is None else (self.path, self.pulls[self.call])
        return OutputStep(self.memory[WHOLE], role == REUSE, self.mixes[self.call], *moved)

    def _adaptive(self, schedule: Schedule) -> Adaptive:
        if isinstance(schedule, Threshold):
            return ByError(schedule)
        assert isinstance(schedule, Stability), "of all others the key steps are known beforehand"
        assert self.path is not None, "it is there for every such schedule"
        return ByPath(schedule, Span.of(schedule.within).within(self.trajectory.calls), self.path)

    def _probe(self, rule: int) -> FeatureHistory | None:
        """The history that a threshold is measured on: that of the rule's last node in forward order, and of the group
        of rows that sees the prompt."""
        mine = [module for module, outlet in self.by_module.items() if outlet.rule == rule and module in self.memory]
        if not mine or not (present := self.memory[mine[-1]].present):
            return None
        prompted = self.memory[mine[-1]].groups.get(PROMPT)
        return next((each for each in present if each is prompted), present[-1])

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


def check_fit(rule: CacheRule, trajectory: Trajectory) -> None:
    """ModelError where a forecast was fitted for other calls than come."""
    if rule.uncalibrated:
        what = f"{rule.nodes}: this plan was not calibrated ({rule.uncalibrated}); `asdm inherit` does it, and writes"
        raise ModelError(f"{what} a model that carries what it found")
    if (fit := rule.fit) is None:
        return
    here = trajectory.sampler, trajectory.calls
    if here != (fit.sampler, len(fit.timesteps)):
        came = f"{trajectory.calls} UNet calls of {trajectory.sampler or 'no scheduler'}"
    else:
        apart = [abs(one - other) for one, other in zip(trajectory.places("timestep"), fit.timesteps, strict=True)]
        if max(apart) <= SAME_TIMESTEP:
            return
        came = "other timesteps"
    raise ModelError(
        f"this plan's forecasts were fitted for {len(fit.timesteps)} UNet calls of {fit.sampler}, and {came} came; "
        "draw with those steps and that sampler, or calibrate again: asdm inherit"
    )


def mixes(rules: Sequence[CacheRule], trajectory: Trajectory, resolved: ResolvedPlan) -> list[tuple[float, float]]:
    """Of each call, what makes of input and output the quantity that a rule of the whole output forecasts."""
    outlet = resolved.by_module.get(WHOLE)
    space = "model" if outlet is None else rules[outlet.rule].space
    if space == "model" or trajectory.plan is not None:
        return [OUTPUT] * trajectory.calls
    signal = trajectory.places("signal", "space: model")
    return [in_space(trajectory.prediction, space, float(share)) for share in signal]


def pulls(rules: Sequence[CacheRule], trajectory: Trajectory, resolved: ResolvedPlan) -> list[float] | None:
    """Of each call, `OutputStep.pull`; None where no rule forecasts so.

    What is forecast, s = a x + b y, makes at the expected latents e the picture c e + d (s - a e) / b. The answer to x
    that says the same is (s - a x) / b + (a / b - c / d) (x - e).
    """
    outlet = resolved.by_module.get(WHOLE)
    if outlet is None or rules[outlet.rule].extrapolate != MULTISTEP or trajectory.plan is not None:
        return None
    clean = [in_space(trajectory.prediction, "x0", share) for share in signal_of(trajectory)]
    return [a / b - c / d for (a, b), (c, d) in zip(mixes(rules, trajectory, resolved), clean, strict=True)]


def signal_of(trajectory: Trajectory) -> list[float]:
    """The share at each call. Raises ModelError where that is not known."""
    places = trajectory.places("signal", "mode: explicit, extrapolate: linear")
    return [float(share) for share in places]
