"""`asdm distill`: students learn from the same samples and the same teacher forwards, and become model directories."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor, nn

from asdm_cli.data.cache import Share
from asdm_cli.data.dataset import Dataset, Encoded
from asdm_cli.measure.cards import Card
from asdm_cli.measure.generate import pictures
from asdm_cli.measure.machine import machine
from asdm_cli.measure.pictures import PictureSet
from asdm_cli.measure.processes import processes
from asdm_cli.measure.routing import observe
from asdm_cli.measure.routing_report import routing_parts
from asdm_cli.models.load import in_own_memory, load_pipeline, load_unet
from asdm_cli.models.origin import Origin, claim_or_refuse, made_from
from asdm_cli.models.provenance import record
from asdm_cli.models.schedulers import training_scheduler
from asdm_cli.models.write import assemble_directory, write_config
from asdm_cli.recipe.schema import referenced_paths
from asdm_cli.recipe.verbs import DistillRecipe
from asdm_cli.report.document import Part, Report
from asdm_cli.report.run_directory import TRAINING, Run
from asdm_cli.training.card import model_card
from asdm_cli.training.distill_plan import DistillPlan, Learner, make_plan
from asdm_cli.training.distillation import Distillation
from asdm_cli.training.log import Line, read
from asdm_cli.training.loop import LOG, TRACKERS, Training, train
from asdm_cli.training.plan import mixed_precision
from asdm_cli.training.report import planned, trained
from asdm_cli.unet.stock import EXPERTS
from asdm_cli.unet.weights import WEIGHTS

RESUMABLE = True
PICTURES = "pictures"
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Plan:
    distill: DistillPlan

    def report(self) -> Report:
        return planned(self.distill, f"Data: {_dataset(self.distill).state()}.")


def plan(recipe: DistillRecipe, allow_pipes: bool = False) -> Plan:
    """Gate 3, from configs, file headers and names. Raises ModelError with all that does not fit."""
    return Plan(make_plan(recipe, allow_pipes))


def run(plan: Plan, run: Run) -> Report:
    """Train, or go on training; then the first process writes models, cards and reports."""
    state, distill = processes(), plan.distill
    if state.is_main_process:
        claim_or_refuse(run.path / TRAINING, _origin(distill))
    state.wait_for_everyone()
    samples = _dataset(distill).open(state.device, _share(state))
    task = _task(distill, samples, state, run.path)
    modules = {learner.name: _student(distill, learner) for learner in distill.learners}
    for name, module in modules.items():
        task.attach_student(name, module)
    training = train(task, modules, distill.training, run.path / TRAINING)
    if not state.is_main_process:
        return Report("distill", "", "", [])
    return _written(distill, training, run, samples)


def _origin(plan: DistillPlan) -> Origin:
    """All that weights and pictures depend on besides the recipe; shards may be remote."""
    shards = json.dumps([shard.identity for shard in (*plan.train, *plan.held_out)])
    return made_from(referenced_paths(plan.recipe)) | {"data": hashlib.sha256(shards.encode()).hexdigest()}


def _dataset(plan: DistillPlan, held_out: bool = False) -> Dataset:
    data = plan.recipe.data
    shards = plan.held_out if held_out else plan.train
    flip, cached = data.flip and not held_out, data.cache == "latents" or held_out
    return Dataset(shards, plan.host, plan.resolution, flip, cached, Path(data.cache_folder), data.faults)


def _share(state: PartialState) -> Share:
    return Share(state.process_index, state.num_processes, state.wait_for_everyone)


def _task(plan: DistillPlan, samples: Encoded, state: PartialState, folder: Path) -> Distillation:
    recipe, device = plan.recipe, state.device
    scheduler = training_scheduler(plan.host)
    task = Distillation(samples, scheduler, list(plan.rows), recipe.text_dropout, recipe.data.flip)
    task.device, task.precise = device, _precise(plan, device)
    if plan.held_out:
        task.held_out = _dataset(plan, held_out=True).open(device, _share(state))
    if plan.teacher:
        task.attach_teacher(_teacher(plan, device))
    if recipe.validation.prompts and state.is_main_process:
        pipe = load_pipeline(plan.host, device, torch.float32, with_unet=False)
        task.on_validation = partial(_draw, pipe, plan, folder)
    return task


def _precise(plan: DistillPlan, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    word = mixed_precision(plan.recipe.precision, plan.recipe.device)
    return partial(torch.autocast, device.type, dtype=AUTOCAST[word]) if word in AUTOCAST else nullcontext


def _teacher(plan: DistillPlan, device: torch.device) -> nn.Module:
    """On a GPU its weights are kept in the format that it computes in: half the memory."""
    assert plan.teacher, "asked for only where there is one"
    word = mixed_precision(plan.recipe.precision, plan.recipe.device)
    dtype = AUTOCAST.get(word, torch.float32) if device.type == "cuda" else torch.float32
    teacher = in_own_memory(load_unet(plan.teacher, device, dtype)).to(memory_format=torch.channels_last)
    if plan.recipe.compile:
        teacher.compile()
    return teacher


def _student(plan: DistillPlan, learner: Learner) -> nn.Module:
    unet = in_own_memory(load_unet(learner.directory, torch.device("cpu"), torch.float32)).train()
    for key, weight in unet.named_parameters():
        weight.requires_grad_(key not in learner.frozen)
    if plan.recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def _draw(pipe: Any, plan: DistillPlan, folder: Path, name: str, unet: nn.Module, step: int) -> None:
    """The same prompts and noise at every look."""
    look = plan.recipe.validation
    kept = PictureSet(_home(plan, name, folder) / PICTURES / f"{step:08}", len(look.prompts))
    pipe.unet = unet
    drawn = pictures(
        pipe,
        look.prompts,
        range(len(look.prompts)),
        steps=look.steps,
        guidance=look.guidance,
        size=plan.resolution,
        seed=plan.recipe.seed,
        batch=len(look.prompts),
    )
    for index, picture in drawn:
        kept.save(index, picture)


def _home(plan: DistillPlan, name: str, folder: Path) -> Path:
    """Where a student's model, pictures and report go: several have a run directory each."""
    return folder if len(plan.learners) == 1 else folder / "students" / name


def _written(plan: DistillPlan, training: Training, run: Run, samples: Encoded) -> Report:
    lines = read(run.path / TRAINING / LOG)
    alone = len(plan.learners) == 1
    seconds, card = training.watch.per_step(), _card(plan, training, samples)
    experts = _experts(plan, training)
    report = trained(plan, lines, seconds, _drawn(plan, run.path), {"training": card})
    report = replace(report, parts=[*report.parts, *(part for parts in experts.values() for part in parts)])
    for learner, trainee in zip(plan.learners, training.crew, strict=True):
        home = _home(plan, learner.name, run.path)
        with trainee.as_written() as module:
            _write_model(plan, learner, module, replace(run, path=home), lines, card)
        if not alone:
            _write_own_report(plan, learner, run, home, lines, card, experts.get(learner.name, []))
    (run.path / LOG).write_bytes((run.path / TRAINING / LOG).read_bytes())
    if (tracked := run.path / TRAINING / TRACKERS).exists():
        shutil.copytree(tracked, run.path / TRACKERS, dirs_exist_ok=True)
    return report


def _experts(plan: DistillPlan, training: Training) -> dict[str, list[Part]]:
    """How each student with experts uses them on the prompts of the looks."""
    look, found = plan.recipe.validation, {}
    if not look.prompts or not any(learner.config.get(EXPERTS) for learner in plan.learners):
        return {}
    pipe = load_pipeline(plan.host, training.device, torch.float32, with_unet=False)
    for learner, trainee in zip(plan.learners, training.crew, strict=True):
        if learner.config.get(EXPERTS):
            with trainee.as_written() as module, torch.no_grad():
                pipe.unet = module
                settings = (look.steps, look.guidance, plan.resolution, plan.recipe.seed)
                found[learner.name] = routing_parts(observe(pipe, look.prompts, *settings)[0], learner.name)
    return found


def _write_model(
    plan: DistillPlan, learner: Learner, module: nn.Module, run: Run, lines: list[Line], card: Card
) -> None:
    """Anew: an interrupted run may have left a part. Weights are kept in the number formats that they came in."""
    target, source = run.path / "model", learner.directory
    shutil.rmtree(target, ignore_errors=True)
    assemble_directory(source, target, {"unet"}, run.link)
    folder = target / "unet" if source.is_pipeline else target
    write_config(learner.config, folder)
    _save(module, learner, folder / WEIGHTS)
    facts = {key: card[key] for key in ("data", "samples", "steps", "batch", "optimizer", "seed")}
    teacher = plan.teacher.name if plan.teacher else None
    record(source, target, "distill", None, None, teacher=teacher, frozen_tensors=len(learner.frozen), **facts)
    (target / "README.md").write_text(model_card(plan, learner, lines, card), encoding="utf-8")


def _save(module: nn.Module, learner: Learner, file: Path) -> None:
    formats = {"F16": torch.float16, "BF16": torch.bfloat16}
    state: dict[str, Tensor] = module.state_dict()
    tensors = {
        key: state[key].detach().cpu().to(formats.get(entry.dtype, torch.float32)).contiguous()
        for key, entry in learner.checkpoint.tensors.items()
    }
    save_file(tensors, file, {"format": "pt"})


def _write_own_report(  # noqa: PLR0913 - what a report is made of
    plan: DistillPlan, learner: Learner, run: Run, home: Path, lines: list[Line], card: Card, experts: list[Part]
) -> None:
    """A run directory of its own for each of several students; the time is told of all together."""
    rows = tuple(replace(row, taps={k: v for k, v in row.taps.items() if k == learner.name}) for row in plan.rows)
    own = replace(plan, learners=(learner,), rows=rows)
    mine = [line for line in lines if line["student"] == learner.name]
    drawn = {learner.name: _drawn(plan, run.path).get(learner.name, {})}
    report = trained(own, mine, {}, drawn, {"training": card})
    replace(run, path=home).write(replace(report, parts=[*report.parts, *experts]))
    shutil.copyfile(run.path / "recipe.yaml", home / "recipe.yaml")


def _drawn(plan: DistillPlan, folder: Path) -> dict[str, dict[int, list[Path]]]:
    count = len(plan.recipe.validation.prompts)
    found: dict[str, dict[int, list[Path]]] = {}
    for learner in plan.learners if count else ():
        for each in sorted((_home(plan, learner.name, folder) / PICTURES).glob("[0-9]*")):
            kept = PictureSet(each, count)
            if not kept.missing(range(count)):
                found.setdefault(learner.name, {})[int(each.name)] = [kept.path(index) for index in range(count)]
    return found


def _card(plan: DistillPlan, training: Training, samples: Encoded) -> Card:
    recipe, optimizer = plan.recipe, plan.recipe.optimizer
    return {
        "teacher": plan.teacher.name if plan.teacher else "none",
        "students": [f"{learner.name}: {learner.directory.name}" for learner in plan.learners],
        "data": [shard.file for shard in plan.train],
        "samples": samples.size,
        "faulty_samples_left_out": [f"{kind}: {n}" for kind, n in samples.faults.counts.items()] or "none",
        "resolution": f"{plan.resolution} x {plan.resolution}",
        "mirrored": "half" if recipe.data.flip else "no",
        "steps": recipe.steps,
        "batch": recipe.batch,
        "epochs": recipe.steps * recipe.batch / samples.size,
        "losses": [f"{row.kind}, weight {row.weight}" for row in plan.rows],
        "optimizer": f"{optimizer.name}, lr {optimizer.lr:g}, {optimizer.schedule}, warm-up {optimizer.warmup}",
        "running_mean": "none" if recipe.ema == "none" else f"decay {recipe.ema.decay:g}",
        "text_dropout": recipe.text_dropout,
        "precision": {"no": "float32"}.get(word := mixed_precision(recipe.precision, recipe.device), word),
        "seed": recipe.seed,
        "processes": training.crew[0].accelerator.num_processes,
        **machine(training.device),
    }
