"""Gate 3 of `asdm eval`: what would be drawn and compared, from files and configs only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asdm_cli.errors import ModelError
from asdm_cli.measure.features import require
from asdm_cli.measure.probe import Probe, read_probe
from asdm_cli.measure.prompts import PromptList, read_prompts
from asdm_cli.measure.scores import TARGETS
from asdm_cli.models.check import check_clip, check_drawing, check_parts
from asdm_cli.models.directory import ModelDirectory, find
from asdm_cli.models.load import PIPELINES
from asdm_cli.models.schedulers import planned_scheduler
from asdm_cli.models.switched import checked_switch, run_time_plans
from asdm_cli.recipe.verbs import EvalContestant, EvalRecipe
from asdm_cli.report.document import Cell, Column, Interval, Report, Table

BY_NETWORK = {"kid", "fd", "is"}
AGAINST_REAL = {"kid", "fd"}
BY_CLIP = {"clip_score", "clip_retrieval"}


@dataclass(frozen=True)
class Entrant:
    """A contestant before its weights are read."""

    name: str
    directory: ModelDirectory
    steps: int
    guidance: float


@dataclass(frozen=True)
class EvalPlan:
    recipe: EvalRecipe
    entrants: tuple[Entrant, ...]
    prompts: PromptList
    size: int
    clip: Path | None
    """The CLIP's directory, where a metric or the features need one."""
    probe: Probe | None
    """Where a metric asks it."""

    @property
    def reference(self) -> str:
        return self.recipe.reference or self.entrants[0].name

    @property
    def count(self) -> int:
        """Pictures per contestant."""
        return len(self.prompts.prompts)

    @property
    def wanted(self) -> set[str]:
        return set(self.recipe.metrics)

    @property
    def has_network(self) -> bool:
        return bool(self.wanted & BY_NETWORK)

    @property
    def has_baselines(self) -> bool:
        """Whether real pictures say something that the wanted metrics measure."""
        return self.prompts.real > 0 and bool(self.wanted & (AGAINST_REAL | BY_CLIP | TARGETS.keys()))

    def report(self) -> Report:
        rows: list[dict[str, Cell | Interval]] = [
            {
                "name": entrant.name,
                "model": entrant.directory.name,
                "steps": entrant.steps,
                "guidance": entrant.guidance,
            }
            for entrant in self.entrants
        ]
        columns = [
            Column("name", "contestant"),
            Column("model", "model"),
            Column("steps", "steps", digits=0),
            Column("guidance", "guidance", digits=1),
        ]
        real = f"; {self.prompts.real} real pictures" if self.prompts.real else ""
        summary = f"Prompts: {self.prompts.title}{real}. Metrics: {', '.join(self.recipe.metrics)}."
        title = f"What is drawn: {self.count} pictures each, at {self.size} x {self.size} pixels"
        return Report("eval", "Evaluation plan", summary, [Table(title, columns, rows)])


def make_plan(recipe: EvalRecipe) -> EvalPlan:
    """Raises ModelError: what is missing, and the way out."""
    entrants = tuple(_entrant(contestant, recipe) for contestant in recipe.models)
    prompts = read_prompts(recipe.prompts, recipe.limit, recipe.per_prompt)
    _check_metrics(recipe, prompts)
    probe = _probe(recipe, entrants[0], prompts)
    return EvalPlan(recipe, entrants, prompts, _size(recipe.size, entrants), _clip(recipe, entrants[0]), probe)


def _entrant(contestant: EvalContestant, recipe: EvalRecipe) -> Entrant:
    directory = find(contestant.model)
    if not directory.is_pipeline or directory.index["_class_name"] not in PIPELINES:
        kinds = " or ".join(PIPELINES)
        raise ModelError(f"{directory.path}: contestant {contestant.name!r} must be a whole {kinds} to draw pictures")
    run_time_plans(directory, checked_switch(directory))  # what it carries must fit
    check_drawing(directory)
    check_parts(directory)
    steps, guidance = contestant.steps or recipe.steps, contestant.guidance or recipe.guidance
    try:
        planned_scheduler(directory, recipe.sampler, steps)
    except ModelError as error:
        raise ModelError(f"contestant {contestant.name!r}: {error}") from None
    return Entrant(contestant.name, directory, steps, guidance)


def _check_metrics(recipe: EvalRecipe, prompts: PromptList) -> None:
    wanted = set(recipe.metrics)
    if wanted & AGAINST_REAL and not prompts.real:
        asked = " and ".join(sorted(wanted & AGAINST_REAL))
        raise ModelError(
            f"metrics: {asked} compare with real pictures, and {prompts.name} has none; "
            "give shards of (picture, caption) as `prompts`, or leave them out"
        )
    if wanted & BY_NETWORK and len(prompts.prompts) < 2:
        raise ModelError(f"metrics: {', '.join(sorted(wanted & BY_NETWORK))} need two pictures or more; raise `limit`")
    if "is" in wanted and recipe.features == "clip":
        raise ModelError("metrics: is needs a network that knows classes; use features: efficientnet_lite0")
    if wanted & BY_NETWORK:
        require(recipe.features)
    if "perceptual" in wanted:
        require("efficientnet_lite0")


def _size(asked: int | None, entrants: tuple[Entrant, ...]) -> int:
    if asked is None:
        own = {entrant.name: _own_size(entrant.directory) for entrant in entrants}
        if len(set(own.values())) > 1:
            each = ", ".join(f"{name}: {size}" for name, size in own.items())
            raise ModelError(f"size: the contestants draw at different sizes ({each}); give `size` in the recipe")
        return next(iter(own.values()))
    if asked % 8:
        raise ModelError(f"size: {asked} is no multiple of 8, which every pipeline asks for; try {asked // 8 * 8 + 8}")
    return asked


def _own_size(directory: ModelDirectory) -> int:
    """Pixels: the UNet's latent size times the VAE's scale, as the pipelines compute it."""
    latent = directory.config("unet").get("sample_size") or 64
    side = latent if isinstance(latent, int) else latent[0]
    return side * 2 ** (len(directory.config("vae")["block_out_channels"]) - 1)


def _clip(recipe: EvalRecipe, first: Entrant) -> Path | None:
    if not set(recipe.metrics) & BY_CLIP and not (recipe.features == "clip" and set(recipe.metrics) & BY_NETWORK):
        return None
    if recipe.clip == "own":
        if "clip" not in first.directory.components:
            raise ModelError(f"{first.directory.path}: has no folder clip/; give a CLIP's directory as `clip`")
        folder = first.directory.components["clip"]
    else:
        folder = Path(recipe.clip)
        inner = find(recipe.clip).component("clip") if recipe.clip == "pocket" else folder / "clip"
        folder = inner if inner.is_dir() else folder
    check_clip(folder)
    return folder


def _probe(recipe: EvalRecipe, first: Entrant, prompts: PromptList) -> Probe | None:
    """The probe that the wanted metrics ask, if it knows what the prompts' samples name."""
    targets = [target for metric, target in TARGETS.items() if metric in recipe.metrics]
    if not targets:
        return None
    if recipe.probe == "own" and "probe" not in first.directory.components:
        raise ModelError(f"{first.directory.path}: has no folder probe/; give a probe's directory as `probe`")
    given = find(recipe.probe).component("probe") if recipe.probe == "pocket" else Path(recipe.probe)
    probe = read_probe(first.directory.component("probe") if recipe.probe == "own" else given)
    require(probe.network)
    for target in targets:
        if target not in probe.targets:
            raise ModelError(
                f"{probe.folder}: knows no {target}, only {', '.join(probe.targets)}; leave the metric out"
            )
        named = {facts.get(target) for facts in prompts.about}
        if strange := sorted(str(name) for name in named - set(probe.targets[target].classes) if name is not None):
            raise ModelError(f"{prompts.name}: {target} {strange[0]!r} is no class of the probe {probe.folder}")
        if None in named:
            raise ModelError(
                f"metrics: {target}_accuracy needs prompts that name their {target}, and some of {prompts.name} do "
                f'not; give a shard whose samples have a .json with "{target}"'
            )
    return probe
