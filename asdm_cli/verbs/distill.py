"""`asdm distill`: students learn from the same samples and the same teacher forwards, and become model directories."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import nn

from asdm_cli.data.cache import CachedSamples, LatentCache, UncachedSamples
from asdm_cli.measure.generate import pictures
from asdm_cli.measure.machine import machine
from asdm_cli.measure.pictures import PictureSet
from asdm_cli.measure.processes import processes
from asdm_cli.measure.routing import observe
from asdm_cli.measure.routing_report import routing_parts
from asdm_cli.models.load import in_own_memory, load_pipeline, load_unet
from asdm_cli.models.origin import claim_or_refuse, made_from
from asdm_cli.models.provenance import record
from asdm_cli.models.schedulers import training_scheduler
from asdm_cli.models.write import assemble_directory, write_config
from asdm_cli.recipe.reads import reads
from asdm_cli.recipe.verbs import DistillRecipe
from asdm_cli.records import Card, Record
from asdm_cli.report.document import Part, Report
from asdm_cli.report.run_directory import TRAINING, Run
from asdm_cli.training.distillation import Distillation
from asdm_cli.training.loop import LOG, TRACKERS, Training, read_log, train
from asdm_cli.training.plan import DistillPlan, StudentModel, make_plan
from asdm_cli.training.report import document, model_card, planned, protocol, records
from asdm_cli.training.student import mixed_precision
from asdm_cli.unet.checkpoint import WEIGHTS
from asdm_cli.unet.expert_config import specs

RESUMABLE = True
PICTURES = "pictures"
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {"F16": torch.float16, "BF16": torch.bfloat16}
IN_HISTORY = ("data", "samples", "steps", "batch", "optimizer", "seed")


@dataclass(frozen=True)
class Plan:
    distill: DistillPlan

    def report(self) -> Report:
        return planned(self.distill, str(latent_cache(self.distill)))


def plan(recipe: DistillRecipe, allow_pipes: bool = False) -> Plan:
    """Gate 3, from configs, file headers and names. Raises ModelError with all that does not fit."""
    return Plan(make_plan(recipe, allow_pipes))


def run(plan: Plan, run: Run) -> Report:
    """Train, or go on training; then the first process writes models, cards and reports."""
    state, distill = processes(), plan.distill
    if state.is_main_process:  # all that weights and pictures depend on besides the recipe; shards may be remote
        shards = json.dumps([shard.identity for shard in (*distill.train, *distill.held_out)])
        origin = made_from(reads(distill.recipe)) | {"data": hashlib.sha256(shards.encode()).hexdigest()}
        claim_or_refuse(run.path / TRAINING, origin)
    state.wait_for_everyone()
    samples = latent_cache(distill).open(state.device, state)
    task = make_task(distill, samples, state, run.path)
    modules = {student.name: load_student(distill, student) for student in distill.students}
    for name, module in modules.items():
        task.attach_student(name, module)
    training = train(task, modules, distill.config, run.path / TRAINING)
    return _written(distill, training, run, samples) if state.is_main_process else Report("distill", "", "", [])


def latent_cache(plan: DistillPlan, held_out: bool = False) -> LatentCache:
    """Where samples are encoded once; those held out always, since they are few and read again and again."""
    data, shards = plan.recipe.data, plan.held_out if held_out else plan.train
    flip, latents = data.flip and not held_out, data.cache == "latents" or held_out
    return LatentCache(shards, plan.host, plan.resolution, Path(data.cache_folder), flip, latents, data.faults)


def make_task(
    plan: DistillPlan, samples: CachedSamples | UncachedSamples, state: PartialState, folder: Path
) -> Distillation:
    recipe, device = plan.recipe, state.device
    dtype = AUTOCAST.get(mixed_precision(recipe.precision, recipe.device), torch.float32)
    precise = partial(torch.autocast, device.type, dtype=dtype, enabled=dtype != torch.float32)
    scheduler = training_scheduler(plan.host)
    task = Distillation(samples, scheduler, plan.terms, recipe.text_dropout, recipe.data.flip, device, precise)
    if plan.held_out:
        task.held_out = latent_cache(plan, held_out=True).open(device, state)
    if plan.teacher:  # on a GPU its weights are kept in the format that it computes in: half the memory
        teacher = load_unet(plan.teacher, device, dtype if device.type == "cuda" else torch.float32)
        teacher = in_own_memory(teacher).to(memory_format=torch.channels_last)
        if plan.config.compile:
            teacher.compile()
        task.attach_teacher(teacher)
    if recipe.validation.prompts and state.is_main_process:
        pipe = load_pipeline(plan.host, device, torch.float32, with_unet=False)
        task.on_validation = partial(_draw, pipe, plan, folder)
    return task


def load_student(plan: DistillPlan, student: StudentModel) -> nn.Module:
    unet = in_own_memory(load_unet(student.directory, torch.device("cpu"), torch.float32)).train()
    for key, weight in unet.named_parameters():
        weight.requires_grad_(key not in student.frozen)
    if plan.recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def _draw(pipe: Any, plan: DistillPlan, folder: Path, name: str, unet: nn.Module, step: int) -> None:
    """The same prompts and noise at every look."""
    look, pipe.unet = plan.recipe.validation, unet
    count = len(look.prompts)
    kept = PictureSet(_home(plan, name, folder) / PICTURES / f"{step:08}", count)
    settings: dict[str, Any] = {"steps": look.steps, "guidance": look.guidance, "size": plan.resolution}
    for index, picture in pictures(pipe, look.prompts, range(count), **settings, seed=plan.recipe.seed, batch=count):
        kept.save(index, picture)


def _home(plan: DistillPlan, name: str, folder: Path) -> Path:
    """Where a student's model, pictures and report go: several have a run directory each."""
    return folder if len(plan.students) == 1 else folder / "students" / name


def _written(plan: DistillPlan, training: Training, run: Run, samples: CachedSamples | UncachedSamples) -> Report:
    card = protocol(plan, samples, training.lead.num_processes) | machine(training.lead.device)
    found = records(plan, read_log(run.path / TRAINING / LOG), training.watch.per_step())
    homes = {student.name: replace(run, path=_home(plan, student.name, run.path)) for student in plan.students}
    images = {name: _images(plan, home.path) for name, home in homes.items()}
    report = document(plan, found, card, images)
    for student, trainer in zip(plan.students, training.students, strict=True):
        home = homes[student.name]
        with trainer.ema_weights() as module, torch.no_grad():
            _write_model(plan, student, module, home, found, card)
            experts = _experts(plan, student, module)
        report = replace(report, parts=[*report.parts, *experts])
        if len(plan.students) > 1:
            mine = [each for each in found if each.setup == student.name]
            own = document(replace(plan, students=(student,)), mine, card, {student.name: images[student.name]})
            home.write(replace(own, parts=[*own.parts, *experts]))
            shutil.copyfile(run.path / "recipe.yaml", home.path / "recipe.yaml")
    shutil.copyfile(run.path / TRAINING / LOG, run.path / LOG)
    if (tracked := run.path / TRAINING / TRACKERS).exists():
        shutil.copytree(tracked, run.path / TRACKERS, dirs_exist_ok=True)
    return report


def _write_model(
    plan: DistillPlan, student: StudentModel, module: nn.Module, run: Run, found: Sequence[Record], card: Card
) -> None:
    """Anew: an interrupted run may have left a part. Weights are kept in the number formats that they came in."""
    target, source = run.path / "model", student.directory
    shutil.rmtree(target, ignore_errors=True)
    assemble_directory(source, target, {"unet"}, run.link)
    folder = target / "unet" if source.is_pipeline else target
    write_config(student.config, folder)
    state = module.state_dict()
    tensors = {
        key: state[key].detach().cpu().to(FORMATS.get(entry.dtype, torch.float32)).contiguous()
        for key, entry in student.checkpoint.tensors.items()
    }
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    facts = {key: card[key] for key in IN_HISTORY} | {"frozen_tensors": len(student.frozen)}
    record(source, target, "distill", None, None, teacher=plan.teacher.name if plan.teacher else None, **facts)
    model_card(plan, student, found, card).save(target / "README.md")


def _experts(plan: DistillPlan, student: StudentModel, module: nn.Module) -> list[Part]:
    """How a student with experts uses them on the prompts of the looks."""
    look = plan.recipe.validation
    if not look.prompts or not specs(student.config):
        return []
    pipe: Any = load_pipeline(plan.host, next(module.parameters()).device, torch.float32, with_unet=False)
    pipe.unet = module
    routing, _ = observe(pipe, look.prompts, look.steps, look.guidance, plan.resolution, plan.recipe.seed)
    return routing_parts(routing, student.name)


def _images(plan: DistillPlan, home: Path) -> dict[int, list[Path]]:
    """By step, one per prompt: those looks of which every picture is whole."""
    count = len(plan.recipe.validation.prompts)
    looks = [PictureSet(each, count) for each in sorted((home / PICTURES).glob("[0-9]*"))] if count else []
    whole = [look for look in looks if not look.missing(range(count))]
    return {int(look.folder.name): [look.path(index) for index in range(count)] for look in whole}
