"""Ways to draw held against each other: everybody's pictures of the same prompts, costs, times and figures.

What `asdm inherit` and `asdm switch` have in common: one loaded pipeline, and players who put it in their way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from asdm_cli.console import track
from asdm_cli.errors import ModelError, RunError
from asdm_cli.measure.cards import Card, versions
from asdm_cli.measure.drawing import Share, Style
from asdm_cli.measure.eval_plan import EvalPlan, make_plan
from asdm_cli.measure.inherit_run import cost, draw_share, take_turns
from asdm_cli.measure.judging import judge_of, real_set
from asdm_cli.measure.machine import machine
from asdm_cli.measure.pictures import PictureSet
from asdm_cli.measure.players import FEWER, Player
from asdm_cli.measure.processes import place
from asdm_cli.measure.scores import Figures, Judge, columns
from asdm_cli.measure.ways_report import CONVERGED, Measured
from asdm_cli.models.origin import Origin, claim
from asdm_cli.models.schedulers import planned_scheduler
from asdm_cli.models.source import ModelDirectory
from asdm_cli.recipe.patches import Switching
from asdm_cli.recipe.verbs import Comparing, Drawing, EvalContestant, EvalRecipe
from asdm_cli.report.document import Column

SOLUTION = "converged"
TO_CONVERGED = Column(CONVERGED, "PSNR to converged, dB", "higher")
SHARES = (0.8, 0.65, 0.5, 0.35, 0.2)
"""Of the steps, at which the plain model draws too where the recipe names no `fewer_steps`."""


@dataclass(frozen=True)
class Studio:
    """Where everybody draws. `origin`: all that pictures depend on besides the player, the prompts and the style."""

    pipe: DiffusionPipeline
    style: Style
    state: PartialState
    origin: Origin

    def draw(
        self, players: Iterable[Player], prompts: Sequence[str], title: str, folder: Path
    ) -> dict[str, PictureSet]:
        """Draw what is missing, every process its share; all pictures are there when this returns.

        `title` tells these prompts from others. Pictures of another origin go away.
        """
        players = list(players)
        sets = {player.name: PictureSet(folder / player.name, len(prompts)) for player in players}
        if self.state.is_main_process:
            for player in players:
                claim(sets[player.name].folder, self._origin_of(player, title))
        self.state.wait_for_everyone()
        share = Share(self.state.process_index, self.state.num_processes)
        for player in players:
            draw_share(self.pipe, player, prompts, self.style, sets[player.name], share)
        self.state.wait_for_everyone()
        _check_whole(sets)
        return sets

    def _origin_of(self, player: Player, title: str) -> Origin:
        style = self.style
        return {
            "prompts": title,
            "size": style.size,
            "sampler": player.sampler,
            "steps": player.steps,
            "guidance": style.guidance,
            "seed": style.seed,
            "plan": player.nodes.plan.model_dump_json() if player.nodes else None,
            "switching": player.rules.model_dump_json() if player.rules else None,
            "deepcache_package": player.package,
            "device": style.device.type,
            "dtype": str(style.dtype),
            "versions": versions(),
            **self.origin,
        }


def evaluation(recipe: Comparing, name: str, model: str) -> EvalPlan:
    """The prompts and metrics of a recipe, and the model that all is compared with. Raises ModelError."""
    settings = {key: getattr(recipe, key) for key in Drawing.model_fields if key != "verb"}
    plan = make_plan(EvalRecipe(verb="eval", models=[EvalContestant(name=name, model=model)], **settings))
    try:
        for near in solution(recipe):
            planned_scheduler(plan.entrants[0].directory, near.sampler, near.steps)
    except ModelError as error:
        raise ModelError(f"converged: {error}") from None
    return plan


def fewer(recipe: Comparing, rules: Switching | None = None) -> list[Player]:
    """The plain model at fewer steps; `rules` where it takes some to draw so."""
    counts = recipe.fewer_steps
    if counts is None:
        counts = sorted({max(1, round(share * recipe.steps)) for share in SHARES} - {recipe.steps}, reverse=True)
    names = {count: "1 step" if count == 1 else f"{count} steps" for count in counts}
    return [Player(names[count], FEWER, count, recipe.sampler, rules=rules) for count in counts]


def solution(recipe: Comparing, rules: Switching | None = None) -> list[Player]:
    """Who draws the pictures near the solution, if the recipe wants any."""
    return [Player(SOLUTION, SOLUTION, recipe.converged, "dpm++2m", rules=rules)] if recipe.converged else []


def unplayable(players: Sequence[Player], directory: ModelDirectory) -> list[str]:
    """A fault for each name that two players have, as tables and picture folders go by it, and for each who asks for
    steps that this model's scheduler does not know."""
    names = [player.name for player in players]
    twice = {name for name in names if names.count(name) > 1}
    faults = [f"name {name!r} is taken by another way to draw; choose another" for name in sorted(twice)]
    for player in {(player.sampler, player.steps): player for player in players}.values():
        try:
            planned_scheduler(directory, player.sampler, player.steps)
        except ModelError as error:
            faults.append(f"{player.name}: {error}")
    return faults


def style_of(plan: EvalPlan, recipe: Comparing, state: PartialState) -> Style:
    device, dtype = place(recipe.device, recipe.dtype, state)
    return Style(recipe.steps, recipe.guidance, plan.size, recipe.seed, recipe.sampler, recipe.batch, device, dtype)


def card_of(plan: EvalPlan, recipe: Comparing, style: Style) -> Card:
    source = plan.entrants[0].directory
    own = source.index["scheduler"][1]
    return {
        "model": source.name,
        "prompts": plan.prompts.title,
        "pictures": plan.count,
        "resolution": f"{style.size} x {style.size}",
        "sampler": f"own: {own}" if style.sampler == "own" else f"{style.sampler}, set up as {own}",
        "steps": style.steps,
        "guidance": style.guidance,
        "converged": f"dpm++2m, {recipe.converged} steps" if recipe.converged else None,
        "seed_rule": f"numpy SeedSequence([{style.seed}, index of the prompt]), a CPU generator per picture",
        "dtype": str(style.dtype).removeprefix("torch."),
        "rounds": recipe.repeats,
        "warmup_rounds": recipe.warmups,
        "images_at_once_when_timed": 1,
        **machine(style.device),
    }


def measure(
    studio: Studio, plan: EvalPlan, recipe: Comparing, players: tuple[Player, ...], folder: Path
) -> Measured | None:
    """Pictures of all players, by all processes; then the first one counts, times and compares. None for the others.

    The first player is what the others are compared with.
    """
    near = solution(recipe, players[0].rules)
    prompts = plan.prompts.prompts
    sets = studio.draw([*players, *near], prompts, plan.prompts.title, folder / "pictures")
    if not studio.state.is_main_process:
        return None
    real = real_set(plan, folder) if plan.has_baselines else None
    judge = judge_of(plan, folder, sets[players[0].name], real)
    return Measured(
        players,
        {player.name: cost(studio.pipe, player, studio.style) for player in players},
        take_turns(studio.pipe, players, studio.style, recipe.warmups, recipe.repeats),
        _figures(judge, sets, players, sets[SOLUTION] if near else None),
        sets,
        prompts,
        (*columns(judge.wanted, judge.network), *([TO_CONVERGED] if near else [])),
    )


def _check_whole(sets: Mapping[str, PictureSet]) -> None:
    for name, pictures in sets.items():
        missing = len(pictures.missing(range(pictures.count)))
        if missing:
            raise RunError(f"{name!r}: {missing} of {pictures.count} pictures are missing; run the same command again")


def _figures(
    judge: Judge, sets: Mapping[str, PictureSet], players: Sequence[Player], near: PictureSet | None
) -> dict[str, Figures]:
    """`near`: the pictures near the solution, which everybody is held against too."""
    figures = {player.name: judge.figures(sets[player.name]) for player in track(players, "comparing pictures")}
    if near is not None:
        to_solution = replace(judge, reference=near, wanted=("psnr",))
        for player in players:
            figures[player.name] |= {CONVERGED: to_solution.paired(sets[player.name])["psnr_db"]}
    return figures
