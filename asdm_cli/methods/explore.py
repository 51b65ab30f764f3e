"""The part of `asdm assemble` that compares: combinations under a budget, what they cost and how near they draw."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from accelerate import PartialState
from diffusers import UNet2DConditionModel

from asdm_cli.console import track
from asdm_cli.errors import ModelError, RunError
from asdm_cli.measure.cards import Card, versions
from asdm_cli.measure.drawing import Share, Style
from asdm_cli.measure.eval_plan import EvalPlan, make_plan
from asdm_cli.measure.explore_report import (
    Explored,
    LeftOut,
    cost_columns,
    explore_report,
    left_out_table,
    time_ratio,
)
from asdm_cli.measure.explore_run import Candidate, Seconds, Timing, build, draw_share, load_donors, time_calls
from asdm_cli.measure.judging import judge_of, real_set
from asdm_cli.measure.latency import ORDER_RULE
from asdm_cli.measure.machine import machine
from asdm_cli.measure.pictures import PictureSet
from asdm_cli.measure.processes import place, processes
from asdm_cli.measure.scores import columns
from asdm_cli.methods.combinations import Costs, distinct, first_donor, over, sort
from asdm_cli.models.donors import Donor, write
from asdm_cli.models.load import load_pipeline
from asdm_cli.models.origin import Origin, claim, stamps
from asdm_cli.models.schedulers import set_sampler
from asdm_cli.models.write import takes
from asdm_cli.recipe.verbs import AssembleRecipe, EvalContestant, EvalRecipe, Explore, Pictures
from asdm_cli.report.document import Cell, Column, Interval, Report, Table
from asdm_cli.report.run_directory import Run
from asdm_cli.unet.cost import rows

TIMES, MODELS = "times.json", "models"


@dataclass(frozen=True)
class Plan:
    recipe: Explore
    eval: EvalPlan
    donors: Mapping[str, Donor]
    first: Candidate
    """The first donor itself."""
    candidates: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    @property
    def timing(self) -> Timing:
        donor = self.first.made.first
        count = rows(donor.config, self.recipe.guidance)
        return Timing(count, _latent(self.eval), donor.directory.tokens, self.recipe.repeats, self.recipe.warmups)

    def report(self) -> Report:
        rows: list[dict[str, Cell | Interval]] = [
            {
                "name": one.name,
                "layers": str(one.made.assembly.config.get("layers_per_block", 2)),
                "params_m": one.parameters / 1e6,
                "macs_g": one.macs / 1e9,
            }
            for one in self.candidates
        ]
        heads = [Column("name", "combination"), Column("layers", "layers per block"), *cost_columns()]
        made = [one.made for one in self.candidates]
        told = [
            f"{len(self.candidates)} combinations, {self.eval.count} prompts, {self.recipe.steps} steps, beside "
            f"{self.first.name} itself. {takes(sum(one.size for one in made), sum(one.carried for one in made))}"
        ]
        if bound := self.recipe.budget and self.recipe.budget.latency_ratio:
            told.append(f"Those whose UNet call takes more than {bound:g} of its time leave once they have been timed.")
        tables = [Table("Combinations", heads, rows), *left_out_table(self.left_out)]
        return Report("assemble", "Plan", " ".join([*told, *self.notes]), [*tables])


def plan(recipe: AssembleRecipe, explore: Explore, donors: Mapping[str, Donor]) -> Plan:
    """Every combination held against configs, headers and the budget. Raises ModelError."""
    name, source = next(iter(recipe.donors.items()))
    if not donors[name].directory.is_pipeline:
        raise ModelError(
            f"donors.{name}: is a bare UNet; explore draws pictures, so the first donor is a whole pipeline"
        )
    settings = {key: getattr(explore, key) for key in Pictures.model_fields}
    contestant = EvalContestant(name=name, model=source)
    checked = make_plan(EvalRecipe(verb="eval", models=[contestant], out=recipe.out, **settings))
    costs = Costs(_latent(checked), donors[name].directory.tokens)
    first = first_donor(donors, costs)
    found = sort(recipe, donors, first, costs)
    return Plan(explore, checked, donors, first, tuple(found.candidates), tuple(found.left_out), found.notes)


def run(plan: Plan, run: Run) -> Report:
    """Time all, draw those within the budget (all processes their shares); the first process then judges and writes."""
    state = processes()
    style = _style(plan, state)
    pipe = load_pipeline(plan.donors[plan.first.name].directory, style.device, style.dtype, with_plan=False)
    set_sampler(pipe, style.sampler)
    unets = load_donors(pipe, plan.donors, style)
    candidates, same = distinct(plan.first, plan.candidates)
    built = {one.name: build(one.made, unets) for one in (plan.first, *candidates)}
    seconds = _seconds(plan, built, style, run, state)
    kept, slow = _in_time(plan, candidates, seconds)
    sets = {one.name: PictureSet(run.path / "pictures" / one.name, plan.eval.count) for one in (plan.first, *kept)}
    if state.is_main_process:
        for one in (plan.first, *kept):
            claim(sets[one.name].folder, _origin(plan, one, style))
    state.wait_for_everyone()
    for name, target in sets.items():
        pipe.unet = built[name]
        share = Share(state.process_index, state.num_processes)
        draw_share(pipe, name, plan.eval.prompts.prompts, style, target, share)
    state.wait_for_everyone()
    if not state.is_main_process:
        return Report("assemble", "", "", [])
    _check_whole(sets)
    _write_models(kept, run)
    found = replace(_judged(plan, run, seconds, kept, sets), left_out=(*plan.left_out, *slow), same=tuple(same))
    return explore_report(found, _card(plan, style), plan.recipe.grid)


def _seconds(
    plan: Plan, built: Mapping[str, UNet2DConditionModel], style: Style, run: Run, state: PartialState
) -> Seconds:
    """The first process measures while the others wait; then all read what it wrote down."""
    origin = {**_origin(plan, plan.first, style), "timing": asdict(plan.timing), "contestants": list(built)}
    if state.is_main_process:
        time_calls(built, plan.timing, style, origin, run.path / TIMES)
    state.wait_for_everyone()
    return time_calls(built, plan.timing, style, origin, run.path / TIMES)


def _in_time(
    plan: Plan, candidates: Sequence[Candidate], seconds: Seconds
) -> tuple[tuple[Candidate, ...], list[LeftOut]]:
    """Those within the budget's latency, and those above it."""
    kept, slow = [], []
    for one in candidates:
        ratio = time_ratio(seconds, plan.first.name, one.name)
        if why := over(plan.recipe.budget, ratio=ratio.value):
            slow.append(LeftOut(one.name, why, one.parameters, one.macs, ratio))
        else:
            kept.append(one)
    return tuple(kept), slow


def _write_models(kept: Sequence[Candidate], run: Run) -> None:
    """Anew: an interrupted run, which timed otherwise, may have left some that are above the budget now."""
    shutil.rmtree(run.path / MODELS, ignore_errors=True)
    for one in track(kept, "writing models"):
        write(one.made, run.path / MODELS / one.name, run.link)


def _judged(
    plan: Plan, run: Run, seconds: Seconds, kept: tuple[Candidate, ...], sets: Mapping[str, PictureSet]
) -> Explored:
    real = real_set(plan.eval, run.path) if plan.eval.has_baselines else None
    judge = judge_of(plan.eval, run.path, sets[plan.first.name], real)
    figures = {name: judge.figures(pictures) for name, pictures in track(sets.items(), "comparing pictures", len(sets))}
    shown = tuple(columns(judge.wanted, judge.network))
    key = next(each.key for each in columns(judge.wanted[:1], judge.network))
    ordered = sorted(shown, key=lambda column: column.key != key)
    return Explored(plan.first, kept, (), seconds, figures, sets, plan.eval.prompts.prompts, tuple(ordered))


def _latent(plan: EvalPlan) -> int:
    """Height and width of the latents of what is drawn."""
    stages = len(plan.entrants[0].directory.config("vae")["block_out_channels"])
    return plan.size // 2 ** (stages - 1)


def _style(plan: Plan, state: PartialState) -> Style:
    recipe = plan.recipe
    device, dtype = place(recipe.device, recipe.dtype, state)
    return Style(
        recipe.steps, recipe.guidance, plan.eval.size, recipe.seed, recipe.sampler, recipe.batch, device, dtype
    )


def _origin(plan: Plan, one: Candidate, style: Style) -> Origin:
    """All that the pictures of a combination depend on."""
    return {
        "prompts": plan.eval.prompts.title,
        "style": {**asdict(style), "device": style.device.type, "dtype": str(style.dtype)},
        "levels": one.levels,
        "mid": one.mid,
        "outside": [one.made.assembly.ends, one.made.assembly.embeddings],
        "versions": versions(),
        "files": {name: stamps(donor.directory) for name, donor in plan.donors.items()},
    }


def _card(plan: Plan, style: Style) -> Card:
    own = plan.first.made.first.directory.index["scheduler"][1]
    timing = plan.timing
    return {
        "donors": [f"{name}: {donor.directory.name}" for name, donor in plan.donors.items()],
        "prompts": plan.eval.prompts.title,
        "pictures": plan.eval.count,
        "resolution": f"{style.size} x {style.size}",
        "sampler": f"own: {own}" if style.sampler == "own" else f"{style.sampler}, set up as {own}",
        "steps": style.steps,
        "guidance": style.guidance,
        "seed_rule": f"numpy SeedSequence([{style.seed}, index of the prompt]), a CPU generator per picture",
        "bootstrap": f"{plan.recipe.bootstrap} resamples of pictures",
        "dtype": str(style.dtype).removeprefix("torch."),
        "macs": f"one UNet call on one latent of {timing.size} x {timing.size}, attention's matmuls included",
        "timed": f"a UNet call on {timing.rows} latents, {timing.repeats} rounds after {timing.warmups}; {ORDER_RULE}",
        **machine(style.device),
    }


def _check_whole(sets: Mapping[str, PictureSet]) -> None:
    for name, pictures in sets.items():
        missing = len(pictures.missing(range(pictures.count)))
        if missing:
            raise RunError(f"{name!r}: {missing} of {pictures.count} pictures are missing; run the same command again")
