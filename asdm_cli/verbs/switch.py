"""`asdm switch`: several UNets in one generation, and what that gains: schedules by hand, by ratios, and searched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asdm_cli.compare.costs import Rounds, on_paper, work
from asdm_cli.compare.run import Measures, Place, compare, finished
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
)
from asdm_cli.console import is_first
from asdm_cli.errors import AsdmError, ModelError
from asdm_cli.metrics.suite import MetricSettings, check
from asdm_cli.models.directory import UNET, ModelDirectory, check_unet, find
from asdm_cli.models.metadata import one_unet, patches_of, schedule_of, unet_files, write_patched
from asdm_cli.models.pipelines import PIPELINES
from asdm_cli.models.schedulers import unlike_pipelines
from asdm_cli.models.write import carried_size, takes
from asdm_cli.patches.cache_plan import resolve
from asdm_cli.patches.unet_schedule import alone, served_by, who_serves
from asdm_cli.profiling.expected import Work
from asdm_cli.recipe.load import dump_given
from asdm_cli.recipe.patches import (
    FeatureCacheSpec,
    GuidanceScheduleSpec,
    PatchSpec,
    Segment,
    Switching,
    UNetScheduleSpec,
    described,
)
from asdm_cli.recipe.verbs import SwitchRecipe
from asdm_cli.records import Report, under
from asdm_cli.report.run_directory import Run
from asdm_cli.sampling.generate import place, processes
from asdm_cli.sampling.prompts import PromptList, read_prompts
from asdm_cli.search.schedules import SEARCHED, Chosen, name_of, records, search
from asdm_cli.unet.blocks import unlike_inputs

RESUMABLE = True
SCHEDULE, ONE, HAND = "the schedule", "one UNet", "by hand"
FIRST, LAST = "first", "last"
ORDERS = {FIRST: "compressed first", LAST: "original first"}
"""Where the other UNet of a fixed schedule in two parts serves -> the series that it is of."""
RECIPES = "recipes"


@dataclass(frozen=True)
class Plan:
    recipe: SwitchRecipe
    models: dict[str, ModelDirectory]
    setups: tuple[Setup, ...]
    """All that are known before a search; the first UNet alone is the first."""
    near: Setup | None
    prompts: PromptList | None
    """None, as the metrics, where nothing is measured."""
    searched: PromptList | None
    """What a search draws."""
    metrics: MetricSettings | None
    size: int

    @property
    def rounds(self) -> Rounds:
        return Rounds(self.recipe.repeats, self.recipe.warmups, (1,), self.size)

    def report(self) -> Report:
        recipe, scheduler = self.recipe, self.setups[0].scheduler
        served = {setup.name: served_by(_rules(setup), scheduler) for setup in self.setups}
        several = {name: each for name, each in served.items() if len(set(each)) > 1}
        budgets = recipe.search.budgets if recipe.search else []
        ways = [setup.name for setup in self.setups] + [name_of(each) for each in budgets]
        facts: dict[str, object] = {"model": _written(recipe, None)}
        if self.prompts is not None:
            facts |= {
                "prompts": f"{len(self.prompts.prompts)}, {self.prompts.title}",
                "ways": ", ".join(ways),
                "timed": f"{recipe.repeats} rounds of images in turn, {recipe.steps} steps",
            }
        if recipe.rules or recipe.search:  # after a search the model may hold fewer of the UNets
            leading, *others = self.models
            serving = recipe.rules.serving if recipe.rules else {*others}
            files = [file for name in others if name in serving for file in unet_files(self.models[name])]
            carried = carried_size(self.models[leading], whole=True)
            facts["size"] = takes(0, carried + sum(file.stat().st_size for file in files))
        unets = [Setup(name, model, model.config(UNET), source=model.source) for name, model in self.models.items()]
        paper = [record for setup in unets for record in on_paper(setup, self.size) if not record.of]
        timelines = [who_serves(several, list(self.models))] if several else []
        told: dict[str, dict[str, object]] = {name: {"model": model.source} for name, model in self.models.items()}
        for spec in self.setups[0].patches:
            if isinstance(spec, FeatureCacheSpec) and spec.unet:
                told[spec.unet]["patches"] = spec.told()
        return Report("switch", told, paper, timelines=timelines, facts=facts)

    def work(self) -> Work | None:
        """A search draws a schedule a budget, and not all of what it calibrates with is known before."""
        if self.prompts is None:
            return None
        budgets = self.recipe.search.budgets if self.recipe.search else []
        everybody = [*self.setups, *([self.near] if self.near else []), *(self.setups[0] for _ in budgets)]
        return work(everybody, len(self.prompts.prompts), self.rounds, self.size, self.recipe)


def plan(recipe: SwitchRecipe) -> Plan:
    """UNets held against each other, and schedules against the sampler. Raises ModelError with all that do not fit."""
    models, first = _models(recipe)
    setups, near = list(_setups(recipe, first)), converged(first, recipe.converged)
    budgets = recipe.search.budgets if recipe.search else []
    searched = [first.scheduled(name_of(each), alone(first.name), series=SEARCHED) for each in budgets]
    faults = misfits([*setups, *searched, *([near] if near else [])])
    if not faults:
        for setup in setups:
            try:
                served_by(_rules(setup), first.scheduler)
            except AsdmError as error:
                faults.append(f"{setup.name}: {error}")
    if recipe.search and "image_guidance" in PIPELINES[first.kind].takes:
        what = f"weighs answers by the two halves of guidance, and a {first.kind} has three parts"
        faults.append(f"search: {what}; give `parts`, `ratios` or a `sweep`")
    if recipe.search and any(isinstance(spec, GuidanceScheduleSpec) for spec in first.patches):
        what = f"weighs answers at every call, and {first.name} carries guidance that is left out at some"
        faults.append(f"search: {what}; name its model without, and put guidance-schedule on what is found")
    if faults:
        raise ModelError("\n".join(faults))
    size, searching = common_size(recipe.size, [first]), None
    if not recipe.measure:
        return Plan(recipe, models, tuple(setups), near, None, None, None, size)
    prompts = read_prompts(recipe.prompts, recipe.limit, recipe.per_prompt, recipe.inputs)
    setups = drawn_from(setups, prompts, size)
    metrics = check(recipe, prompts, models[first.name])
    if recipe.search:  # prompts behind the ones that are measured, if there are as many; else the last that there are
        held = read_prompts(recipe.prompts, recipe.limit + recipe.search.prompts, inputs=recipe.inputs)
        searching = held.last(recipe.search.prompts)
    return Plan(recipe, models, tuple(setups), near, prompts, searching, metrics, size)


def run(plan: Plan, run: Run) -> Report:
    """Search, draw what is missing, all processes their shares; the first one then times, counts and writes.

    Processes but the first return an empty report. Raises RunError, ModelError.
    """
    if plan.prompts is None or plan.metrics is None:
        return _only_written(plan, run) if is_first() else Report("switch")
    recipe, state, first = plan.recipe, processes(), plan.setups[0]
    where = Place(*place(recipe.device, recipe.dtype, state), plan.size, recipe.seed, recipe.batch)
    session = Session(where.device, where.dtype, plan.setups)
    chosen: tuple[Chosen, ...] = ()
    found = []
    if recipe.search and plan.searched:
        fixed = {setup.name: _rules(setup) for setup in plan.setups if setup.steps == recipe.steps}
        calibration, chosen = search(session, recipe.search, first, fixed, plan.searched, where, run.path, state)
        found = list(records(calibration, chosen))
    setups = [*plan.setups, *(first.scheduled(each.name, each.rules, series=SEARCHED) for each in chosen)]
    measures = Measures(plan.prompts, plan.metrics, plan.rounds, converged=plan.near, grid=recipe.grid)
    report = compare(setups, measures, where, run.path, state, session)
    if report is None:
        return Report("switch")
    rules = recipe.rules or (chosen[0].rules if chosen else None)
    if rules is not None:
        _write_model(plan, rules, run)
        report.setups[SCHEDULE if recipe.rules else chosen[0].name]["written"] = "."
    _write_recipes(recipe, chosen, run.path / RECIPES)
    if found:
        assert plan.searched is not None, "there was a search"
        report.records.extend(under("search", found))
        report.protocols["search"] = {"prompts": plan.searched.title, "pictures": len(plan.searched.prompts)}
        report.notes.append("Searched schedules were chosen on prompts and seeds of their own; `recipes/` has each.")
    return finished(report, "switch", model=_written(recipe, rules))


def _only_written(plan: Plan, run: Run) -> Report:
    rules = plan.recipe.rules
    assert rules is not None, "a recipe that measures nothing has parts"
    _write_model(plan, rules, run)
    return finished(plan.report(), "switch", model=_written(plan.recipe, rules))


def _models(recipe: SwitchRecipe) -> tuple[dict[str, ModelDirectory], Setup]:
    """By name, in the recipe's order, and the first UNet alone, in a schedule of all of them. From configs and headers
    only. Raises ModelError with all that does not fit."""
    models: dict[str, ModelDirectory] = {}
    caches: list[FeatureCacheSpec] = []
    around: list[PatchSpec] = []
    """What the first one carries besides."""
    faults: list[str] = []
    for name, asked in recipe.unets.items():
        try:
            models[name] = one_unet(find(asked.model, recipe.adapters))
            check_unet(models[name])
            carried = patches_of(models[name])
            own = [spec for spec in carried if isinstance(spec, FeatureCacheSpec)]
            other = [spec for spec in carried if not isinstance(spec, FeatureCacheSpec)]
            if other and len(models) > 1:
                kinds = ", ".join(spec.kind for spec in other)
                raise ModelError(f"carries {kinds}, which is of a whole pipeline: that of the first of the UNets")
            around += other
            plans = [cache_spec(asked.plan.resolved())] if asked.plan is not None else own
            for plan in plans:
                resolve(plan, models[name].config(UNET))
                if any(rule.fit for rule in plan.rules):
                    what = "its plan was fitted to all calls of a generation, and here UNets take turns"
                    way = f"asdm export {asked.model} --to diffusers --plain --out DIR"
                    raise ModelError(f"{what}; give it another `plan`, or the model without one ({way})")
            caches += [cache_spec(plan, name) for plan in plans]
        except AsdmError as error:
            faults.append(f"unets.{name}: {error}")
    if not faults:
        configs = {name: each.config(UNET) for name, each in models.items()}
        faults = [f"unets: {each}" for each in (*unlike_inputs(configs), *unlike_pipelines(models))]
    if faults:
        raise ModelError("\n".join(faults))
    name, *_ = models
    plain = drawing(name, models[name], carried=False, series=PLAIN, **recipe.drawn_with)
    spec = UNetScheduleSpec(unets=list(models), by="step", parts=alone(name).parts, offload=recipe.offload)
    others = {other: each for other, each in models.items() if other != name}
    return models, replace(plain, patches=(spec, *caches, *around), unets=others)


def _setups(recipe: SwitchRecipe, first: Setup) -> Iterator[Setup]:
    """Everybody but the searched ones."""
    yield first
    yield from fewer_steps(first, recipe.fewer_steps)
    yield from (first.scheduled(name, alone(name), series=ONE) for name in list(recipe.unets)[1:])
    if recipe.rules:
        yield first.scheduled(SCHEDULE, recipe.rules, series=HAND)
    for each in recipe.sweep:
        yield first.scheduled(each.name, Switching(by=each.by, parts=each.parts), series=each.series)
    leading, *others = recipe.ratios.unets if recipe.ratios else ("",)
    # a share of nothing, or of all, is one UNet alone, which draws anyway
    shares = [share for share in recipe.ratios.shares if 0 < share < 1] if recipe.ratios else []
    for other in others:
        for share in shares:
            parts = {
                FIRST: [Segment(unet=other, until=share), Segment(unet=leading)],
                LAST: [Segment(unet=leading, until=round(1 - share, 9)), Segment(unet=other)],
            }
            for order, halves in parts.items():
                rules = Switching(by="fraction", parts=halves)
                yield first.scheduled(f"{other} {order} {100 * share:g}%", rules, series=ORDERS[order])


def _rules(setup: Setup) -> Switching:
    schedule = schedule_of(setup.patches)
    assert schedule is not None, "every set-up of this verb says who serves"
    return schedule.rules


def _write_model(plan: Plan, rules: Switching, run: Run) -> None:
    """The first UNet, which stock diffusers draws with, and those others that serve something."""
    first, recipe = plan.setups[0], plan.recipe
    serving = {first.name, *rules.serving}
    names = [name for name in plan.models if name in serving]
    schedule = UNetScheduleSpec(unets=names, by=rules.by, parts=rules.parts, offload=recipe.offload)
    gone = [spec for spec in first.patches if isinstance(spec, FeatureCacheSpec) and spec.unet not in serving]
    patches = [spec for spec in first.patches if spec not in gone and not isinstance(spec, UNetScheduleSpec)]
    facts: dict[str, Any] = {"measured_with": recipe.drawn_with} if recipe.measure else {}
    leading = plan.models[first.name]
    write_patched(leading, plan.models, [schedule, *patches], run.path / "model", "switch", run.link, **facts)


def _write_recipes(recipe: SwitchRecipe, chosen: tuple[Chosen, ...], folder: Path) -> None:
    """Each searched schedule as a recipe of its own, to run or to change."""
    shutil.rmtree(folder, ignore_errors=True)
    for each in chosen:
        folder.mkdir(exist_ok=True)
        name = f"switch-budget-{each.budget:g}"
        rules = each.rules.model_dump(mode="json", exclude_none=True)
        given = recipe.model_dump(
            mode="json", exclude_none=True, exclude_unset=True, exclude={"search", "ratios", "sweep"}
        )
        ready = SwitchRecipe.model_validate({**given, **rules, "out": f"{recipe.out}-budget-{each.budget:g}"})
        head = f"# asdm switch {recipe.out}/{RECIPES}/{name}.yaml\n"
        (folder / f"{name}.yaml").write_text(head + dump_given(ready), encoding="utf-8")


def _written(recipe: SwitchRecipe, rules: Switching | None) -> str:
    """What is told of the written model; `rules` are known after a search only, if they come from one."""
    rules = rules or recipe.rules
    if rules is not None:
        return f"in the written model serve: {described(rules)}"
    if recipe.search:
        return f"will have the schedule that is found for {recipe.search.budgets[0]:g} of the time"
    return "none is written: the recipe has neither `parts` nor `search`"
