"""Calibration of a plan: the plain model draws a few prompts once, and what is recorded of its calls says which key
steps to take and how to forecast the rest (`key_steps`). Of several ways to fit, drawing tells the best."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache, partial, wraps
from hashlib import sha256
from itertools import count, product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor

from asdm_cli.compare.run import Place, by_first, fidelity, kept, sampling
from asdm_cli.compare.setup import Session, Setup
from asdm_cli.console import track
from asdm_cli.errors import ModelError, RunError, blame
from asdm_cli.patches.base import PROMPT
from asdm_cli.patches.cache_plan import WHOLE, resolve
from asdm_cli.patches.feature_cache.forecast import forecast_of
from asdm_cli.patches.guidance import HALVES, groups_by_class
from asdm_cli.profiling.latency import versions
from asdm_cli.recipe.patches import FITTED, OUT, CachePlan, CacheRule, Calibrated, Explicit, Fit
from asdm_cli.sampling.generate import SamplingSettings, latents
from asdm_cli.sampling.prompts import Given, PromptList
from asdm_cli.search.key_steps import Combination, Moments, fitted, key_steps, summed

CALIBRATION = "calibration"
SAMPLED = 16_384
"""Of one feature map, so many elements are recorded, evenly spread: inner products are only estimated from them."""
OF_OUTPUT: dict[str, tuple[float, bool] | None] = {
    "with half of what earlier calls missed": (0.5, False),
    "with half of it, at key steps too": (0.5, True),
    "with all of it, at key steps too": (1.0, True),
    "a straight line": None,
}
"""How forecasts of the whole output may be made: `carried` and `corrected` of `fitted`; or nothing is fitted."""
OF_FEATURES: dict[str, tuple[float, bool] | None] = {"each call for itself": (0.0, False), "a straight line": None}
"""How those of features may: what they missed in the latents, no feature tells."""
FINALISTS = 3
"""So many of the candidates draw the other half of the prompts, too."""
PERTURBED = 1e-2
"""Share of the last answer's size by which one is changed to see what becomes of it."""
PROBED, PROBES = 3, 4
"""Prompts that are drawn again with an error, and calls at which they have one: what a UNet makes of an error changes
little from call to call. Of one prompt in ten it makes another picture, so medians are taken."""


@dataclass
class Recorder:
    """Listens to drawings of one image each; `outlets` are modules whose features are recorded, beside the output."""

    pipe: Any
    steps: int
    guidance: float
    outlets: Sequence[str] = ()
    mixes: list[tuple[tuple[str, float], ...]] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    features: dict[str, list[Tensor]] = field(default_factory=dict)
    taken: list[tuple[Tensor, Any, Tensor, dict[str, Any]]] = field(default_factory=list)
    """Of each of the scheduler's steps: the answer, the timestep, the latents, and what else it was given."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        modules, scheduler = dict(self.pipe.unet.named_modules()), self.pipe.scheduler
        real = scheduler.step
        with ExitStack() as undo:
            undo.callback(modules["conv_in"].register_forward_pre_hook(self._input).remove)
            undo.callback(modules["conv_out"].register_forward_hook(self._output).remove)
            for name in self.outlets:
                self.features[name] = []
                undo.callback(modules[name].register_forward_hook(self._feature(name)).remove)
            undo.callback(scheduler.__dict__.pop, "step")

            @wraps(real)  # pipelines look at its signature
            def step(answer: Tensor, timestep: Any, sample: Tensor, **named: Any) -> Any:
                self.taken.append((answer.clone(), timestep, sample.clone(), copied(named)))
                return real(answer, timestep, sample, **named)

            scheduler.step = step
            yield

    def _input(self, _: Any, arguments: tuple[Any, ...]) -> None:
        """At the first module: what patches around the UNet leave of its rows."""
        self.inputs.append(arguments[0][-1].double().cpu())

    def _output(self, _: Any, __: Any, output: Tensor) -> None:
        answer = output.double().cpu()
        if len(answer) > len(HALVES):
            raise ModelError("forecasts are fitted where guidance has two halves or none; use `extrapolate: linear`")
        groups = HALVES if len(answer) == len(HALVES) else (PROMPT,)
        weights = (1 - self.guidance, self.guidance) if len(groups) > 1 else (1.0,)
        self.mixes.append(tuple(zip(groups, weights, strict=True)))
        self.rows.append(answer.flatten(1))
        self.inputs[-1] = self.inputs[-1][: answer.shape[1]].flatten()  # other channels are no latents

    def _feature(self, name: str) -> Callable[..., None]:
        def keep(_: Any, __: Any, output: Any) -> None:
            value = (output[0] if isinstance(output, tuple) else output)[-1].flatten()  # the half that sees the prompt
            self.features[name].append(value[:: max(1, len(value) // SAMPLED)].double().cpu())

        return keep

    @property
    def sampler(self) -> str:
        return type(self.pipe.scheduler).__name__

    def gram_of_outputs(self) -> np.ndarray[Any, Any]:
        """Of each group's rows at every call, then of inputs."""
        parts = []
        for group in HALVES:
            for mix, rows in zip(self.mixes, self.rows, strict=True):
                names = [name for name, _ in mix]
                parts.append(rows[names.index(group)] if group in names else torch.zeros_like(rows[0]))
        every = torch.stack([*parts, *self.inputs])
        found: np.ndarray[Any, Any] = (every @ every.T).numpy()
        return found

    def gram_of_features(self, outlets: Sequence[str]) -> np.ndarray[Any, Any]:
        """Summed over modules, each by its own size."""
        total = np.zeros((len(self.mixes),) * 2)
        for name in outlets:
            every = torch.stack(self.features[name])
            gram = (every @ every.T).numpy()
            total += gram / gram.diagonal().mean()
        return total

    @cached_property
    def gains(self) -> tuple[float, ...]:
        """What a change of one of a call's answer becomes in the final latents, the UNet's other answers held: by going
        through the scheduler's steps again."""
        end, found = self._replayed({}), list[float]()
        for call, (answer, *_) in enumerate(self.taken):
            noise = torch.Generator().manual_seed(0)
            change = torch.randn(answer.shape, generator=noise).to(answer) * answer.std() * PERTURBED
            moved, by = self._replayed({call: change}) - end, change.double()
            found.append(float((moved * by).sum() / (by * by).sum()))
        return tuple(found)

    def _replayed(self, changes: Mapping[int, Tensor]) -> Tensor:
        """The final latents, where answers are changed by so much."""
        scheduler, sample = copy.deepcopy(self.pipe.scheduler), self.taken[0][2]
        scheduler.set_timesteps(self.steps)
        for call, (held, timestep, _, named) in enumerate(self.taken):
            answer = held + changes[call] if call in changes else held
            sample = type(scheduler).step(scheduler, answer, timestep, sample, **copied(named))[0]
        return sample.double()

    def error(self, call: int) -> Tensor | None:
        """What a forecast would miss: the rows of a straight line through the last two calls, less this one's. None
        where those have other rows."""
        before = slice(max(0, call - 2), call + 1)
        if len(set(self.mixes[before])) > 1:
            return None
        *last, own = self.rows[before]
        return (2 * last[1] - last[0] if len(last) > 1 else last[0]) - own

    @contextmanager
    def mistaken(self, call: int, error: Tensor) -> Iterator[None]:
        """While one image is drawn, this call's rows are wrong by so much."""
        calls = count()

        def hook(_: Any, __: Any, output: Tensor) -> Tensor | None:
            return output + error.to(output).view_as(output) if next(calls) == call else None

        handle = self.pipe.unet.get_submodule("conv_out").register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def shares(self, draw: Callable[[], Tensor], end: Tensor) -> dict[int, float]:
        """Call -> what is left of its gain where later calls answer to an error, as they do when it is drawn; of the
        last call all. `draw` draws the recorded image again, whose final latents are `end`."""
        gains = self.gains
        last = len(gains) - 1
        found = {last: 1.0}
        for call in {round(place) for place in np.linspace(1, last - 1, PROBES)} & {*range(1, last)}:
            if (error := self.error(call)) is None:
                continue
            with self.mistaken(call, error):
                moved = (draw().double() - end.double()).norm()
            weights = torch.tensor([weight for _, weight in self.mixes[call]], dtype=error.dtype)
            if (alone := (weights @ error).norm() * abs(gains[call])) > 0:
                found[call] = float(moved.cpu() / alone)
        return found


def copied(named: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a step whose generators give what these would, and leave these as they are."""
    dice = named.get("generator")
    if dice is None:
        return dict(named)
    same = [each.clone_state() for each in dice] if isinstance(dice, list) else dice.clone_state()
    return {**named, "generator": same}


@dataclass(frozen=True)
class Recording:
    """Of one way to draw; `features[rule]` of the rules whose nodes are inside the UNet, by their place in the plan."""

    sampler: str
    timesteps: list[float]
    mixes: list[list[list[Any]]]
    gains: list[float]
    outputs: list[list[float]]
    features: dict[str, list[list[float]]]

    def __add__(self, other: Recording) -> Recording:
        """Of both, each counting alike."""
        outputs = (np.array(self.outputs) + np.array(other.outputs)) / 2
        gains = np.sign(self.gains) * np.sqrt(np.abs(np.multiply(self.gains, other.gains)))
        features = {
            rule: ((np.array(gram) + np.array(other.features[rule])) / 2).tolist()
            for rule, gram in self.features.items()
        }
        return replace(self, outputs=outputs.tolist(), gains=gains.tolist(), features=features)

    def moments(self, rule: int, whole: bool) -> Moments:
        mixes = tuple(tuple((str(group), float(weight)) for group, weight in mix) for mix in self.mixes)
        if whole:
            return Moments(np.array(self.outputs), HALVES, mixes, tuple(self.gains))
        alone = (((PROMPT, 1.0),),) * len(mixes)
        return Moments(np.array(self.features[str(rule)]), (PROMPT,), alone, tuple(self.gains), inputs=False)


@dataclass(frozen=True)
class Drawings:
    """What is recorded: prompts, each drawn alone."""

    session: Session
    setup: Setup
    prompts: Sequence[str]
    settings: SamplingSettings
    given: Sequence[Given] = ()

    def each(self, what: str, outlets: Sequence[str] = ()) -> Iterator[tuple[Recorder, Callable[[], Tensor], Tensor]]:
        """Of each prompt the recorder, what draws it again, and its final latents."""
        with self.session.stage(without_plan(self.setup)) as (pipe, _), blame(self.setup.name, "calibrating"):
            groups_by_class(pipe)
            for index, prompt in enumerate(track(self.prompts, f"{what} {self.setup.name}", len(self.prompts))):
                recorder = Recorder(pipe, self.setup.steps, self.setup.guidance, outlets)
                draw = partial(latents, pipe, prompt, self.settings, index, self.given[index : index + 1])
                with recorder.listening():
                    end = draw()
                if len(recorder.taken) != len(recorder.mixes):
                    raise ModelError(
                        "the sampler's steps are not its UNet calls, so no error's gain is known: choose another"
                    )
                yield recorder, draw, end

    def gains(self) -> list[float]:
        """What an error of each call really becomes in the final latents, in units of itself."""
        few = replace(self, prompts=self.prompts[:PROBED], given=self.given[:PROBED])
        shares = []
        for recorder, draw, end in few.each("measuring gains of"):
            shares.append(recorder.shares(draw, end))
            alone = np.array(recorder.gains)
        found: list[float] = (alone * left_of_gains(shares, len(alone))).tolist()
        return found


def record(drawings: Drawings, gains: Sequence[float]) -> Recording:
    """Draw each prompt in full, and keep inner products."""
    plan, setup = drawings.setup.cache, drawings.setup
    assert plan is not None, "what is calibrated is a plan of one UNet"
    outlets, images = outlets_of(setup, plan), len(drawings.prompts)
    outputs: Any = 0
    features: dict[str, Any] = {}
    sampler = ""
    for recorder, _, _ in drawings.each("calibrating", [name for names in outlets.values() for name in names]):
        outputs = outputs + recorder.gram_of_outputs() / images
        for rule, names in outlets.items():
            features[rule] = features.get(rule, 0) + recorder.gram_of_features(names) / images
        sampler = recorder.sampler
    if not np.isfinite(outputs).all():
        raise RunError(f"{setup.name}: the UNet answers with what is no number; try `dtype: float32`")
    timesteps = [float(timestep) for _, timestep, _, _ in recorder.taken]
    mixes = [[list(each) for each in mix] for mix in recorder.mixes]
    lists = {rule: gram.tolist() for rule, gram in features.items()}
    return Recording(sampler, timesteps, mixes, list(gains), outputs.tolist(), lists)


def left_of_gains(shares: Sequence[Mapping[int, float]], calls: int) -> NDArray[np.float64]:
    """Of every call the share of its gain that is left when later calls have answered: medians over images of what was
    measured, and between those a line through their logarithms."""
    measured = sorted({call for each in shares for call in each})
    middle = [np.median([each[call] for each in shares if call in each]) for call in measured]
    found: NDArray[np.float64] = np.exp(np.interp(range(calls), measured, np.log(np.maximum(middle, 1e-6))))
    return found


def outlets_of(setup: Setup, plan: CachePlan) -> dict[str, list[str]]:
    """Place of a rule that has to be calibrated -> the modules inside the UNet whose values it hands on; all that it
    names, where others read none of them as long as nothing is calibrated."""
    found: dict[str, list[str]] = {}
    resolved = resolve(plan, setup.config)
    stored = resolved.steps(setup.calls).stored
    for name, outlet in resolved.by_module.items():
        if name != WHOLE and plan.rules[outlet.rule].uncalibrated:
            found.setdefault(str(outlet.rule), []).append(name)
    return {rule: [name for name in names if name in stored] or names for rule, names in found.items()}


def short(origin: Mapping[str, Any]) -> str:
    """A name for what is made of this."""
    return sha256(json.dumps(origin, sort_keys=True, default=str).encode()).hexdigest()[:12]


def without_plan(setup: Setup) -> Setup:
    return replace(setup, patches=tuple(spec for spec in setup.patches if spec is not setup.cache))


def recorded(
    session: Session, setup: Setup, prompts: PromptList, place: Place, folder: Path, state: PartialState
) -> Recording:
    """What `record` finds: by the first process, and read by all; kept for the next time."""
    settings = sampling(setup, place)
    style = asdict(settings) | {"device": place.device.type, "dtype": str(place.dtype)}
    plan = setup.cache
    assert plan is not None, "what is calibrated is a plan of one UNet"
    asked = Drawings(session, setup, prompts.prompts, settings, prompts.given)
    origin = {"prompts": prompts.title, "style": style, "versions": versions(), **without_plan(setup).origin()}
    # gains are the same for all plans, what else is recorded for all of these nodes
    of_gains = origin | {"measured": [PROBED, PROBES]}
    of_nodes = of_gains | {"outlets": outlets_of(setup, plan)}
    gains, file = (
        folder / CALIBRATION / f"{name}-{short(of)}.json" for name, of in (("gains", of_gains), ("recorded", of_nodes))
    )

    def found() -> dict[str, Any]:
        return asdict(record(asked, kept(gains, of_gains, asked.gains)))

    return Recording(**by_first(state, lambda: kept(file, of_nodes, found)))


def drawings(prompts: int, plans: int) -> int:
    """What it takes to work out so many plans, in drawings of the plain model: about, as a candidate computes half."""
    candidates = (2 * len(OF_OUTPUT) + FINALISTS) * prompts // 2
    return prompts + 2 * PROBED * (1 + PROBES) + plans * candidates // 2


@dataclass(frozen=True)
class WorkedOut:
    """A set-up whose plan is fitted to all prompts; and, fitted to half of them, those that tell how good such a plan
    is: each with the prompts that it was not fitted to."""

    setup: Setup
    apart: tuple[tuple[Setup, PromptList], ...]

    def fidelity(
        self, metric: str, session: Session, plain: Setup, place: Place, folder: Path, state: PartialState
    ) -> float:
        """To be expected of other prompts."""
        found = []
        for fold, prompts in self.apart:
            full, pictures = _in_full(plain, prompts, folder)
            found += fidelity(metric, session, full, [fold], prompts, place, pictures, state)
        return fmean(found)


def calibrate(  # noqa: PLR0913 - who draws what, and where
    session: Session,
    setup: Setup,
    prompts: PromptList,
    place: Place,
    folder: Path,
    state: PartialState,
    against: Setup | None = None,
) -> WorkedOut:
    """The same set-up with its plan worked out. Interrupted, it goes on. It is to draw as `against` does, which is the
    set-up without its plan if left out.

    Key steps are chosen by all prompts. Of several ways to fit, drawing tells the best, on prompts that were not fitted
    to: at few calls a fit may do worse on those than a straight line. That way is then fitted to all.

    Raises ModelError for a plan that cannot be worked out so, RunError for a UNet that answers with no numbers.
    """
    halves = prompts.halves()
    first, last = (recorded(session, setup, half, place, folder, state) for half in halves)
    everything = first + last
    plain, apart = against or without_plan(setup), list[dict[str, Setup]]()
    near: dict[str, list[float]] = {}
    for number, (half, others) in enumerate(((first, halves[1]), (last, halves[0]))):
        plans = candidates(setup, everything, half)
        if number:
            best = sorted(near, key=lambda how: near[how][0], reverse=True)[:FINALISTS]
            plans = {how: plans[how] for how in best}
        apart.append({how: setup.with_cache(f"{setup.name}, {how}", plan) for how, plan in plans.items()})
        full, pictures = _in_full(plain, others, folder)
        drawn = fidelity("psnr", session, full, list(apart[-1].values()), others, place, pictures, state)
        for how, quality in zip(plans, drawn, strict=True):
            near.setdefault(how, []).append(quality)
    chosen = max(apart[1], key=lambda how: sum(near[how]))
    found = setup.with_cache(setup.name, candidates(setup, everything, everything)[chosen])
    return WorkedOut(found, tuple((fold[chosen], half) for fold, half in zip(apart, halves[::-1], strict=True)))


def _in_full(plain: Setup, prompts: PromptList, folder: Path) -> tuple[Setup, Path]:
    """Whose pictures every plan of a search is held against, and where all of these prompts lie."""
    against = replace(plain, name=f"in full, {short(plain.origin())}")
    return against, folder / CALIBRATION / f"prompts-{short({'prompts': prompts.title})}"


def candidates(setup: Setup, recording: Recording, fitted_to: Recording) -> dict[str, CachePlan]:
    """The plan with all that was left to a calibration, in every way that is worth a try: key steps by one recording,
    fits by one of the same prompts or of some. Raises ModelError for fewer key steps than there must be."""
    plan = setup.cache
    assert plan is not None, "what is calibrated is a plan of one UNet"
    calls = len(recording.timesteps)
    several = []
    for number, rule in enumerate(plan.rules):
        nothing_left_out = len(rule.schedule.key_steps(calls) or ()) == calls
        if rule.uncalibrated and not nothing_left_out:
            several.append(worked_out(rule, recording, fitted_to, number))
        else:
            several.append({"": rule.standing_in(calls)})
    found = {}
    for ways in product(*(rules.items() for rules in several)):
        name = "; ".join(how for how, _ in ways if how)
        found[name] = CachePlan(rules=[rule for _, rule in ways], cache_text=plan.cache_text)
    return found


def worked_out(rule: CacheRule, recording: Recording, fitted_to: Recording, number: int) -> dict[str, CacheRule]:
    """How it was done -> one rule of the plan."""
    whole, fits = rule.nodes in (OUT, [OUT]), rule.extrapolate == FITTED
    moments, known = recording.moments(number, whole), fitted_to.moments(number, whole)
    schedule = rule.schedule
    chosen: dict[str, Sequence[int]] = {"": schedule.key_steps(moments.calls) or ()}
    if isinstance(schedule, Calibrated):
        chosen = chosen_keys(rule, moments, schedule)
    found = {}
    for keys_by, keys in chosen.items():
        listed = Explicit(mode="explicit", steps=list(keys))
        for way, how in (OF_OUTPUT if whole else OF_FEATURES).items() if fits else ():
            changed: dict[str, Any] = {"schedule": listed, "extrapolate": "linear" if how is None else FITTED}
            if how is not None:
                weights = fitted(known, keys, *how)
                changed["fit"] = Fit(
                    sampler=recording.sampler, timesteps=recording.timesteps, keys=list(keys), weights=weights
                )
            found[", ".join(filter(None, (keys_by, way)))] = rule.model_copy(update=changed)
        if not fits:
            found[keys_by] = rule.model_copy(update={"schedule": listed})
    return found


def chosen_keys(rule: CacheRule, moments: Moments, schedule: Calibrated) -> dict[str, Sequence[int]]:
    """How key steps were chosen -> those, all of which leave every call something to be forecast from. Evenly is better
    where what forecasts miss alternates, and takes itself back."""
    of_any_number = rule.model_copy(update={"schedule": Calibrated(mode="calibrated", calls=1)})
    combine = None if rule.extrapolate == FITTED else by_rule(of_any_number.model_dump_json(), moments.calls)
    count = min(schedule.calls, moments.calls)
    first = min(max(schedule.first, 1), count)
    rest = np.linspace(first - 1, moments.calls - 1, count - first + 1)[1:]
    evenly = (*range(first), *(round(step) for step in rest))
    least = key_steps(moments, combine, first)
    found: dict[str, Sequence[int]] = {}
    for name, keys in {"least left": least.best(count), "evenly": evenly}.items():
        if keys is not None and keys not in found.values() and np.isfinite(summed(moments, keys, combine)):
            found[name] = keys
    if not found:
        enough = next(more for more in range(count, moments.calls + 1) if least.best(more))
        raise ModelError(f"{rule.nodes}: {count} key steps leave some call nothing to be forecast from; give {enough}")
    return found


@lru_cache
def by_rule(rule: str, calls: int) -> Combination:
    """How a rule, as JSON, that fits nothing combines values; it counts in calls, whatever its axis."""
    forecast = forecast_of(CacheRule.model_validate_json(rule), range(calls))

    def combine(call: int, keys: Sequence[int]) -> Sequence[float]:
        weights = forecast.weights(keys, call, call).values or (1.0,)
        return [*weights, *[0.0] * (len(keys) - len(weights))]

    return combine
