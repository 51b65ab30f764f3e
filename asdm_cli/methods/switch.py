"""`asdm switch`: several UNets in one generation, and what that gains: schedules by hand, by ratios, and searched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asdm_cli.errors import AsdmError, ModelError
from asdm_cli.measure.eval_plan import EvalPlan
from asdm_cli.measure.players import PLAIN, Player
from asdm_cli.measure.processes import processes
from asdm_cli.measure.prompts import read_prompts
from asdm_cli.measure.switch_report import FIRST, HAND, LAST, ONE, ORDERS, switch_report, who_serves
from asdm_cli.measure.switch_search import PICTURES, SEARCHED, Chosen, Prompts, name_of, search
from asdm_cli.measure.ways import Studio, card_of, evaluation, fewer, measure, solution, style_of, unplayable
from asdm_cli.methods.members import Member, members, members_table
from asdm_cli.models.load import load_pipeline, take_turns
from asdm_cli.models.origin import stamps
from asdm_cli.models.schedulers import planned_scheduler
from asdm_cli.models.switched import unet_files, write_switched
from asdm_cli.models.write import carried_size, takes
from asdm_cli.recipe.load import dump_given
from asdm_cli.recipe.patches import Part as Stretch
from asdm_cli.recipe.patches import Switch, Switching, described
from asdm_cli.recipe.verbs import SwitchRecipe
from asdm_cli.report.document import Part, Report
from asdm_cli.report.run_directory import Run
from asdm_cli.switching.pipelines import alone
from asdm_cli.switching.run import served_by

RESUMABLE = True
SCHEDULE = "the schedule"
RECIPES = "recipes"
MOST_TOLD = 4
"""Parts of a schedule that are told one by one."""


@dataclass(frozen=True)
class Plan:
    recipe: SwitchRecipe
    eval: EvalPlan
    members: dict[str, Member]
    players: tuple[Player, ...]
    """All that are known before a search; the first UNet alone is the first."""
    prompts: Prompts | None
    """For a search."""

    @property
    def first(self) -> Player:
        return self.players[0]

    def report(self) -> Report:
        source = self.eval.entrants[0].directory
        recipe, served = self.recipe, _served(self)
        latent = self.eval.size // 2 ** (len(source.config("vae")["block_out_channels"]) - 1)
        parts: list[Part] = [members_table(self.members, latent, source.tokens)]
        parts += [who_serves(served, list(self.members))] if served else []
        ways = [player.name for player in self.players] + [name_of(each) for each in _budgets(recipe)]
        said = (
            f"{self.eval.count} prompts drawn in {len(ways)} ways, {recipe.steps} steps, then {recipe.repeats} rounds "
            f"of images timed in turn. Ways: {', '.join(ways)}. {_written(recipe, None)}"
        )
        if recipe.rules or recipe.search:
            said += f" {takes(0, self._size())}"
        return Report("switch", "Plan", said, parts)

    def _size(self) -> int:
        """Bytes of the written model; after a search it may hold fewer of the UNets."""
        first, *others = self.members
        serving = {part.unet for part in self.recipe.rules.parts} if self.recipe.rules else {*others}
        beside = [unet_files(self.members[name].directory) for name in others if name in serving]
        own = carried_size(self.members[first].directory, set())
        return own + sum(file.stat().st_size for files in beside for file in files)


def plan(recipe: SwitchRecipe) -> Plan:
    """UNets held against each other, and schedules against the sampler. Raises ModelError with all that do not fit."""
    found = members(recipe)
    first = next(iter(found))
    checked = evaluation(recipe, first, recipe.unets[first].model)
    players = tuple(_players(recipe))
    searched = [Player(name_of(each), SEARCHED, recipe.steps, recipe.sampler) for each in _budgets(recipe)]
    faults = unplayable([*players, *searched, *solution(recipe)], found[first].directory)
    scheduler = planned_scheduler(found[first].directory, recipe.sampler, recipe.steps)
    for player in players:
        try:
            served_by(_rules(player), scheduler)
        except AsdmError as error:
            faults.append(f"{player.name}: {error}")
    if faults:
        raise ModelError("\n".join(faults))
    return Plan(recipe, checked, found, players, _search_prompts(recipe))


def run(plan: Plan, run: Run) -> Report:
    """Search, draw what is missing, all processes their shares; the first one then times, counts and writes.

    Processes but the first return an empty report. Raises RunError, ModelError.
    """
    recipe, state = plan.recipe, processes()
    style = style_of(plan.eval, recipe, state)
    studio = Studio(_pipeline(plan, style.device, style.dtype), style, state, {"unets": _stamps(plan)})
    searched = None
    if recipe.search and plan.prompts:
        fixed = {player.name: _rules(player) for player in plan.players if player.steps == recipe.steps}
        searched = search(studio, recipe.search, plan.first, fixed, plan.prompts, run.path)
    chosen = searched.chosen if searched else ()
    players = (*plan.players, *(_searched_player(recipe, each) for each in chosen))
    measured = measure(studio, plan.eval, recipe, players, run.path)
    if measured is None:
        return Report("switch", "", "", [])
    rules = recipe.rules or (chosen[0].rules if chosen else None)
    if rules is not None:
        _write_model(plan, rules, run)
    _write_recipes(recipe, chosen, run.path / RECIPES)
    shutil.rmtree(run.path / PICTURES, ignore_errors=True)
    card = card_of(plan.eval, recipe, style) | _more_on_card(plan)
    return switch_report(measured, searched, card, recipe.grid, _written(recipe, rules))


def _players(recipe: SwitchRecipe) -> Iterator[Player]:
    """Everybody but the searched ones."""
    first, *others = recipe.unets
    own = (recipe.steps, recipe.sampler)
    yield Player(first, PLAIN, *own, rules=alone(first))
    yield from fewer(recipe, alone(first))
    yield from (Player(name, ONE, *own, rules=alone(name)) for name in others)
    if recipe.rules:
        yield Player(SCHEDULE, HAND, *own, rules=recipe.rules)
    for each in recipe.sweep:
        yield Player(each.name, each.series, *own, rules=Switching(by=each.by, parts=each.parts))
    yield from _in_two_parts(recipe)


def _in_two_parts(recipe: SwitchRecipe) -> Iterator[Player]:
    """The schedules of `ratios`; a share of nothing, or of all, is one UNet alone, who draws anyway."""
    first, *others = recipe.ratios.unets if recipe.ratios else ("",)
    shares = [share for share in recipe.ratios.shares if 0 < share < 1] if recipe.ratios else []
    for other in others:
        for share in shares:
            parts = {
                FIRST: [Stretch(unet=other, until=share), Stretch(unet=first)],
                LAST: [Stretch(unet=first, until=round(1 - share, 9)), Stretch(unet=other)],
            }
            for order, stretches in parts.items():
                told = f"{100 * share:g}%"
                name, place = f"{other} {order} {told}", (other, told, order)
                rules = Switching(by="fraction", parts=stretches)
                yield Player(name, ORDERS[order], recipe.steps, recipe.sampler, rules=rules, place=place)


def _searched_player(recipe: SwitchRecipe, chosen: Chosen) -> Player:
    return Player(chosen.name, SEARCHED, recipe.steps, recipe.sampler, rules=chosen.rules)


def _budgets(recipe: SwitchRecipe) -> list[float]:
    return recipe.search.budgets if recipe.search else []


def _rules(player: Player) -> Switching:
    assert player.rules is not None, "every player of this verb says who serves"
    return player.rules


def _served(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Who serves each call of the schedules in which several do."""
    scheduler = planned_scheduler(plan.eval.entrants[0].directory, plan.recipe.sampler, plan.recipe.steps)
    served = {player.name: served_by(_rules(player), scheduler) for player in plan.players}
    return {name: names for name, names in served.items() if len(set(names)) > 1}


def _search_prompts(recipe: SwitchRecipe) -> Prompts | None:
    """Those behind the ones that are measured, if there are as many; else the last ones that there are."""
    if recipe.search is None:
        return None
    held = read_prompts(recipe.prompts, recipe.limit + recipe.search.prompts)
    begin = max(0, len(held.prompts) - recipe.search.prompts)
    title = f"{held.title}, {begin} to {len(held.prompts) - 1}"
    return Prompts(held.prompts[begin:], title, max(0, min(recipe.limit, len(held.prompts)) - begin))


def _more_on_card(plan: Plan) -> dict[str, Any]:
    models = ", ".join(f"{name}: {member.directory.name}" for name, member in plan.members.items())
    return {"unets": models, "searched_on": plan.prompts.title if plan.prompts else None}


def _pipeline(plan: Plan, device: Any, dtype: Any) -> Any:
    """The first model's, in which all take turns."""
    (first, leading), *others = plan.members.items()
    pipe: Any = load_pipeline(leading.directory, device, dtype, with_plan=False)
    unets = {first: pipe.unet, **{name: member.directory for name, member in others}}
    plans = {name: member.nodes for name, member in plan.members.items() if member.nodes}
    take_turns(pipe, unets, alone(first), plans, plan.recipe.idle)
    return pipe


def _stamps(plan: Plan) -> dict[str, Any]:
    """All that pictures depend on of the UNets."""
    return {
        name: {"files": stamps(member.directory), "plan": member.plan.model_dump_json() if member.plan else None}
        for name, member in plan.members.items()
    }


def _write_model(plan: Plan, rules: Switching, run: Run) -> None:
    """The first UNet, which stock diffusers draws with, and those others that serve something."""
    first, *others = plan.members
    serving = {part.unet for part in rules.parts}
    unets = [first, *(name for name in others if name in serving)]
    plans = {name: each for name in unets if (each := plan.members[name].plan)}
    switch = Switch(by=rules.by, parts=rules.parts, unets=unets, plans=plans, idle=plan.recipe.idle)
    directories = {name: plan.members[name].directory for name in unets}
    recipe = plan.recipe
    measured = {"sampler": recipe.sampler, "steps": recipe.steps, "guidance": recipe.guidance}
    write_switched(directories[first], directories, switch, run.path / "model", run.link, measured_with=measured)


def _write_recipes(recipe: SwitchRecipe, chosen: tuple[Chosen, ...], folder: Path) -> None:
    """Each searched schedule as a recipe of its own, to run or to change."""
    shutil.rmtree(folder, ignore_errors=True)
    for each in chosen:
        folder.mkdir(exist_ok=True)
        name = f"switch-budget-{each.budget:g}"
        rules = each.rules.model_dump(mode="json", exclude_none=True)
        kept = recipe.model_dump(
            mode="json", exclude_none=True, exclude_unset=True, exclude={"search", "ratios", "sweep"}
        )
        ready = SwitchRecipe.model_validate({**kept, **rules, "out": f"{recipe.out}-budget-{each.budget:g}"})
        head = f"# asdm switch {recipe.out}/{RECIPES}/{name}.yaml\n"
        (folder / f"{name}.yaml").write_text(head + dump_given(ready), encoding="utf-8")


def _written(recipe: SwitchRecipe, rules: Switching | None) -> str:
    """What is told of the written model; `rules` are known after a search only, if they come from one."""
    rules = rules or recipe.rules
    if rules is not None:
        if len(rules.parts) > MOST_TOLD:
            names = " and ".join(dict.fromkeys(part.unet for part in rules.parts))
            return f"In the written model {names} take turns, in {len(rules.parts)} parts by {rules.by}."
        return f"In the written model serve: {described(rules)}."
    if recipe.search:
        return f"The written model will have the schedule that is found for {_budgets(recipe)[0]:g} of the time."
    return "No model is written: the recipe has neither `parts` nor `search`."
