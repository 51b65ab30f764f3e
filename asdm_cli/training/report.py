"""What a distillation leaves to read: a protocol, records of what was learnt, and a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from huggingface_hub import ModelCard

from asdm_cli.data.cache import CachedSamples, UncachedSamples
from asdm_cli.models.card import loading, model_card, rows
from asdm_cli.models.directory import ModelDirectory
from asdm_cli.models.metadata import history
from asdm_cli.records import Card, Images, Record, Report, under
from asdm_cli.training.loop import NORM, Line
from asdm_cli.training.plan import DistillPlan, StudentModel
from asdm_cli.training.student import mixed_precision
from asdm_cli.unet.blocks import EXPERTS

LAST = 0.1
"""Share of the steps, at the end, over which final losses are means."""
SHOWN = 8
"""Most columns of a grid of pictures."""
PROTOCOL, PHASE = "training", "phase/"


def protocol(plan: DistillPlan, samples: CachedSamples | UncachedSamples, processes: int) -> Card:
    recipe, optimizer = plan.recipe, plan.recipe.optimizer
    precision = mixed_precision(recipe.precision, recipe.device)
    return {
        "teacher": plan.teacher.name if plan.teacher else "none",
        "students": [str(student) for student in plan.students],
        "losses": [str(term) for term in plan.terms],
        "data": [shard.file for shard in plan.train],
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
        "precision": "float32" if precision == "no" else precision,
        "seed": recipe.seed,
        "processes": processes,
    }


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


def report(plan: DistillPlan, found: Sequence[Record], card: Card, looks: Mapping[str, Mapping[int, str]]) -> Report:
    """`looks[student][step]`: the folder of its images, below the run directory; of many, some from first to last."""
    folders: dict[str, str] = {}
    for name, by_step in looks.items():
        steps = sorted(by_step)
        if len(steps) > SHOWN:
            steps = [steps[round(index * (len(steps) - 1) / (SHOWN - 1))] for index in range(SHOWN)]
        told = f"{name}, " if len(looks) > 1 else ""
        folders |= {f"{told}step {step:,}": by_step[step] for step in steps}
    images = Images(list(plan.recipe.validation.prompts), folders) if folders else None
    teacher = f"from {plan.teacher.name}" if plan.teacher else "from the task alone"
    learned = f"{plan.recipe.steps:,} steps of {plan.recipe.batch} samples, {teacher}"
    note = "Losses are means over the last tenth of the steps; held-out ones are of the weights as written, unweighted."
    setups = {
        student.name: {"written": "." if len(plan.students) == 1 else f"students/{student.name}", "learned": learned}
        for student in plan.students
    }
    return Report("distill", setups, list(found), {PROTOCOL: card}, images, notes=[note])


def card_of(model: Path, plan: DistillPlan, student: StudentModel, found: Sequence[Record], card: Card) -> ModelCard:
    """The card beside a distilled `model`."""
    experts = bool(student.directory.config("unet").get(EXPERTS))
    teacher = f"distilled from {plan.teacher.name}" if plan.teacher else "trained on the task loss alone"
    how = "asdm_cli.load reads it: it has expert convolutions." if experts else "Plain diffusers loads it."
    size, source = f"{student.parameters / 1e6:.1f} M parameters", student.directory.name
    what = [f"A Stable Diffusion UNet of {size} that started from {source} and was {teacher}.", how]
    ends = [each for each in found if each.setup == student.name and each.at is None]
    facts = {**card, **{f"{each.metric}, at the end": f"{each.value:.5g}" for each in ends}}
    worth = "What its pictures are worth: `asdm eval`; what it costs: `asdm bench`."
    done = history(ModelDirectory(model, student.name, student.name))
    return model_card(student.name, what, done, loading(student.directory, "PATH"), [rows(facts), worth])
