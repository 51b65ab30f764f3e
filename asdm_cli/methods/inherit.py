"""`asdm inherit`: a plan on a model, and what it gains: cost, time and fidelity beside fewer steps and other plans."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from asdm_cli.errors import ModelError
from asdm_cli.inheritance.course import Nodes
from asdm_cli.measure.eval_plan import EvalPlan
from asdm_cli.measure.inherit_report import inherit_report, picture, rules_table
from asdm_cli.measure.players import ASDM, DEEPCACHE, PLAIN, Player, require_package
from asdm_cli.measure.processes import processes
from asdm_cli.measure.ways import Studio, card_of, evaluation, fewer, measure, solution, style_of, unplayable
from asdm_cli.models.load import load_pipeline
from asdm_cli.models.origin import stamps
from asdm_cli.models.provenance import record, run_time_plan
from asdm_cli.models.schedulers import unet_calls
from asdm_cli.models.source import ModelDirectory
from asdm_cli.models.switched import nodes_of, read_switch
from asdm_cli.models.write import assemble_directory, carried_size, takes
from asdm_cli.recipe.patches import Rule, Rules, Switch, read_plan
from asdm_cli.recipe.verbs import InheritRecipe
from asdm_cli.report.document import Cell, Interval, Part, Report
from asdm_cli.report.run_directory import Run
from asdm_cli.unet.anatomy import Anatomy

RESUMABLE = True
PLAN = "the plan"


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
        instead = " instead of the one it has now" if carried else ""
        return f"The written model carries the plan{each}{instead}. {takes(0, carried_size(self.source, set()))}"


def plan(recipe: InheritRecipe) -> Plan:
    """Every plan held against the UNet's config. Raises ModelError with all that do not fit."""
    checked = evaluation(recipe, PLAIN, recipe.model)
    directory = checked.entrants[0].directory
    anatomy, switch = Anatomy.of(directory.config("unet")), read_switch(directory)
    faults: list[str] = []
    players = [Player(PLAIN, PLAIN, recipe.steps, recipe.sampler), *fewer(recipe)]
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
    faults += unplayable([*players, *solution(recipe)], directory)
    if faults:
        raise ModelError("\n".join(dict.fromkeys(faults)))
    if any(player.package for player in players):
        require_package()
    return Plan(recipe, checked, nodes, switch, tuple(players))


def run(plan: Plan, run: Run) -> Report:
    """Draw what is missing, all processes their shares; the first one then times, counts and writes the model."""
    style = style_of(plan.eval, plan.recipe, processes())
    pipe = load_pipeline(plan.source, style.device, style.dtype, with_plan=False)
    studio = Studio(pipe, style, processes(), {"files": stamps(plan.source)})
    measured = measure(studio, plan.eval, plan.recipe, plan.players, run.path)
    if measured is None:
        return Report("inherit", "", "", [])
    if plan.nodes:
        _write_model(plan, plan.nodes, run)
    return inherit_report(measured, card_of(plan.eval, plan.recipe, style), plan.nodes, plan.recipe.grid)


def _write_model(plan: Plan, nodes: Nodes, run: Run) -> None:
    """The source's files and the plan. Anew: an interrupted run may have left them, its own or another plan's."""
    target = run.path / "model"
    shutil.rmtree(target, ignore_errors=True)
    assemble_directory(plan.source, target, set(), run.link)
    recipe = plan.recipe
    measured = {"sampler": recipe.sampler, "steps": recipe.steps, "guidance": recipe.guidance}
    # the plan is for every UNet, and in the place of those that each had of its own
    switch = plan.switch and plan.switch.model_copy(update={"plans": {}})
    record(plan.source, target, "inherit", nodes.plan, switch, measured_with=measured)


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


def _rule_rows(nodes: Nodes, calls: int) -> list[dict[str, Cell | Interval]]:
    rows: list[dict[str, Cell | Interval]] = []
    for index, rule in enumerate(nodes.plan.rules):
        steps = rule.schedule.key_steps(calls)
        rows.append(
            {
                "rule": f"rules[{index}]",
                "nodes": rule.nodes if isinstance(rule.nodes, str) else ", ".join(rule.nodes),
                "units": sum(node.rule == index for node in nodes.owned.values()),
                "schedule": str(rule.schedule),
                "keys": None if steps is None else len(steps),
                "carry": _handed_on(rule),
            }
        )
    return rows


def _handed_on(rule: Rule) -> str:
    """`output, last value` or `residual, forecast of order 2 in log-snr`."""
    how = f"forecast of order {rule.order} in {rule.coordinate}" if rule.order else "last value"
    return f"{rule.carry}, {how}"
