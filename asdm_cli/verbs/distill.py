"""`asdm distill`: students learn from the same samples and the same teacher forwards, and become model directories."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from torch import nn

from asdm_cli.data.cache import CachedSamples, UncachedSamples
from asdm_cli.models.card import loading, model_card, rows
from asdm_cli.models.directory import ModelDirectory
from asdm_cli.models.load import in_own_memory, load_pipeline, load_unet
from asdm_cli.models.metadata import claim, history, made_from, record
from asdm_cli.models.schedulers import training_scheduler
from asdm_cli.models.write import assemble_directory
from asdm_cli.profiling.latency import measured_on
from asdm_cli.recipe.schema import referenced_paths
from asdm_cli.recipe.verbs import DistillRecipe, RandomConditioning
from asdm_cli.records import Card, Images, Record, Report, under
from asdm_cli.report.run_directory import TRAINING, Run
from asdm_cli.sampling.generate import SamplingSettings, draw, processes
from asdm_cli.sampling.image_set import ImageSet
from asdm_cli.training.distillation import HELD_OUT, Distillation, OtherCaptions, in_words
from asdm_cli.training.loop import LOG, NORM, TRACKERS, Line, read_log, train
from asdm_cli.training.plan import DistillPlan, StudentModel, make_plan
from asdm_cli.training.student import mixed_precision
from asdm_cli.unet.blocks import EXPERTS
from asdm_cli.unet.weights import WEIGHTS

RESUMABLE = True
IMAGES, TEACHER = "pictures", "teacher"
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {"F16": torch.float16, "BF16": torch.bfloat16}
IN_HISTORY = ("data", "samples", "steps", "batch", "optimizer", "seed")
LAST = 0.1
"""Share of the steps, at the end, over which final losses are means."""
SHOWN = 8
"""Most columns of a grid of pictures."""
PROTOCOL, PHASE = "training", "phase/"

plan = make_plan
"""Gate 3, from configs, file headers and names. Raises ModelError with all that does not fit."""


def run(plan: DistillPlan, run: Run) -> Report:
    """Train, or go on training; then the first process writes models, cards and reports."""
    state, folder = processes(plan.recipe.device), run.path / TRAINING
    if state.is_main_process:  # all that weights and pictures depend on besides the recipe; shards may be remote
        to_draw = plan.generated.shards() if plan.generated else []  # told by what they are made from, drawn or not
        told = [*(shard.contents() for shard in (*plan.train, *plan.held_out)), *(shard.identity for shard in to_draw)]
        read = made_from(referenced_paths(plan.recipe), whole=True)  # seconds, beside hours
        claim(folder, read | {"data": hashlib.sha256(json.dumps(told).encode()).hexdigest()}, dear=True)
    state.wait_for_everyone()
    if plan.generated:
        plan.generated.draw(state, at_a_time(plan.recipe, state.num_processes))
    samples = plan.cache().open(state)
    task, modules = make_task(plan, samples, state, run.path)
    training = train(task, modules, plan.recipe, folder)
    if not state.is_main_process:
        return Report("distill")
    card = protocol(plan, samples, state.num_processes) | measured_on(state.device)
    found = records(plan, read_log(folder / LOG), training.watch.per_step())
    for student, trainer in zip(plan.students, training.students, strict=True):
        home = _home(plan, student.name, run.path)
        model = home / "model"
        with trainer.ema_weights() as module:
            _write_model(student, module, model, run.link)
        teacher = plan.teacher.name if plan.teacher else None
        facts = {key: card[key] for key in IN_HISTORY} | {"frozen_tensors": len(student.frozen)}
        record(student.directory, model, "distill", teacher=teacher, **facts)
        card_of(model, plan, student, found, card).save(model / "README.md")
        if len(plan.students) > 1:  # each becomes a run directory of its own
            mine = [each for each in found if each.setup == student.name]
            if (drawn := run.path / IMAGES / TEACHER).exists():
                shutil.copytree(drawn, home / IMAGES / TEACHER, dirs_exist_ok=True)
            replace(run, path=home).write(report(replace(plan, students=[student]), mine, card, home))
            shutil.copyfile(run.path / "recipe.yaml", home / "recipe.yaml")
    shutil.copyfile(folder / LOG, run.path / LOG)
    if (folder / TRACKERS).exists():
        shutil.copytree(folder / TRACKERS, run.path / TRACKERS, dirs_exist_ok=True)
    return report(plan, found, card, run.path)


def make_task(
    plan: DistillPlan, samples: CachedSamples | UncachedSamples, state: PartialState, folder: Path
) -> tuple[Distillation, dict[str, nn.Module]]:
    """What is learnt, and who learns."""
    recipe, device = plan.recipe, state.device
    dtype = AUTOCAST.get(mixed_precision(recipe.precision, recipe.device), torch.float32)
    precise = partial(torch.autocast, device.type, dtype=dtype, enabled=dtype != torch.float32)
    scheduler = training_scheduler(plan.host)
    others = None
    if recipe.random_conditioning:
        cache = plan.text_cache()
        others = OtherCaptions(recipe.random_conditioning.probability, cache.open(state) if cache else samples)
    task = Distillation(samples, scheduler, plan.terms, recipe.text_dropout, recipe.data.flip, device, precise, others)
    if plan.held_out:
        task.held_out = plan.cache(held_out=True).open(state)
    if plan.teacher:  # on a GPU its weights are kept in the format that it computes in: half the memory
        teacher = load_unet(plan.teacher, device, dtype if device.type == "cuda" else torch.float32)
        teacher = in_own_memory(teacher).to(memory_format=torch.channels_last)
        if recipe.compile:
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
        task.on_validation = partial(_draw, pipe, plan, task, folder)
    return task, modules


def at_a_time(recipe: DistillRecipe, processes: int) -> int:
    """Pictures that a teacher draws in one call on a GPU: as many as fit while training, and no more than draw well."""
    return max(1, min(SamplingSettings.batch, recipe.batch // (recipe.accumulate * processes)))


def _draw(  # noqa: PLR0913 - what draws, and what a look is of
    pipe: Any, plan: DistillPlan, task: Distillation, folder: Path, name: str, unet: nn.Module, step: int
) -> None:
    """The same prompts and noise at every look; the teacher's pictures once."""
    _look(pipe, plan, unet, _home(plan, name, folder) / IMAGES / f"{step:08}")
    teacher: Any = task.teacher
    if teacher is None or _is_whole(plan, drawn := folder / IMAGES / TEACHER):
        return
    forward = teacher.forward

    @wraps(forward)
    def precise(*given: Any, **named: Any) -> Any:
        with task.precise():  # each call by itself: it is drawn by another thread, which autocast does not reach
            return forward(*given, **named)

    teacher.forward = precise
    try:
        _look(pipe, plan, teacher, drawn)
    finally:
        del teacher.forward


def _look(pipe: Any, plan: DistillPlan, unet: nn.Module, folder: Path) -> None:
    """In calls that fit beside what is trained."""
    look, pipe.unet = plan.recipe.validation, unet
    kept = ImageSet(folder, len(look.prompts))
    few = min(kept.count, at_a_time(plan.recipe, processes(plan.recipe.device).num_processes))
    settings = SamplingSettings(look.steps, look.guidance, plan.resolution, plan.recipe.seed, batch=few)
    for index, image in draw(pipe, look.prompts, range(kept.count), settings):
        kept.save(index, image)


def _is_whole(plan: DistillPlan, folder: Path) -> bool:
    count = len(plan.recipe.validation.prompts)
    return count > 0 and not ImageSet(folder, count).absent()


def _home(plan: DistillPlan, name: str, folder: Path) -> Path:
    """Where a student's model, pictures and report go."""
    return folder if len(plan.students) == 1 else folder / "students" / name


def _write_model(student: StudentModel, module: nn.Module, target: Path, link: bool) -> None:
    """Weights are kept in the number formats that they came in."""
    source = student.directory
    folder = assemble_directory(source, target, link, source.config("unet"))
    state = module.state_dict()
    tensors = {
        key: state[key].detach().cpu().to(FORMATS.get(entry.dtype, torch.float32)).contiguous()
        for key, entry in student.checkpoint.tensors.items()
    }
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def protocol(plan: DistillPlan, samples: CachedSamples | UncachedSamples, processes: int) -> Card:
    recipe, optimizer = plan.recipe, plan.recipe.optimizer
    precision = mixed_precision(recipe.precision, recipe.device)
    return {
        "teacher": plan.teacher.name if plan.teacher else "none",
        "students": [str(student) for student in plan.students],
        "losses": [str(term) for term in plan.terms],
        "data": [shard.file for shard in plan.train] + ([plan.generated.told] if plan.generated else []),
        "samples": samples.size,
        "faulty_samples_left_out": samples.faults.summary() or "none",
        "resolution": f"{plan.resolution} x {plan.resolution}",
        "mirrored": "half" if recipe.data.flip else "no",
        "steps": recipe.steps,
        "batch": recipe.batch,
        "epochs": recipe.steps * recipe.batch / samples.size,
        "optimizer": f"{optimizer.name}, lr {optimizer.lr:g}, {optimizer.schedule}, warm-up {optimizer.warmup}",
        "running_mean": "none" if recipe.ema == "none" else f"decay {recipe.ema.decay:g}",
        "text_dropout": recipe.text_dropout,
        **({"other_captions": _other_captions(plan, other)} if (other := recipe.random_conditioning) else {}),
        "precision": "float32" if precision == "no" else precision,
        "seed": recipe.seed,
        "processes": processes,
    }


def _other_captions(plan: DistillPlan, other: RandomConditioning) -> str:
    of = f"{len(plan.captions):,} captions without pictures" if plan.captions else "those of other samples"
    return f"{of}, probability {in_words(other.probability, 'timestep')}"


def records(plan: DistillPlan, lines: Sequence[Line], seconds: Mapping[str, float]) -> list[Record]:
    """The log, with `at` for the step; without it, where each student ended (losses: means over the last tenth of the
    steps), and the milliseconds of a step by phase, of all students together."""
    everybody = ", ".join(student.name for student in plan.students)
    found = [Record(everybody, "step_ms", 1e3 * each, of=f"{PHASE}{phase}") for phase, each in seconds.items()]
    for student in plan.students:
        points: dict[str, dict[int, float]] = {}
        for line in lines:
            held_out = {f"{kind}_held_out": value for kind, value in line.get("validation", {}).items()}
            for metric, value in (held_out or line).items():
                if line["student"] == student.name and metric not in ("step", "student"):
                    points.setdefault(metric, {})[line["step"]] = value
        for metric, values in points.items():
            found += [Record(student.name, metric, value, at=step) for step, value in values.items()]
            late = [value for step, value in values.items() if step > plan.recipe.steps * (1 - LAST)]
            if metric not in ("lr", NORM):
                last = list(values.values())[-1]
                found.append(
                    Record(student.name, metric, last if metric.endswith("held_out") else fmean(late or [last]))
                )
    return under(PROTOCOL, found)


def report(plan: DistillPlan, found: Sequence[Record], card: Card, root: Path) -> Report:
    """Of what lies in `root`, with those looks of which every image is whole; of many, some from first to last. The
    teacher's pictures stand before them."""
    recipe, folders, setups = plan.recipe, dict[str, str](), dict[str, dict[str, object]]()
    teacher = f"from {plan.teacher.name}" if plan.teacher else "from the task alone"
    learned = f"{recipe.steps:,} steps of {recipe.batch} samples, {teacher}"
    if _is_whole(plan, root / IMAGES / TEACHER):
        folders[TEACHER] = f"{IMAGES}/{TEACHER}"
    for name in (student.name for student in plan.students):
        home = _home(plan, name, root)
        setups[name] = {"written": home.relative_to(root).as_posix(), "learned": learned}
        looks = [each for each in sorted((home / IMAGES).glob("[0-9]*")) if _is_whole(plan, each)]
        if len(looks) > SHOWN:
            looks = [looks[round(index * (len(looks) - 1) / (SHOWN - 1))] for index in range(SHOWN)]
        whose = f"{name}, " if len(plan.students) > 1 else ""
        folders |= {f"{whose}step {int(look.name):,}": look.relative_to(root).as_posix() for look in looks}
    images = Images(list(recipe.validation.prompts), folders) if folders else None
    note = (
        "Losses are means over the last tenth of the steps; held-out ones are of the weights as written, "
        f"unweighted, over {HELD_OUT} samples at most."
    )
    return Report("distill", setups, list(found), {PROTOCOL: card}, images, notes=[note])


def card_of(model: Path, plan: DistillPlan, student: StudentModel, found: Sequence[Record], card: Card) -> ModelCard:
    """The card beside a distilled `model`."""
    experts = bool(student.directory.config("unet").get(EXPERTS))
    teacher = f"distilled from {plan.teacher.name}" if plan.teacher else "trained on the task loss alone"
    how = "asdm reads it: it has expert convolutions." if experts else "Plain diffusers loads it."
    size, source = f"{student.parameters / 1e6:.1f} M parameters", student.directory.name
    what = [f"A Stable Diffusion UNet of {size} that started from {source} and was {teacher}.", how]
    ends = [each for each in found if each.setup == student.name and each.at is None]
    facts = {**card, **{f"{each.metric}, at the end": f"{each.value:.5g}" for each in ends}}
    worth = "What its pictures are worth: `asdm eval`; what it costs: `asdm bench`."
    done = history(ModelDirectory(model, student.name, student.name))
    return model_card(student.name, what, done, loading(student.directory, "PATH"), [rows(facts), worth])
