"""`asdm bench` and `asdm eval`: set-ups side by side, what they cost and what their images are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from asdm_cli.compare.costs import Rounds, on_paper, work
from asdm_cli.compare.run import Measures, Place, compare, finished
from asdm_cli.compare.setup import (
    MAKER_STEP,
    Setup,
    cache_spec,
    check_memory,
    common_size,
    drawing,
    drawn_from,
    fewer_steps,
    misfits,
)
from asdm_cli.errors import AsdmError, ModelError
from asdm_cli.experts.convert import expand
from asdm_cli.metrics.suite import MetricSettings, check
from asdm_cli.models.directory import UNET, ModelDirectory, check_unet, find
from asdm_cli.models.load import device_and_dtype
from asdm_cli.models.metadata import patches_of
from asdm_cli.models.pipelines import PIPELINES
from asdm_cli.models.schedulers import SCHEDULER, own_scheduler, unlike_noise
from asdm_cli.profiling.expected import Work
from asdm_cli.profiling.memory import HOW
from asdm_cli.recipe.patches import PatchSpec, UNetScheduleSpec
from asdm_cli.recipe.redact import without_place
from asdm_cli.recipe.verbs import BenchRecipe, Contestant, EvalRecipe
from asdm_cli.records import Report
from asdm_cli.report.run_directory import Run
from asdm_cli.sampling.generate import place, processes
from asdm_cli.sampling.prompts import PromptList, read_prompts
from asdm_cli.unet.blocks import PRESETS, Spec, preset, unlike_inputs
from asdm_cli.unet.surgery import remove
from asdm_cli.unet.weights import read_mapping

RESUMABLE = True


@dataclass(frozen=True)
class Plan:
    recipe: BenchRecipe | EvalRecipe
    setups: tuple[Setup, ...]
    prompts: PromptList | None
    metrics: MetricSettings | None
    rounds: Rounds | None
    size: int | None
    notes: tuple[str, ...] = ()

    def report(self) -> Report:
        """What would be drawn, and what it costs on paper."""
        facts: dict[str, object] = {}
        if self.prompts is not None and self.metrics is not None:
            real = f"; {self.prompts.real} real pictures" if self.prompts.real else ""
            drawn = f"{len(self.prompts.prompts)} each, at {self.size} x {self.size} pixels"
            facts = {"prompts": f"{self.prompts.title}{real}", "pictures": drawn}
            facts["metrics"] = ", ".join(self.metrics.metrics).replace("_", " ")
        told = {setup.name: setup.facts for setup in self.setups}
        paper = [record for setup in self.setups for record in on_paper(setup, self.size) if not record.of]
        return Report(self.recipe.verb, told, paper, facts=facts, notes=list(self.notes))

    def work(self) -> Work:
        images = len(self.prompts.prompts) if self.prompts is not None else 0
        return work(self.setups, images, self.rounds, self.size, self.recipe)


def plan(recipe: BenchRecipe | EvalRecipe) -> Plan:
    """Every set-up checked against configs and headers. Raises ModelError with all that does not fit."""
    return _plan_eval(recipe) if isinstance(recipe, EvalRecipe) else _plan_bench(recipe)


def run(plan: Plan, run: Run) -> Report:
    """Draw what is missing, all processes their shares; the first one then measures. Processes but the first return an
    empty report."""
    recipe, state = plan.recipe, processes()
    device, dtype = place(recipe.device, recipe.dtype, state)
    where, measures = Place(device, dtype, plan.size), Measures(rounds=plan.rounds, unet=True)
    if isinstance(recipe, EvalRecipe):
        where = replace(where, seed=recipe.seed, batch=recipe.batch)
        reference, grid = recipe.reference or "", recipe.grid
        measures = Measures(plan.prompts, plan.metrics, plan.rounds, reference=reference, grid=grid)
    report = compare(plan.setups, measures, where, run.path, state)
    if report is not None:
        report.notes.extend(plan.notes)
    return finished(report, recipe.verb)


def _plan_eval(recipe: EvalRecipe) -> Plan:
    setups = _setups(recipe.models, recipe, images=True)
    if recipe.fewer_steps:
        setups += fewer_steps(setups[0], recipe.fewer_steps)
    _refuse(misfits(setups))
    prompts = read_prompts(recipe.prompts, recipe.limit, recipe.per_prompt, recipe.inputs)
    first, size = setups[0].model, common_size(recipe.size, setups)
    assert first is not None, "every set-up of an evaluation is a model"
    setups = drawn_from(setups, prompts, size)
    metrics = check(recipe, prompts, first)
    rounds = Rounds(recipe.repeats, recipe.warmups, (1,), size) if recipe.repeats else None
    return Plan(recipe, tuple(setups), prompts, metrics, rounds, size)


def _plan_bench(recipe: BenchRecipe) -> Plan:
    """Builds every UNet without storage."""
    device, dtype = device_and_dtype(recipe.device, recipe.dtype)
    if device.type not in HOW:
        raise ModelError(f"device {recipe.device!r}: costs are measured on {' and '.join(HOW)} only; name one of them")
    setups = _setups(recipe.models, recipe, recipe.images)
    _refuse(misfits(setups))
    for setup in setups:
        setup.latent(recipe.size)
        if not setup.draws and not setup.one_unet:
            what = "of several UNets that take turns only images are timed; leave out `images: false`"
            raise ModelError(f"contestant {setup.name!r}: {what}, or name the models of its UNets")
    _check_images_alike([setup for setup in setups if setup.draws], recipe.size)
    if timed := [setup for setup in setups if setup.draws]:
        given = read_prompts("", 1, inputs=recipe.inputs) if recipe.inputs else None
        setups = drawn_from(setups, given, common_size(recipe.size, timed), " (or `images: false`: UNet calls only)")
    check_memory(setups, device, dtype)
    rounds = Rounds(recipe.repeats, recipe.warmups, tuple(recipe.batches), recipe.size)
    return Plan(
        recipe, tuple(setups), None, None, rounds, recipe.size, tuple(_notes(setups, recipe.size, device, dtype))
    )


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise ModelError("\n".join(faults))


def _setups(models: Sequence[Contestant], recipe: BenchRecipe | EvalRecipe, images: bool) -> list[Setup]:
    """All faults of all of them at once."""
    found: list[Setup] = []
    faults: list[str] = []
    judged = isinstance(recipe, EvalRecipe)
    for asked in models:
        settings: dict[str, Any] = recipe.drawn_with | {
            "sampler": asked.sampler or recipe.sampler,
            "steps": asked.steps or recipe.steps,
            "guidance": asked.guidance or recipe.guidance,
            "series": asked.series or asked.name,
        }
        try:
            model = asked.model is not None
            found.append(_of_model(asked, images, judged, settings) if model else _of_shape(asked, settings))
        except AsdmError as error:
            told = str(error).splitlines()
            faults += [each if repr(asked.name) in each else f"contestant {asked.name!r}: {each}" for each in told]
    _refuse(faults)
    return found


def _listed(patterns: str | list[str]) -> str:
    return patterns if isinstance(patterns, str) else ", ".join(patterns)


def _of_shape(asked: Contestant, settings: dict[str, Any]) -> Setup:
    """Random weights: a shape, less what is removed, with experts."""
    config = random_config(asked.random or "", asked.remove)
    told = [f"random {without_place(asked.random or '')}"]
    if asked.remove:
        told.append(f"without {_listed(asked.remove)}")
    if asked.expand:
        donor = random_config(asked.expand.donor, None) if asked.expand.donor else None
        config = expand(config, Spec(asked.expand.experts), asked.expand.at, donor).config
        donor_told = f" from {without_place(asked.expand.donor)}" if asked.expand.donor else ""
        told.append(f"with {asked.expand.experts} experts at {_listed(asked.expand.at)}{donor_told}")
    source, patches = " ".join(told), tuple(_patches(asked))
    return Setup(asked.name, None, config, patches, source=source, draws=False, **settings)


def _of_model(asked: Contestant, images: bool, judged: bool, settings: dict[str, Any]) -> Setup:
    directory = find(asked.model or "", asked.adapters)
    draws = judged or (images and directory.is_pipeline)
    if draws and not judged and (kind := directory.index["_class_name"]) not in PIPELINES:
        way = "use one of those, or measure UNet calls only (images: false)"
        raise ModelError(f"is a {kind}; images are timed with {' or '.join(PIPELINES)}; {way}")
    if draws:
        setup = drawing(asked.name, directory, **settings)
    else:
        check_unet(directory)
        own = patches_of(directory)
        config = directory.config(UNET)
        setup = Setup(asked.name, directory, config, own, source=directory.source, draws=False, **settings)
    setup = setup.with_patches(_patches(asked))
    if asked.unets:
        setup = replace(setup, unets=_unets(directory, asked))
    return setup


def _patches(asked: Contestant) -> list[PatchSpec]:
    """What the recipe says."""
    wanted: list[PatchSpec] = list(asked.patches)
    if asked.plan is not None:
        wanted.append(cache_spec(asked.plan.resolved()))
    if asked.parts is not None:
        names = [asked.name, *asked.unets]
        wanted.append(UNetScheduleSpec(unets=names, by=asked.by, parts=asked.parts, offload=asked.offload))
    return wanted


def _unets(leading: ModelDirectory, asked: Contestant) -> dict[str, ModelDirectory]:
    """The UNets that take turns beside the model's own. Raises ModelError for what cannot stand in its place."""
    found = {name: find(source, asked.adapters) for name, source in asked.unets.items()}
    for directory in found.values():
        check_unet(directory)
    configs = {asked.name: leading.config(UNET), **{name: each.config(UNET) for name, each in found.items()}}
    whole = {name: each for name, each in {asked.name: leading, **found}.items() if SCHEDULER in each.components}
    noise = unlike_noise({name: own_scheduler(each) for name, each in whole.items()})
    _refuse([f"unets: {each}" for each in (*unlike_inputs(configs), *noise)])
    return found


def random_config(shape: str, removed: str | Sequence[str] | None) -> dict[str, object]:
    """A preset's or a file's config, less what is removed from it."""
    if shape not in PRESETS and not Path(shape).is_file():
        raise ModelError(f"random {shape!r}: neither a preset ({', '.join(PRESETS)}) nor a UNet config file; name one")
    config = preset(shape) if shape in PRESETS else read_mapping(Path(shape))
    return remove(config, removed).config if removed else config


def _check_images_alike(drawing: Sequence[Setup], size: int | None) -> None:
    """Times of whole images are compared, so they must be images of one size."""
    if size is not None and drawing and size % MAKER_STEP:
        what = f"draws multiples of {MAKER_STEP} pixels only; round size {size}"
        raise ModelError(f"contestant {drawing[0].name!r}: {what}")
    for other in drawing[1:]:
        first = drawing[0]
        if other.latent(size) != first.latent(size):
            latents = (" × ".join(map(str, each.latent(size))) for each in (first, other))
            raise ModelError(
                f"{first.name!r} draws latents of {next(latents)} and {other.name!r} of {next(latents)}: times of "
                "unlike images say nothing; give one `size` for all, or measure UNet calls only (images: false)"
            )


def _notes(setups: Sequence[Setup], size: int | None, device: torch.device, dtype: torch.dtype) -> list[str]:
    notes = []
    if device.type == "cpu" and dtype == torch.bfloat16 and not torch.cpu._is_avx512_bf16_supported():
        notes.append(
            "This CPU computes no bfloat16 of its own (no AVX512-BF16): calls can be a hundred times slower than in "
            "float32, and their times tell nothing about other machines."
        )
    if len({setup.latent(size) for setup in setups}) > 1:
        notes.append("Contestants differ in latent shape: their UNet calls do unlike work.")
    bare = [setup.name for setup in setups if not setup.draws and setup.model is not None]
    if bare and any(setup.draws for setup in setups):
        notes.append(f"UNet calls only, because there is no pipeline around the UNet: {', '.join(bare)}.")
    return notes
