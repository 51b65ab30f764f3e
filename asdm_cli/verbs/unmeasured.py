"""`asdm inherit` with `measure: false`: a model that carries a plan, written as fast as it is copied. No torch, but for
models that carry patches already, and for samplers that nobody counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from asdm_cli.errors import ModelError
from asdm_cli.models.directory import UNET, ModelDirectory, check_drawing, find
from asdm_cli.models.metadata import checked_patches, configs_of, write_patched
from asdm_cli.models.pipelines import PIPELINES
from asdm_cli.models.write import carried_size, takes
from asdm_cli.patches.cache_plan import misfits, picture, resolve
from asdm_cli.recipe.patches import FeatureCacheSpec, PatchSpec, Preset
from asdm_cli.recipe.verbs import InheritRecipe
from asdm_cli.records import Record, Report
from asdm_cli.report.run_directory import Run

RESUMABLE = False
PLAN = "the plan"
"""What reports call the model with the recipe's plan."""
UNMEASURED = (
    "Not measured on this model: {way} draws and times it beside fewer steps. What presets do to the bundled model "
    "stands in docs/inherit.md."
)
SINGLE = ("DDIM", "DDPM", "DEISMultistep", "DPMSolverMultistep", "EulerAncestralDiscrete", "EulerDiscrete")
CALLS: dict[str, Callable[[int], int]] = {
    **{f"{name}Scheduler": lambda steps: steps for name in (*SINGLE, "LMSDiscrete", "UniPCMultistep")},
    "HeunDiscreteScheduler": lambda steps: 2 * steps - 1,
}
"""Scheduler -> UNet calls of so many steps, where no setting changes that."""


@dataclass(frozen=True)
class Plan:
    recipe: InheritRecipe
    model: ModelDirectory
    written: tuple[PatchSpec, ...]
    """What the model will carry."""
    calls: int
    """Of an image."""

    def report(self) -> Report:
        told = [line for spec in self.written for line in spec.told()]
        settings = {key: getattr(self.recipe, key) for key in ("sampler", "steps", "guidance")}
        new = 0
        if self.model.adapters:
            from asdm_cli.models.adapters import fused_size  # that takes torch

            new = fused_size(self.model)
        facts = {"model": takes(new, carried_size(self.model, whole=True) - new), "plan": told}
        report = Report("inherit", {PLAN: {"model": self.model.source, **settings, "patches": told}}, facts=facts)
        way, asked = "the same recipe with `measure: true`", self.recipe.plan
        if isinstance(asked, Preset) and asked.model_fields_set == {"preset"} and not self.recipe.patches:
            way = f"`asdm inherit {self.recipe.model} --plan {asked.preset} --measure`"
        report.notes.append(UNMEASURED.format(way=way))
        match self.written:
            case [FeatureCacheSpec() as cache]:  # beside others it does not see every call
                resolved = resolve(cache, self.model.config(UNET))
                steps = resolved.steps(self.calls)
                if None not in steps.keys:
                    reused = [steps.reused(call) for call in range(self.calls)]
                    report.timelines.append(picture(resolved, reused, PLAN))
                    report.records.append(Record(PLAN, "calls", self.calls))
                    report.records.append(Record(PLAN, "full_calls", sum(not rules for rules in reused)))
        return report


def plan(recipe: InheritRecipe) -> Plan:
    """The plan held against every UNet's config, and weights against theirs; all else is carried as it is. Raises
    ModelError with all that does not fit."""
    model, asked = find(recipe.model, recipe.adapters), list(recipe.patches)
    if recipe.plan is not None:
        found = recipe.plan.resolved()
        asked.append(FeatureCacheSpec(rules=found.rules, cache_text=found.cache_text))
    gone = {FeatureCacheSpec, *map(type, asked)}
    kept = [spec for spec in checked_patches(model) if type(spec) not in gone]
    check_drawing(model)
    specs, configs = (*kept, *asked), configs_of(model, kept)
    match specs:
        case [FeatureCacheSpec() as cache]:
            faults = misfits(cache, configs)
        case _:
            from asdm_cli.patches.base import check_patches, patch_of  # that takes torch

            faults = check_patches([patch_of(spec) for spec in specs], configs)
    if faults:
        key = "plan" if recipe.plan else "patches"
        raise ModelError("\n".join(f"{key}{'.' if fault.startswith('rules[') else ': '}{fault}" for fault in faults))
    return Plan(recipe, model, specs, _calls(model, recipe))


def run(plan: Plan, run: Run) -> Report:
    write_patched(plan.model, {}, plan.written, run.path / "model", "inherit", run.link)
    report = plan.report()
    report.setups[PLAN]["written"] = "."
    return report


def _calls(model: ModelDirectory, recipe: InheritRecipe) -> int:
    """UNet calls of an image. Raises ModelError for more steps than the sampler knows timesteps."""
    config, kind = model.config("scheduler"), str(model.index["scheduler"][1])
    known = kind in CALLS or (kind == "PNDMScheduler" and config.get("skip_prk_steps") is True)
    whole = "strength" not in PIPELINES[model.index["_class_name"]].takes  # others leave the first steps out
    if recipe.sampler == "own" and known and whole and recipe.steps <= config.get("num_train_timesteps", 0):
        return CALLS.get(kind, lambda steps: steps + 1)(recipe.steps)
    from asdm_cli.models.schedulers import planned_scheduler  # that takes diffusers

    return len(planned_scheduler(model, recipe.sampler, recipe.steps, recipe.strength).timesteps)
