"""`asdm inherit`: a plan on a model, and what it gains: cost, time and fidelity beside fewer steps and other plans."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from accelerate import PartialState

from asdm_cli.compare.costs import Rounds, work
from asdm_cli.compare.pareto import DEEPCACHE, FEWER, ParetoPoint, front
from asdm_cli.compare.run import (
    QUALITY,
    SAMPLES,
    Measures,
    Place,
    by_first,
    compare,
    fidelity,
    finished,
    kept,
    recalled,
)
from asdm_cli.compare.setup import (
    PLAIN,
    Session,
    Setup,
    cache_spec,
    common_size,
    converged,
    drawing,
    drawn_from,
    fewer_steps,
    misfits,
    output_alone,
)
from asdm_cli.errors import ModelError
from asdm_cli.metrics.suite import KEYS, MetricSettings, check
from asdm_cli.models.adapters import fused_size
from asdm_cli.models.directory import ModelDirectory, find
from asdm_cli.models.metadata import write_patched
from asdm_cli.models.pipelines import PIPELINES
from asdm_cli.models.write import carried_size, takes
from asdm_cli.patches.cache_plan import picture, resolve
from asdm_cli.profiling.expected import Work
from asdm_cli.profiling.latency import versions
from asdm_cli.recipe.patches import CachePlan, DeepCacheSpec, PatchSpec, read_plan
from asdm_cli.recipe.verbs import Candidate, Front, InheritRecipe, Target
from asdm_cli.records import Record, Report
from asdm_cli.report.metrics import metric
from asdm_cli.report.run_directory import Run
from asdm_cli.sampling.generate import place, processes
from asdm_cli.sampling.prompts import PromptList, read_prompts
from asdm_cli.search.forecasts import CALIBRATION, calibrate, drawings, short
from asdm_cli.search.target import LEAST, MINUTES, Found, Tried, find_plan, plans_tried
from asdm_cli.verbs.unmeasured import PLAN

RESUMABLE = True
OURS, FRONT = "asdm", "front"
DRAWN = 8
"""Prompts that a calibration draws, unless the recipe says how many."""


@dataclass(frozen=True)
class Plan:
    recipe: InheritRecipe
    setups: tuple[Setup, ...]
    """The plain model first."""
    near: Setup | None
    prompts: PromptList
    metrics: MetricSettings
    size: int
    calibrated: PromptList | None = None
    """What the plain model draws to work plans out; None where each says what it does."""
    front: Measures | None = None
    """What is found out of the front."""
    pending: Mapping[str, CachePlan] = field(default_factory=dict)
    """Set-up -> the plan that is worked out for it, in whose place one of the same cost stands until then."""
    named: str = PLAN
    """The set-up that is written."""
    there: int = 0
    """Prompts to measure and to calibrate on."""

    @property
    def chosen(self) -> Setup | None:
        """Whose patches the written model will carry; None where none is written."""
        return next((setup for setup in self.setups if setup.name == self.named), None)

    @property
    def notes(self) -> list[str]:
        """On prompts that are calibrated on and measured on."""
        both = self.prompts.distinct + len(self.calibrated.prompts) - self.there if self.calibrated is not None else 0
        if both <= 0:
            return []
        return [
            f"{both} of the {self.prompts.distinct} prompts that are measured on are what was calibrated on, too: the "
            f"plan's figures are too good. Give {self.there + both} prompts."
        ]

    def report(self) -> Report:
        recipe, first = self.recipe, self.setups[0]
        facts: dict[str, object] = {"model": "none is written: the recipe has neither `plan` nor `patches`"}
        if recipe.target is not None and self.calibrated is not None:
            listed, minutes = self.calibrated, recipe.minutes or MINUTES
            drawn = f"{len(listed.prompts)} prompts ({listed.title}), at most {minutes:g} min"
            facts = {"target": recipe.target.words, "search": drawn}
        facts |= {
            "prompts": f"{len(self.prompts.prompts)}, {self.prompts.title}",
            "ways": "; ".join(setup.name for setup in self.setups),
            "timed": f"{recipe.repeats} rounds of images in turn, {recipe.steps} steps",
            "drawn with": f"sampler {recipe.sampler}, guidance {recipe.guidance:g}",
        }
        if self.front is not None and self.front.prompts is not None:
            facts["front"] = f"{len(self.front.prompts.prompts)} pictures with each of what is fastest for its fidelity"
        timelines = []
        if planned := self.chosen:
            assert first.model is not None, "the plain model is a pipeline"
            new = fused_size(first.model) if first.model.adapters else 0
            facts["model"] = takes(new, carried_size(first.model, whole=True) - new)
            facts["plan"] = [line for spec in planned.patches for line in spec.told()]
            if planned.cache is not None and planned.sees_all:
                resolved = resolve(planned.cache, first.config)
                steps = resolved.steps(planned.calls)
                if None not in steps.keys:
                    timelines = [picture(resolved, [steps.reused(call) for call in range(steps.calls)], PLAN)]
        setups = {setup.name: setup.facts for setup in self.setups}
        return Report("inherit", setups, timelines=timelines, facts=facts, notes=self.notes)

    def work(self) -> Work:
        everybody = [*self.setups, *output_alone(self.setups), *([self.near] if self.near else [])]
        rounds = Rounds(self.recipe.repeats, self.recipe.warmups, (1,), self.size)
        known = work(everybody, len(self.prompts.prompts), rounds, self.size, self.recipe)
        if self.calibrated is None:
            return known
        target, plain = self.recipe.target, self.setups[0]
        plans = len(self.pending) if target is None else plans_tried(target, plain.calls)
        drawn = drawings(len(self.calibrated.prompts), plans)
        return replace(known, macs=known.macs + work((plain,), drawn, None, self.size, self.recipe).macs)


def plan(recipe: InheritRecipe) -> Plan:
    """Every plan held against the UNet's config. Raises ModelError with all that do not fit."""
    plain = drawing(PLAIN, find(recipe.model, recipe.adapters), carried=False, series=PLAIN, **recipe.drawn_with)
    wanted, pending = [], dict[str, CachePlan]()
    for key, setup in _wanted(recipe, plain):
        standing_in = setup
        if setup.cache is not None and setup.cache.uncalibrated:
            pending[setup.name] = setup.cache
            standing_in = setup.with_cache(setup.name, setup.cache.standing_in(setup.calls))
        wanted.append((key, standing_in))
    searched = recipe.target is not None and recipe.fewer_steps is None  # then at the speed of what is found
    fewer = () if searched else fewer_steps(plain, recipe.fewer_steps)
    setups = [plain, *fewer, *(setup for _, setup in wanted)]
    near, keys = converged(plain, recipe.converged), {setup.name: key for key, setup in wanted if key}
    faults = []
    for each in misfits([*setups, *([near] if near else [])]):
        name, _, what = each.partition(": ")
        inner = what.startswith("rules[")
        faults.append(f"{keys[name]}{'.' if inner else ': '}{what}" if name in keys else each)
    faults += _misasked(recipe, plain, bool(pending), alone=not faults)
    if faults:
        raise ModelError("\n".join(dict.fromkeys(faults)))
    size = common_size(recipe.size, [plain])
    prompts = read_prompts(recipe.prompts, recipe.limit, recipe.per_prompt, recipe.inputs)
    setups = drawn_from(setups, prompts, size)
    assert plain.model is not None, "the plain model is a pipeline"
    metrics, calibrated, there = check(recipe, prompts, plain.model), None, 0
    if pending or recipe.target:
        # prompts behind the ones that are measured, if there are as many; else the last that there are
        drawn = recipe.calibration or DRAWN
        held = read_prompts(recipe.prompts, recipe.limit + drawn, inputs=recipe.inputs)
        calibrated, there = held.last(drawn), len(held.prompts)
        if len(calibrated.prompts) < 2:
            what = f"a calibration fits to some prompts and tries on others, and here is {len(calibrated.prompts)}"
            raise ModelError(f"calibration: {what}; give two, and as many `prompts`")
    again = _of_front(recipe, recipe.front, plain.model) if recipe.front else None
    for more in (calibrated, again.prompts if again else None):
        if more is not None:
            drawn_from([plain], more, size)
    return Plan(recipe, tuple(setups), near, prompts, metrics, size, calibrated, again, pending, there=there)


def _misasked(recipe: InheritRecipe, plain: Setup, pending: bool, alone: bool) -> Iterator[str]:
    """What cannot be worked out on this model, and names that are taken; `alone`: where nothing else is wrong."""
    if (pending or recipe.target) and "image_guidance" in PIPELINES[plain.kind].takes:
        what = f"a {plain.kind} has three parts of guidance, and forecasts are fitted where it has two"
        yield f"{'target' if recipe.target else 'plan'}: {what}; give a plan with `extrapolate: linear`"
    if recipe.target and not plain.sees_all:
        what = "a plan is looked for where one UNet computes every call, and whole; this model carries something else"
        yield f"target: {what}; give a `plan`, or the model without"
    elif recipe.target and alone and plain.calls <= LEAST:
        yield f"target: {plain.calls} UNet calls are too few to leave any out; raise `steps`"
    for index, candidate in enumerate(recipe.sweep):
        if candidate.name == PLAN:
            yield f"sweep[{index}].name: {PLAN!r} is the recipe's own plan; choose another name"
        elif recipe.target and re.fullmatch(r"\d+ steps", candidate.name):
            yield f"sweep[{index}].name: {candidate.name!r} is what the search calls fewer steps; choose another name"


def _of_front(recipe: InheritRecipe, asked: Front, own: ModelDirectory) -> Measures:
    """Raises ModelError for metrics that cannot be had."""
    prompts = read_prompts(recipe.prompts, asked.limit, asked.per_prompt, recipe.inputs)
    settings = check(recipe.model_copy(update={"metrics": asked.metrics}), prompts, own)
    return Measures(prompts, settings, costs=False, grid=recipe.grid)


def run(plan: Plan, run: Run) -> Report:
    """Draw what is missing, all processes their shares; the first one then times, counts and writes the model."""
    recipe, state, found = plan.recipe, processes(), None
    where = Place(*place(recipe.device, recipe.dtype, state), plan.size, recipe.seed, recipe.batch)
    session = Session(where.device, where.dtype, plan.setups)
    plan = replace(plan, setups=_calibrated(plan, session, where, run.path, state))
    if recipe.target is not None and plan.calibrated is not None:
        apart = replace(where, seed=where.seed + 1)
        prompts, minutes = plan.calibrated, recipe.minutes
        held = partial(_nearness, plan, session, where, run.path, state)
        found = find_plan(session, plan.setups[0], recipe.target, minutes, prompts, apart, run.path, state, held)
        plan = _with_found(plan, found)
    setups = (*plan.setups, *output_alone(plan.setups))
    rounds = Rounds(recipe.repeats, recipe.warmups, (1,), plan.size)
    measures = Measures(plan.prompts, plan.metrics, rounds, converged=plan.near, grid=recipe.grid)
    report = compare(setups, measures, where, run.path, state, session)
    if report is not None:
        report.notes.extend(plan.notes)
    if plan.front is not None:
        report = _looked_again(replace(plan, setups=setups), plan.front, report, where, run.path, session)
    if report is not None and recipe.target is not None and found is not None:
        report = _told(report, recipe.target, found, plan)
    if report is not None and (chosen := plan.chosen):
        first = plan.setups[0]
        assert first.model is not None, "the plain model is a pipeline"
        target, measured = run.path / "model", recipe.drawn_with | {"steps": chosen.steps}
        write_patched(first.model, {}, chosen.patches, target, "inherit", run.link, measured_with=measured)
        report.setups[chosen.name]["written"] = "."
    return finished(report, "inherit")


def _calibrated(plan: Plan, session: Session, where: Place, folder: Path, state: PartialState) -> tuple[Setup, ...]:
    """The set-ups, those whose plans were not worked out with them."""
    if plan.calibrated is None:
        return plan.setups
    apart = replace(where, seed=where.seed + 1)  # not the seeds of the measurement
    found = []
    for each in plan.setups:
        if asked := plan.pending.get(each.name):
            asked_for = each.with_cache(each.name, asked)
            each = calibrate(session, asked_for, plan.calibrated, apart, folder, state).setup
        found.append(each)
    return tuple(found)


def _nearness(plan: Plan, session: Session, where: Place, folder: Path, state: PartialState, of: Tried) -> float:
    """The mean over the pictures that will be reported, which are drawn for it if they are not there."""
    assert plan.recipe.target is not None, "who asks looks for a plan"
    plain, drawn, metric = plan.setups[0], _winner(of), plan.recipe.target.metric
    file = folder / CALIBRATION / f"held-{short(drawn.origin())}.json"
    origin = {"metric": metric, "prompts": plan.prompts.title, "place": str(where), "versions": versions()}
    known = by_first(state, lambda: recalled(file, origin))
    if known is None:  # then all draw
        (known,) = fidelity(metric, session, plain, [drawn], plan.prompts, where, folder / SAMPLES, state)
        by_first(state, lambda: kept(file, origin, lambda: known))
    return float(known)


def _winner(tried: Tried) -> Setup:
    """As it is reported."""
    return replace(tried.setup, name=tried.setup.name if tried.family == FEWER else PLAN, series=OURS)


def _with_found(plan: Plan, found: Found) -> Plan:
    """With what meets the target, and beside it fewer steps at its speed, or where it is fewer steps the best plan."""
    plain, winner = plan.setups[0], _winner(found.best)
    if found.best.family == FEWER:
        beside = [_winner(found.beside)] if found.beside else []
    else:
        beside = fewer_steps(plain, [found.steps]) if plan.recipe.fewer_steps is None else []
    others = [each for each in plan.setups if each.name != winner.name]
    return replace(plan, setups=(*others, *beside, winner), named=winner.name)


def _told(report: Report, target: Target, found: Found, plan: Plan) -> Report:
    """With whether the target was reached, what was expected of it, and what was tried."""
    steps, reached = found.best.setup.steps, _reached(target, report, plan.named)
    notes = [f"Target: {reached}."]
    if found.best.family == FEWER:
        told = f"`asdm generate` draws with {steps} by itself; elsewhere ask for them"
        notes.append(f"Use {steps} steps: no plan was better. The written model carries none; {told}.")
    elif steps != plan.recipe.steps:
        notes.append(f"The plan is for {steps} steps instead of {plan.recipe.steps}.")
    held = [(found.best, plan.named), *([(found.beside, PLAN)] if found.beside else [])]
    facts = {
        "target": reached,
        "predicted and measured": [row for tried, name in held for row in _held(report, target, tried, name)],
        "tried": [each.row(target.metric) for each in found.tried],
    }
    return replace(report, facts=report.facts | facts, notes=[*notes, *report.notes])


def _held(report: Report, target: Target, tried: Tried, name: str) -> Iterator[dict[str, Any]]:
    """What the search expected of a set-up, beside what was measured on other prompts."""
    quality = KEYS.get(target.metric, target.metric)
    for key, expected in (("image_speedup", tried.speedup), (quality, tried.quality)):
        if (found := _figure(report, name, key)) is not None:
            row = {"set-up": name, "figure": metric(key).title, "predicted": expected, "measured": found.value}
            yield row | {"interval": f"{found.low:.4g} to {found.high:.4g}" if found.low is not None else ""}


def _looked_again(
    plan: Plan, wanted: Measures, report: Report | None, where: Place, folder: Path, session: Session
) -> Report | None:
    """With what more pictures say of the front, which the first process tells the others."""
    first = plan.recipe.metrics[0]
    state = processes()
    best = by_first(state, lambda: on_front(report, KEYS.get(first, first)) if report else [])
    chosen = [setup for setup in plan.setups if setup.name in (plan.setups[0].name, *best)]
    found = compare(chosen, wanted, where, folder / FRONT, state, session)
    if report is None or found is None:
        return None
    part = f"{FRONT}/{len(wanted.prompts.prompts) if wanted.prompts else 0} pictures"
    more = [
        replace(each, of=part, protocol=FRONT) for each in found.records if each.protocol == QUALITY and not each.of
    ]
    card = {FRONT: found.protocols[QUALITY]}
    return replace(report, records=[*report.records, *more], protocols=report.protocols | card)


def on_front(report: Report, quality: str) -> list[str]:
    """Of each series what nothing in it is as fast as and as good, by the figure of this name."""
    whole = [each for each in report.records if not each.of and each.at is None]
    speeds, worth = ({each.setup: each for each in whole if each.metric == key} for key in ("image_speedup", quality))
    sign = -1 if metric(quality).better == "lower" else 1
    series: dict[str, dict[str, ParetoPoint]] = {}
    for name in [name for name in report.setups if name in speeds and name in worth]:
        shot = ParetoPoint(1 / speeds[name].value, sign * worth[name].value)
        series.setdefault(str(report.setups[name]["series"]), {})[name] = shot
    fronts = {own: set(front(shots.values())) for own, shots in series.items()}
    return [name for own, shots in series.items() for name, shot in shots.items() if shot in fronts[own]]


def _figure(report: Report, setup: str, key: str) -> Record | None:
    return next((each for each in report.records if (each.setup, each.metric, each.of) == (setup, key, "")), None)


def _reached(target: Target, report: Report, name: str) -> str:
    """What was asked for, and what was measured."""
    key = "image_speedup" if target.speedup else KEYS.get(target.metric, target.metric)
    asked, found = target.speedup or target.psnr_db or target.perceptual or 0.0, _figure(report, name, key)
    assert found is not None, "what a target is told by is measured"
    met = found.value <= asked if key == "perceptual" else found.value >= asked
    low, high = (found.value if each is None else each for each in (found.low, found.high))
    told = "met" if met else "not told apart" if low <= asked <= high else "missed"
    return f"{target.words}: {told}, measured {found.value:.3g} ({low:.3g} to {high:.3g})"


def _wanted(recipe: InheritRecipe, plain: Setup) -> Iterator[tuple[str, Setup]]:
    """Where each plan stands in the recipe, and who draws by it; last the DeepCache package, which stands nowhere."""
    if specs := _specs(recipe):
        yield _key(recipe), plain.with_patches(specs, name=PLAN, series=OURS)
    for index, each in enumerate(recipe.sweep):
        settings = {"name": each.name, "series": each.series, "steps": each.steps or recipe.steps}
        yield f"sweep[{index}].{_key(each)}", plain.with_patches(_specs(each), **settings)
    if asked := recipe.product:
        for level, mode, interval in product(asked.levels, asked.modes, asked.intervals):
            nodes, cache = asked.levels[level].nodes, asked.levels[level].cache
            rule = {"nodes": nodes, "cache": cache, "order": asked.order, "axis": asked.axis}
            rules = read_plan({"rules": [{**rule, "schedule": {"mode": mode, "interval": interval}}]})
            varied = {"level": level, "mode": mode, "every": interval}
            name = f"{level}, {mode} {interval}"
            yield f"product.levels.{level}", plain.with_cache(name, rules, series=OURS, varied=varied)
    if peer := recipe.deepcache:
        for branch, interval in product(peer.branches, peer.intervals):
            spec = DeepCacheSpec(interval=interval, branch=branch, steps=plain.steps)
            name = f"DeepCache {branch}, every {interval}"
            yield "", replace(plain, name=name, patches=(*plain.patches, spec), series=DEEPCACHE)


def _specs(asked: InheritRecipe | Candidate) -> list[PatchSpec]:
    return [*asked.patches, *([cache_spec(asked.plan.resolved())] if asked.plan else [])]


def _key(asked: InheritRecipe | Candidate) -> str:
    return "plan" if asked.plan else "patches"
