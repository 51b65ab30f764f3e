"""`asdm distill`: students learn from the same samples and the same teacher forwards, and become model directories."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import nn

from asdm_cli.data.samples import Samples
from asdm_cli.models.load import in_own_memory, load_pipeline, load_unet
from asdm_cli.models.metadata import claim, made_from, record
from asdm_cli.models.schedulers import training_scheduler
from asdm_cli.models.write import assemble_directory
from asdm_cli.profiling.latency import machine
from asdm_cli.recipe.schema import referenced_paths
from asdm_cli.records import Record, Report
from asdm_cli.report.run_directory import TRAINING, Run
from asdm_cli.sampling.generate import SamplingSettings, draw, processes
from asdm_cli.sampling.image_set import ImageSet
from asdm_cli.sampling.routing import layers_of, observe
from asdm_cli.training.distillation import Distillation
from asdm_cli.training.loop import LOG, TRACKERS, read_log, train
from asdm_cli.training.plan import DistillPlan, StudentModel, make_plan
from asdm_cli.training.report import card_of, protocol, records, report
from asdm_cli.training.student import mixed_precision
from asdm_cli.unet.weights import WEIGHTS

RESUMABLE = True
IMAGES = "pictures"
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {"F16": torch.float16, "BF16": torch.bfloat16}
IN_HISTORY = ("data", "samples", "steps", "batch", "optimizer", "seed")

plan = make_plan
"""Gate 3, from configs, file headers and names. Raises ModelError with all that does not fit."""


def run(plan: DistillPlan, run: Run) -> Report:
    """Train, or go on training; then the first process writes models, cards and reports."""
    state, folder = processes(), run.path / TRAINING
    if state.is_main_process:  # all that weights and pictures depend on besides the recipe; shards may be remote
        shards = json.dumps([shard.identity for shard in (*plan.train, *plan.held_out)])
        read = made_from(referenced_paths(plan.recipe))
        claim(folder, read | {"data": hashlib.sha256(shards.encode()).hexdigest()}, dear=True)
    state.wait_for_everyone()
    samples = plan.cache().open(state.device, state)
    task, modules = make_task(plan, samples, state, run.path)
    training = train(task, modules, plan.config, folder)
    if not state.is_main_process:
        return Report("distill")
    card = protocol(plan, samples, state.num_processes) | machine(state.device)
    found = records(plan, read_log(folder / LOG), training.watch.per_step())
    homes = {student.name: replace(run, path=_home(plan, student.name, run.path)) for student in plan.students}
    looks = {name: _looks(plan, home.path) for name, home in homes.items()}
    for student, trainer in zip(plan.students, training.students, strict=True):
        home = homes[student.name]
        with trainer.ema_weights() as module:
            _write_model(student, module, home)
            routing = _routing(plan, student, module, state)
        model = home.path / "model"
        facts = {key: card[key] for key in IN_HISTORY} | {"frozen_tensors": len(student.frozen)}
        teacher = plan.teacher.name if plan.teacher else None
        record(student.directory, model, "distill", teacher=teacher, **facts)
        card_of(model, plan, student, found, card).save(model / "README.md")
        found += routing
        if len(plan.students) > 1:  # each becomes a run directory of its own
            mine = [each for each in found if each.setup == student.name]
            own = {student.name: {step: _below(home.path, look) for step, look in looks[student.name].items()}}
            home.write(report(replace(plan, students=[student]), mine, card, own))
            shutil.copyfile(run.path / "recipe.yaml", home.path / "recipe.yaml")
    shutil.copyfile(folder / LOG, run.path / LOG)
    if (folder / TRACKERS).exists():
        shutil.copytree(folder / TRACKERS, run.path / TRACKERS, dirs_exist_ok=True)
    shown = {name: {step: _below(run.path, look) for step, look in each.items()} for name, each in looks.items()}
    return report(plan, found, card, shown)


def _below(folder: Path, images: ImageSet) -> str:
    return images.folder.relative_to(folder).as_posix()


def make_task(
    plan: DistillPlan, samples: Samples, state: PartialState, folder: Path
) -> tuple[Distillation, dict[str, nn.Module]]:
    """What is learnt, and who learns."""
    recipe, device = plan.recipe, state.device
    dtype = AUTOCAST.get(mixed_precision(recipe.precision, recipe.device), torch.float32)
    precise = partial(torch.autocast, device.type, dtype=dtype, enabled=dtype != torch.float32)
    scheduler = training_scheduler(plan.host)
    task = Distillation(samples, scheduler, plan.terms, recipe.text_dropout, recipe.data.flip, device, precise)
    if plan.held_out:
        task.held_out = plan.cache(held_out=True).open(device, state)
    if plan.teacher:  # on a GPU its weights are kept in the format that it computes in: half the memory
        teacher = load_unet(plan.teacher, device, dtype if device.type == "cuda" else torch.float32)
        teacher = in_own_memory(teacher).to(memory_format=torch.channels_last)
        if plan.config.compile:
            teacher.compile()
        task.attach_teacher(teacher)
    modules: dict[str, nn.Module] = {}
    for student in plan.students:
        unet = in_own_memory(load_unet(student.directory, torch.device("cpu"), torch.float32)).train()
        for key, weight in unet.named_parameters():
            weight.requires_grad_(key not in student.frozen)
        if recipe.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        task.attach_student(student.name, unet)
        modules[student.name] = unet
    if recipe.validation.prompts and state.is_main_process:
        pipe = load_pipeline(plan.host, device, torch.float32, with_unet=False)
        task.on_validation = partial(_draw, pipe, plan, folder)
    return task, modules


def _draw(pipe: Any, plan: DistillPlan, folder: Path, name: str, unet: nn.Module, step: int) -> None:
    """The same prompts and noise at every look."""
    look, pipe.unet = plan.recipe.validation, unet
    count, seed = len(look.prompts), plan.recipe.seed
    kept = ImageSet(_home(plan, name, folder) / IMAGES / f"{step:08}", count)
    settings = SamplingSettings(look.steps, look.guidance, plan.resolution, seed, batch=count)
    for index, image in draw(pipe, look.prompts, range(count), settings):
        kept.save(index, image)


def _routing(plan: DistillPlan, student: StudentModel, unet: nn.Module, state: PartialState) -> list[Record]:
    """How a student's experts are used on the prompts of the looks; nothing where it has none."""
    look = plan.recipe.validation
    if not look.prompts or not layers_of(unet):
        return []
    pipe: Any = load_pipeline(plan.host, state.device, torch.float32, with_unet=False)
    pipe.unet = unet
    settings = SamplingSettings(look.steps, look.guidance, plan.resolution, plan.recipe.seed)
    return list(observe(pipe, look.prompts, settings)[0].records(student.name))


def _looks(plan: DistillPlan, home: Path) -> dict[int, ImageSet]:
    """By step: those looks of which every image is whole."""
    count = len(plan.recipe.validation.prompts)
    looks = [ImageSet(each, count) for each in sorted((home / IMAGES).glob("[0-9]*"))] if count else []
    return {int(look.folder.name): look for look in looks if not look.missing()}


def _home(plan: DistillPlan, name: str, folder: Path) -> Path:
    """Where a student's model, pictures and report go."""
    return folder if len(plan.students) == 1 else folder / "students" / name


def _write_model(student: StudentModel, module: nn.Module, run: Run) -> None:
    """Weights are kept in the number formats that they came in."""
    target, source = run.path / "model", student.directory
    folder = assemble_directory(source, target, run.link, source.config("unet"))
    state = module.state_dict()
    tensors = {
        key: state[key].detach().cpu().to(FORMATS.get(entry.dtype, torch.float32)).contiguous()
        for key, entry in student.checkpoint.tensors.items()
    }
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
