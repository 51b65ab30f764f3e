"""`asdm inherit`: a plan on a model, and what it gains: cost, time and fidelity beside fewer steps and other plans."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from accelerate import PartialState

from asdm_cli.errors import ModelError, RunError
from asdm_cli.inheritance.course import Nodes
from asdm_cli.measure.cards import Card, versions
from asdm_cli.measure.drawing import Origin, Share, Style, claim, stamps
from asdm_cli.measure.eval_plan import EvalPlan, make_plan
from asdm_cli.measure.inherit_report import CONVERGED, Measured, inherit_report, picture, rules_table
from asdm_cli.measure.inherit_run import cost, draw_share, take_turns
from asdm_cli.measure.judging import judge_of, real_set
from asdm_cli.measure.machine import machine
from asdm_cli.measure.pictures import PictureSet
from asdm_cli.measure.players import ASDM, DEEPCACHE, FEWER, PLAIN, Player, require_package
from asdm_cli.measure.processes import processes
from asdm_cli.measure.scores import Figures, Judge, columns
from asdm_cli.models.load import device_and_dtype, load_pipeline, unet_calls
from asdm_cli.models.provenance import record, run_time_plan
from asdm_cli.models.source import ModelDirectory
from asdm_cli.models.switched import nodes_of, read_switch
from asdm_cli.models.write import assemble_directory
from asdm_cli.progress import track
from asdm_cli.recipe.plans import Rule, Rules, read_plan
from asdm_cli.recipe.switching import Switch
from asdm_cli.recipe.verbs import Drawing, EvalContestant, EvalRecipe, InheritRecipe
from asdm_cli.report.document import Cell, Column, Interval, Part, Report
from asdm_cli.report.run_directory import Run
from asdm_cli.schedule import describe, key_steps
from asdm_cli.unet.anatomy import Anatomy

RESUMABLE = True
PLAN = "the plan"
TO_CONVERGED = Column(CONVERGED, "PSNR to converged, dB", "higher")
SOLUTION = "converged"
SHARES = (0.8, 0.65, 0.5, 0.35, 0.2)
"""Of the steps, at which the plain model draws too where the recipe names no `fewer_steps`."""


@dataclass(frozen=True)
class Plan:
    recipe: InheritRecipe
    eval: EvalPlan
    nodes: Nodes | None
    """Of the plan that the model directory will carry; where several UNets take turns, on the first."""
    switch: Switch | None
    """Who takes turns."""
    players: tuple[Player, ...]
    """The plain model first."""

    @property
    def source(self) -> ModelDirectory:
        return self.eval.entrants[0].directory

    def report(self) -> Report:
        parts: list[Part] = []
        if self.nodes:
            course = self.nodes.course(unet_calls(self.source, self.recipe.sampler, self.recipe.steps))
            parts.append(rules_table(self.nodes, course.calls, _rule_rows(self.nodes, course.calls)))
            if None not in course.keys:
                parts.append(picture(self.nodes, [course.resting(call) for call in range(course.calls)]))
        said = (
            f"{self.source.name}: {self.eval.count} prompts drawn in {len(self.players)} ways, "
            f"{self.recipe.steps} steps, then {self.recipe.repeats} rounds of images timed in turn. "
            f"Ways: {', '.join(player.name for player in self.players)}. {self._model()}"
        )
        return Report("inherit", "Plan", said, parts)

    def _model(self) -> str:
        if self.nodes is None:
            return "No model is written: the recipe has no `plan`."
        carried = run_time_plan(self.source) is not None or (self.switch and self.switch.plans)
        each = f", on each of its UNets ({', '.join(self.switch.unets)})" if self.switch else ""
        return f"The written model carries the plan{each}" + (" instead of the one it has now." if carried else ".")


def plan(recipe: InheritRecipe) -> Plan:
    """Every plan held against the UNet's config. Raises ModelError with all that do not fit."""
    settings = {key: getattr(recipe, key) for key in Drawing.model_fields if key != "verb"}
    model = EvalContestant(name=PLAIN, model=recipe.model)
    checked = make_plan(EvalRecipe(verb="eval", models=[model], **settings))
    directory = checked.entrants[0].directory
    anatomy, switch = Anatomy.of(directory.config("unet")), read_switch(directory)
    faults: list[str] = []
    players = [Player(PLAIN, PLAIN, recipe.steps, recipe.sampler), *_fewer(recipe)]
    nodes = None
    for key, player, rules in _wanted(recipe):
        try:
            found = Nodes(rules, anatomy)
            if switch:
                nodes_of(directory, switch, dict.fromkeys(switch.unets[1:], rules))
            players.append(replace(player, nodes=found))
            nodes = found if key == "plan" else nodes
        except ModelError as error:
            faults.append(f"{key}.{error}")
    players += _package(recipe)
    if switch and recipe.deepcache:
        faults.append("deepcache: the package works on one UNet, and this model has several; leave it out")
    faults += _same_names([*players, *_solution(recipe)])
    if faults:
        raise ModelError("\n".join(dict.fromkeys(faults)))
    if any(player.package for player in players):
        require_package()
    return Plan(recipe, checked, nodes, switch, tuple(players))


def run(plan: Plan, run: Run) -> Report:
    """Draw what is missing, all processes their shares; the first one then times, counts and writes the model."""
    state = processes()
    style = _style(plan, state)
    drawing = [*plan.players, *_solution(plan.recipe)]
    sets = {player.name: PictureSet(run.path / "pictures" / player.name, plan.eval.count) for player in drawing}
    if state.is_main_process:
        for player in drawing:
            claim(sets[player.name], _origin(plan, player, style))
    state.wait_for_everyone()
    pipe = load_pipeline(plan.source, style.device, style.dtype, with_plan=False)
    for player in drawing:
        share = Share(state.process_index, state.num_processes)
        draw_share(pipe, player, plan.eval.prompts.prompts, style, sets[player.name], share)
    state.wait_for_everyone()
    if not state.is_main_process:
        return Report("inherit", "", "", [])
    _check_whole(sets)
    if plan.nodes:
        _write_model(plan, plan.nodes, run.path / "model")
    real = real_set(plan.eval, run.path) if plan.eval.has_baselines else None
    judge = judge_of(plan.eval, run.path, sets[PLAIN], real)
    measured = Measured(
        plan.players,
        {player.name: cost(pipe, player, style) for player in plan.players},
        take_turns(pipe, plan.players, style, plan.recipe.warmups, plan.recipe.repeats),
        _figures(plan, judge, sets),
        sets,
        plan.eval.prompts.prompts,
        (*columns(judge.wanted, judge.network), *([TO_CONVERGED] if plan.recipe.converged else [])),
    )
    return inherit_report(measured, _card(plan, style), plan.nodes, plan.recipe.grid)


def _write_model(plan: Plan, nodes: Nodes, target: Path) -> None:
    """The source's files and the plan. Anew: an interrupted run may have left them, its own or another plan's."""
    shutil.rmtree(target, ignore_errors=True)
    assemble_directory(plan.source, target, replaced=set())
    recipe = plan.recipe
    measured = {"sampler": recipe.sampler, "steps": recipe.steps, "guidance": recipe.guidance}
    # the plan is for every UNet, and in the place of those that each had of its own
    switch = plan.switch and plan.switch.model_copy(update={"plans": {}})
    record(plan.source, target, "inherit", nodes.plan, switch, measured_with=measured)


def _fewer(recipe: InheritRecipe) -> list[Player]:
    counts = recipe.fewer_steps
    if counts is None:
        counts = sorted({max(1, round(share * recipe.steps)) for share in SHARES} - {recipe.steps}, reverse=True)
    return [Player(f"{count} steps", FEWER, count, recipe.sampler) for count in counts]


def _solution(recipe: InheritRecipe) -> list[Player]:
    return [Player(SOLUTION, SOLUTION, recipe.converged, "dpm++2m")] if recipe.converged else []


def _package(recipe: InheritRecipe) -> list[Player]:
    package = recipe.deepcache
    pairs = product(package.branches, package.intervals) if package else ()
    own = (recipe.steps, recipe.sampler)
    return [
        Player(f"DeepCache {branch}, every {interval}", DEEPCACHE, *own, package=(interval, branch))
        for branch, interval in pairs
    ]


def _wanted(recipe: InheritRecipe) -> Iterator[tuple[str, Player, Rules]]:
    """Where it stands in the recipe, who draws so, and by which rules."""
    if recipe.plan:
        yield "plan", Player(PLAN, ASDM, recipe.steps, recipe.sampler), recipe.plan.resolved()
    for index, each in enumerate(recipe.sweep):
        player = Player(each.name, each.series, each.steps or recipe.steps, recipe.sampler)
        yield f"sweep[{index}].plan", player, each.plan.resolved()
    if recipe.product:
        yield from _product(recipe)


def _product(recipe: InheritRecipe) -> Iterator[tuple[str, Player, Rules]]:
    asked = recipe.product
    assert asked is not None, "asked for only where there is one"
    forecast = {"order": asked.order, "coordinate": asked.coordinate}
    for name, mode, interval in product(asked.levels, asked.modes, asked.intervals):
        level = asked.levels[name]
        schedule = {"mode": mode, "interval": interval}
        rule = {"nodes": level.nodes, "carry": level.carry, "schedule": schedule, **forecast}
        place = (name, mode, str(interval))
        player = Player(f"{name}, {mode} {interval}", ASDM, recipe.steps, recipe.sampler, place=place)
        yield f"product.levels.{name}", player, read_plan({"rules": [rule]})


def _same_names(players: Iterable[Player]) -> list[str]:
    names = [player.name for player in players]
    twice = {name for name in names if names.count(name) > 1}
    return [f"name {name!r} is taken by another way to draw; choose another" for name in sorted(twice)]


def _style(plan: Plan, state: PartialState) -> Style:
    recipe = plan.recipe
    device, dtype = device_and_dtype(recipe.device, recipe.dtype)
    if device.type == "cuda" and state.num_processes > 1:
        device = state.device  # each process has a GPU of its own
    size = plan.eval.size
    return Style(recipe.steps, recipe.guidance, size, recipe.seed, recipe.sampler, recipe.batch, device, dtype)


def _card(plan: Plan, style: Style) -> Card:
    own = plan.source.index["scheduler"][1]
    return {
        "model": plan.source.name,
        "prompts": plan.eval.prompts.title,
        "pictures": plan.eval.count,
        "resolution": f"{style.size} x {style.size}",
        "sampler": f"own: {own}" if style.sampler == "own" else f"{style.sampler}, set up as {own}",
        "steps": style.steps,
        "guidance": style.guidance,
        "converged": f"dpm++2m, {plan.recipe.converged} steps" if plan.recipe.converged else None,
        "seed_rule": f"numpy SeedSequence([{style.seed}, index of the prompt]), a CPU generator per picture",
        "dtype": str(style.dtype).removeprefix("torch."),
        "rounds": plan.recipe.repeats,
        "warmup_rounds": plan.recipe.warmups,
        "images_at_once_when_timed": 1,
        **machine(style.device),
    }


def _origin(plan: Plan, player: Player, style: Style) -> Origin:
    """All that a player's pictures depend on."""
    rules = player.nodes.plan.model_dump_json() if player.nodes else None
    origin: Origin = {
        "prompts": plan.eval.prompts.title,
        "size": style.size,
        "sampler": player.sampler,
        "steps": player.steps,
        "guidance": style.guidance,
        "seed": style.seed,
        "plan": rules,
        "deepcache_package": player.package,
        "device": style.device.type,
        "dtype": str(style.dtype),
        "versions": versions(),
    }
    return {**origin, "files": stamps(plan.source)}


def _check_whole(sets: dict[str, PictureSet]) -> None:
    for name, pictures in sets.items():
        missing = len(pictures.missing(range(pictures.count)))
        if missing:
            raise RunError(f"{name!r}: {missing} of {pictures.count} pictures are missing; run the same command again")


def _figures(plan: Plan, judge: Judge, sets: dict[str, PictureSet]) -> dict[str, Figures]:
    figures = {player.name: judge.figures(sets[player.name]) for player in track(plan.players, "comparing pictures")}
    if plan.recipe.converged:
        solution = replace(judge, reference=sets[SOLUTION], wanted=("psnr",))
        for player in plan.players:
            figures[player.name] |= {CONVERGED: solution.paired(sets[player.name])["psnr_db"]}
    return figures


def _rule_rows(nodes: Nodes, calls: int) -> list[dict[str, Cell | Interval]]:
    rows: list[dict[str, Cell | Interval]] = []
    for index, rule in enumerate(nodes.plan.rules):
        steps = key_steps(rule.schedule, calls)
        rows.append(
            {
                "rule": f"rules[{index}]",
                "nodes": rule.nodes if isinstance(rule.nodes, str) else ", ".join(rule.nodes),
                "units": sum(node.rule == index for node in nodes.owned.values()),
                "schedule": describe(rule.schedule),
                "keys": None if steps is None else len(steps),
                "carry": _handed_on(rule),
            }
        )
    return rows


def _handed_on(rule: Rule) -> str:
    """`output, last value` or `residual, forecast of order 2 in log-snr`."""
    how = f"forecast of order {rule.order} in {rule.coordinate}" if rule.order else "last value"
    return f"{rule.carry}, {how}"
