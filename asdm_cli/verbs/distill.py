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
from asdm_cli.measure.generate import pictures
from asdm_cli.measure.machine import machine
from asdm_cli.measure.pictures import PictureSet
from asdm_cli.measure.processes import processes
from asdm_cli.models.load import in_own_memory, load_pipeline, load_unet
from asdm_cli.models.origin import claim_or_refuse, made_from
from asdm_cli.models.provenance import record
from asdm_cli.models.schedulers import training_scheduler
from asdm_cli.models.write import assemble_directory, write_config
from asdm_cli.recipe.schema import referenced_paths
from asdm_cli.report.document import Report
from asdm_cli.report.run_directory import TRAINING, Run
from asdm_cli.training.distillation import Distillation
from asdm_cli.training.loop import LOG, TRACKERS, read_log, train
from asdm_cli.training.plan import DistillPlan, StudentModel, make_plan
from asdm_cli.training.report import document, model_card, protocol, records
from asdm_cli.training.student import mixed_precision
from asdm_cli.unet.checkpoint import WEIGHTS

RESUMABLE = True
PICTURES = "pictures"
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
        claim_or_refuse(
            folder, made_from(referenced_paths(plan.recipe)) | {"data": hashlib.sha256(shards.encode()).hexdigest()}
        )
    state.wait_for_everyone()
    samples = plan.cache().open(state.device, state)
    task, modules = make_task(plan, samples, state, run.path)
    training = train(task, modules, plan.config, folder)
    if not state.is_main_process:
        return Report("distill", "", "", [])
    card = protocol(plan, samples, state.num_processes) | machine(state.device)
    found = records(plan, read_log(folder / LOG), training.watch.per_step())
    homes = {student.name: replace(run, path=_home(plan, student.name, run.path)) for student in plan.students}
    images = {name: _images(plan, home.path) for name, home in homes.items()}
    for student, trainer in zip(plan.students, training.students, strict=True):
        home = homes[student.name]
        with trainer.ema_weights() as module:
            _write_model(student, module, home)
        model = home.path / "model"
        facts = {key: card[key] for key in IN_HISTORY} | {"frozen_tensors": len(student.frozen)}
        teacher = plan.teacher.name if plan.teacher else None
        record(student.directory, model, "distill", None, None, teacher=teacher, **facts)
        model_card(plan, student, found, card).save(model / "README.md")
        if len(plan.students) > 1:  # each becomes a run directory of its own
            mine = [each for each in found if each.setup == student.name]
            own = {student.name: images[student.name]}
            home.write(document(replace(plan, students=[student]), mine, card, own))
            shutil.copyfile(run.path / "recipe.yaml", home.path / "recipe.yaml")
    shutil.copyfile(folder / LOG, run.path / LOG)
    if (folder / TRACKERS).exists():
        shutil.copytree(folder / TRACKERS, run.path / TRACKERS, dirs_exist_ok=True)
    return document(plan, found, card, images)


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
    kept = PictureSet(_home(plan, name, folder) / PICTURES / f"{step:08}", count)
    settings: dict[str, Any] = {"steps": look.steps, "guidance": look.guidance, "size": plan.resolution}
    for index, picture in pictures(pipe, look.prompts, range(count), **settings, seed=seed, batch=count):
        kept.save(index, picture)


def _images(plan: DistillPlan, home: Path) -> dict[int, list[Path]]:
    """By step, one per prompt: those looks of which every picture is whole."""
    count = len(plan.recipe.validation.prompts)
    looks = [PictureSet(each, count) for each in sorted((home / PICTURES).glob("[0-9]*"))] if count else []
    whole = [look for look in looks if not look.missing(range(count))]
    return {int(look.folder.name): [look.path(index) for index in range(count)] for look in whole}


def _home(plan: DistillPlan, name: str, folder: Path) -> Path:
    """Where a student's model, pictures and report go."""
    return folder if len(plan.students) == 1 else folder / "students" / name


def _write_model(student: StudentModel, module: nn.Module, run: Run) -> None:
    """Anew: an interrupted run may have left a part. Weights are kept in the number formats that they came in."""
    target, source = run.path / "model", student.directory
    shutil.rmtree(target, ignore_errors=True)
    assemble_directory(source, target, {"unet"}, run.link)
    folder = target / "unet" if source.is_pipeline else target
    write_config(source.config("unet"), folder)
    state = module.state_dict()
    tensors = {
        key: state[key].detach().cpu().to(FORMATS.get(entry.dtype, torch.float32)).contiguous()
        for key, entry in student.checkpoint.tensors.items()
    }
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
