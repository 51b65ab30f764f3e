"""Gate 3 of `asdm eval`: what would be drawn and compared, from files and configs only."""

from __future__ import annotations

from dataclasses import dataclass

from asdm_cli.errors import ModelError
from asdm_cli.metrics.suite import MetricSettings, against_real, check
from asdm_cli.models.checked import check_drawing
from asdm_cli.models.load import PIPELINES
from asdm_cli.models.parts import check_parts
from asdm_cli.models.schedulers import planned_scheduler
from asdm_cli.models.source import ModelDirectory, find
from asdm_cli.models.switched import checked_switch, run_time_plans
from asdm_cli.recipe.verbs import EvalContestant, EvalRecipe
from asdm_cli.report.document import Cell, Column, Interval, Report, Table
from asdm_cli.sampling.prompts import PromptList, read_prompts


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
    metrics: MetricSettings

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
    def has_baselines(self) -> bool:
        """Whether real pictures say something that the wanted metrics measure."""
        return self.prompts.real > 0 and against_real(self.wanted)

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
    metrics = check(recipe, prompts, entrants[0].directory)
    return EvalPlan(recipe, entrants, prompts, _size(recipe.size, entrants), metrics)


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
