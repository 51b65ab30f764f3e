"""`asdm eval`: draw the same prompts with every contestant, then say what the pictures are worth."""

from __future__ import annotations

from dataclasses import dataclass, replace

from accelerate import PartialState

from asdm_cli.data.images import CROP
from asdm_cli.errors import RunError
from asdm_cli.measure.cards import Card, versions
from asdm_cli.measure.drawing import (
    Share,
    Style,
    draw,
    painter,
    reconstruct,
    unet_macs,
)
from asdm_cli.measure.eval_plan import Entrant, EvalPlan, make_plan
from asdm_cli.measure.eval_report import Row, eval_report
from asdm_cli.measure.judging import judge_of, real_origin, real_set
from asdm_cli.measure.pictures import PictureSet
from asdm_cli.measure.processes import place, processes
from asdm_cli.measure.resize import KERNEL
from asdm_cli.measure.routing import Routing, has_experts, observe
from asdm_cli.measure.routing_report import routing_parts
from asdm_cli.measure.scores import FRECHET_RESAMPLES, Judge
from asdm_cli.models.load import load_pipeline
from asdm_cli.models.origin import claim, stamps
from asdm_cli.models.provenance import run_time_plan
from asdm_cli.models.switched import read_switch
from asdm_cli.recipe.patches import described
from asdm_cli.recipe.verbs import EvalRecipe
from asdm_cli.report.document import Report
from asdm_cli.report.run_directory import Run

RESUMABLE = True
REAL, VAE = "real pictures", "real, VAE reconstruction"


@dataclass(frozen=True)
class Drawn:
    """What was found out of a contestant while it drew: the UNet's multiply-accumulates per picture, and how its
    experts were used on the prompts of the grid, where it has any."""

    macs: int
    routing: Routing | None


def plan(recipe: EvalRecipe) -> EvalPlan:
    """Gate 3, from files and configs only. Raises ModelError."""
    return make_plan(recipe)


def run(plan: EvalPlan, run: Run) -> Report:
    """Draw what is missing, all processes their shares; the first one then measures.

    Processes but the first return an empty report. Raises RunError, ModelError.
    """
    state = processes()
    styles = {entrant.name: _style(plan, entrant, state) for entrant in plan.entrants}
    sets = {entrant.name: PictureSet(run.path / "pictures" / entrant.name, plan.count) for entrant in plan.entrants}
    if state.is_main_process:
        for entrant in plan.entrants:
            card = _card(plan, entrant, styles[entrant.name])
            claim(sets[entrant.name].folder, card | {"files": stamps(entrant.directory)})
    state.wait_for_everyone()
    share = Share(state.process_index, state.num_processes)
    drawn = {
        entrant.name: _draw_share(plan, entrant, styles[entrant.name], sets[entrant.name], share)
        for entrant in plan.entrants
    }
    state.wait_for_everyone()
    if not state.is_main_process:
        return Report("eval", "", "", [])
    _check_whole(sets)
    return _measured(plan, run, sets, styles, drawn)


def _style(plan: EvalPlan, entrant: Entrant, state: PartialState) -> Style:
    recipe = plan.recipe
    device, dtype = place(recipe.device, recipe.dtype, state)
    return Style(entrant.steps, entrant.guidance, plan.size, recipe.seed, recipe.sampler, recipe.batch, device, dtype)


def _card(plan: EvalPlan, entrant: Entrant, style: Style) -> Card:
    """How this contestant's pictures came about. Their last bits depend on the batch, but on CUDA only."""
    own = entrant.directory.index["scheduler"][1]
    card: Card = {
        "prompts": plan.prompts.title,
        "pictures": plan.count,
        "resolution": f"{style.size} x {style.size}",
        "sampler": f"own: {own}" if style.sampler == "own" else f"{style.sampler}, set up as {own}",
        "steps": style.steps,
        "guidance": style.guidance,
        "seed_rule": f"numpy SeedSequence([{style.seed}, index of the prompt]), a CPU generator per picture",
        "device": style.device.type,
        "dtype": str(style.dtype).removeprefix("torch."),
        "versions": versions(),
    }
    if carried := run_time_plan(entrant.directory):
        card["inherits"] = carried.model_dump_json(exclude_none=True)
    if switch := read_switch(entrant.directory):
        card["switches"] = described(switch)
        plans = [f"{name}: {plan.model_dump_json(exclude_none=True)}" for name, plan in switch.plans.items()]
        card |= {"inherits": plans} if plans else {}
    return card | ({"batch": style.batch} if style.device.type == "cuda" else {})


def _draw_share(plan: EvalPlan, entrant: Entrant, style: Style, target: PictureSet, share: Share) -> Drawn:
    """Draw this process's missing pictures; the first process also counts, and looks at how experts are used."""
    pipe = painter(entrant.directory, style)
    wanted = target.missing(share.of(range(plan.count), style.batch))
    for index, picture in draw(entrant.name, pipe, plan.prompts.prompts, wanted, style):
        target.save(index, picture)
    routing = None
    if share.rank == 0 and has_experts(pipe):
        shown = plan.prompts.prompts[: plan.recipe.grid]
        routing, _ = observe(pipe, shown, style.steps, style.guidance, style.size, style.seed)
    return Drawn(unet_macs(entrant.name, pipe, style) if share.rank == 0 else 0, routing)


def _check_whole(sets: dict[str, PictureSet]) -> None:
    for name, pictures in sets.items():
        missing = pictures.missing(range(pictures.count))
        if missing:
            raise RunError(
                f"contestant {name!r}: {len(missing)} of {pictures.count} pictures are missing, a process stopped "
                "early; run the same command again, it goes on from there"
            )


def _measured(
    plan: EvalPlan, run: Run, sets: dict[str, PictureSet], styles: dict[str, Style], drawn: dict[str, Drawn]
) -> Report:
    real, through_vae = _baselines(plan, run, next(iter(styles.values()))) if plan.has_baselines else (None, None)
    judge = judge_of(plan, run.path, sets[plan.reference], real)
    rows = [
        Row(
            entrant.name, judge.figures(sets[entrant.name]), sets[entrant.name], entrant.steps, drawn[entrant.name].macs
        )
        for entrant in plan.entrants
    ]
    if real and through_vae:
        rows += [
            Row(VAE, judge.distribution(through_vae) | judge.captions(through_vae), through_vae),
            Row(REAL, judge.real_figures(), real.first(plan.prompts.distinct)),
        ]
    contestants = {entrant.name: _card(plan, entrant, styles[entrant.name]) for entrant in plan.entrants}
    report = eval_report(plan, judge, rows, contestants, _protocol(plan, judge))
    experts = [part for name, each in drawn.items() if each.routing for part in routing_parts(each.routing, name)]
    return replace(report, parts=[*report.parts, *experts])


def _baselines(plan: EvalPlan, run: Run, style: Style) -> tuple[PictureSet, PictureSet]:
    """All real pictures of the shard, and what the first contestant's VAE makes of those that were drawn.

    Those alone, because FD and IS compare only between equally many pictures.
    """
    directory = plan.entrants[0].directory
    real = real_set(plan, run.path)
    through_vae = PictureSet(run.path / "real-vae", plan.prompts.distinct)
    claim(through_vae.folder, real_origin(plan) | {"files": stamps(directory)})
    reconstruct(load_pipeline(directory, style.device, style.dtype).vae, real, through_vae)
    return real, through_vae


def _protocol(plan: EvalPlan, judge: Judge) -> Card:
    """How the figures were made from the pictures."""
    protocol: Card = {
        "bootstrap": f"{judge.bootstrap} resamples of pictures (FD {FRECHET_RESAMPLES} at most), seed {judge.seed}"
    }
    if judge.network:
        protocol |= {"feature_network": judge.network.title, "feature_resize": judge.network.resize}
    if judge.clip and plan.clip:
        name = f"{plan.clip.parent.name}/{plan.clip.name}"
        protocol |= {"clip": name, "clip_resize": f"{judge.clip.size}, {KERNEL}"}
    if judge.probe:
        protocol["probe"] = f"{judge.probe.folder.parent.name}/{judge.probe.folder.name} on {judge.probe.network}"
    if judge.real:
        protocol |= {"real_pictures": plan.prompts.real, "real_resize": CROP}
    return protocol
