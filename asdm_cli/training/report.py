"""What a distillation leaves to read: its plan in words, a protocol, records of what was learnt, and a model card.

Only `document` knows how a report looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from huggingface_hub import ModelCard, ModelCardData

from asdm_cli import __version__
from asdm_cli.data.cache import CachedSamples, UncachedSamples
from asdm_cli.models.write import carried_size, takes
from asdm_cli.records import Card, Record, under
from asdm_cli.report.document import Cell, Column, Curves, Grid, Interval, Part, Report, Table
from asdm_cli.training.loop import NORM, Line
from asdm_cli.training.plan import DistillPlan, StudentModel
from asdm_cli.training.student import mixed_precision
from asdm_cli.unet.expert_config import specs

LAST = 0.1
"""Share of the steps, at the end, over which final losses are means."""
POINTS, COLUMNS = 500, 8
"""Most points of a curve, and most columns of a grid of pictures; log.jsonl and the folder have all."""
PROTOCOL = "training"
Item = TypeVar("Item")
Images = Mapping[str, Mapping[int, list[Path]]]


def planned(plan: DistillPlan, data: str) -> Report:
    """The dry run: who learns what, and what would be made."""
    recipe = plan.recipe
    carried = sum(carried_size(student.directory, {"unet"}) for student in plan.students)
    summary = (
        f"{_names(plan)} learn from {plan.teacher.name if plan.teacher else 'no teacher'}: {recipe.steps:,} steps of "
        f"{recipe.batch} samples at {plan.resolution} pixels. Data: {data}. "
        f"{takes(sum(student.checkpoint.size for student in plan.students), carried)}"
    )
    return Report("distill", "Plan", "\n".join([summary, *_students(plan), *_losses(plan)]), [])


def protocol(plan: DistillPlan, samples: CachedSamples | UncachedSamples, processes: int) -> Card:
    recipe, optimizer = plan.recipe, plan.recipe.optimizer
    precision = mixed_precision(recipe.precision, recipe.device)
    return {
        "teacher": plan.teacher.name if plan.teacher else "none",
        "students": _students(plan),
        "losses": _losses(plan),
        "data": [shard.file for shard in plan.train],
        "samples": samples.size,
        "faulty_samples_left_out": [f"{kind}: {n}" for kind, n in samples.faults.counts.items()] or "none",
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


def _names(plan: DistillPlan) -> str:
    return ", ".join(student.name for student in plan.students)


def _students(plan: DistillPlan) -> list[str]:
    told = []
    for student in plan.students:
        total, still = (student.parameters(names) / 1e6 for names in (None, student.frozen))
        where = ", ".join(sorted({key.split(".")[0] for key in student.frozen}))
        frozen = f"; frozen: {len(student.frozen)} tensors of {where}" if where else ""
        source, learn = student.directory.name, total - still
        told.append(f"{student.name}: from {source}, {total:.2f} M parameters, {learn:.2f} M learn{frozen}")
    return told


def _losses(plan: DistillPlan) -> list[str]:
    told = []
    for term in plan.terms:
        points = [] if isinstance(term.weight, int | float) else term.weight
        weight = ", ".join(f"{value:g} at step {step:,.0f}" for step, value in points) or f"{term.weight:g}"
        words = [term.kind, f"weight {weight}"]
        words += [f"min-SNR gamma {term.snr_gamma:g}"] if term.snr_gamma else []
        words += ["normalised by the teacher"] if term.normalise else []
        words += [
            f"{name} {' '.join(f'{pair.student}={pair.teacher}' for pair in pairs)}"
            for name, pairs in term.feature_pairs.items()
        ]
        told.append(", ".join(words))
    return told


def records(plan: DistillPlan, lines: Sequence[Line], seconds: Mapping[str, float]) -> list[Record]:
    """The log, with `at` for the step; without it, where each student ended (losses: means over the last tenth of the
    steps) and, once for all, the milliseconds of a step by phase."""
    found = [Record(_names(plan), "step_ms", 1e3 * each, of=f"phase/{phase}") for phase, each in seconds.items()]
    for student in plan.students:
        values: dict[str, list[tuple[int, float]]] = {}
        for line in lines:
            figures = {f"{kind}_held_out": value for kind, value in line.get("validation", {}).items()} or line
            for metric, value in figures.items() if line["student"] == student.name else ():
                if metric not in ("step", "student"):
                    values.setdefault(metric, []).append((line["step"], value))
        for metric, points in values.items():
            found += [Record(student.name, metric, value, at=step) for step, value in thinned(points, POINTS)]
            late = [value for step, value in points if step > plan.recipe.steps * (1 - LAST)]
            if metric not in ("lr", NORM):
                last = points[-1][1] if metric.endswith("held_out") or not late else fmean(late)
                found.append(Record(student.name, metric, last))
    return under(PROTOCOL, found)


def document(plan: DistillPlan, found: Sequence[Record], card: Card, images: Images) -> Report:
    """`images[student][step]`, one per prompt."""
    names, curves = [student.name for student in plan.students], dict[str, dict[str, list[tuple[float, float]]]]()
    ends: dict[str, dict[str, Cell | Interval]] = {name: {"name": name} for name in names}
    for each in found:
        if each.at is not None:
            curves.setdefault(each.metric, {}).setdefault(each.setup, []).append((each.at, each.value))
        elif not each.of:
            ends[each.setup][each.metric] = each.value
    metrics = dict.fromkeys(metric for row in ends.values() for metric in row if metric != "name")
    columns = [Column("name", "Student"), *(Column(key, key.replace("_", " "), "lower", 4) for key in metrics)]
    note = (
        "Losses are means over the last tenth of the steps; held-out ones are unweighted and of the weights as written."
    )
    parts: list[Part] = [Table("Where it ended", columns, list(ends.values()), note, PROTOCOL)]
    for metric, of in curves.items():
        parts.append(Curves(metric.replace("_", " "), "step", metric.replace("_", " "), of, log=metric != "lr"))
    times = {each.of.removeprefix("phase/"): each.value for each in found if each.of}
    if times:
        total = sum(times.values())
        rows: list[dict[str, Cell | Interval]] = [
            {"phase": phase, "ms": ms, "share": 100 * ms / total} for phase, ms in {**times, "all": total}.items()
        ]
        note = f"{1e3 * plan.recipe.batch / total:,.1f} samples per second, of the first process."
        columns = [Column("phase", "Phase"), Column("ms", "ms per step"), Column("share", "%", digits=1)]
        parts.append(Table("Where the time went", columns, rows, note, PROTOCOL, total=True))
    prompts = plan.recipe.validation.prompts
    for name, steps in images.items() if prompts else ():
        shown = thinned(sorted(steps), COLUMNS)
        grid: list[list[Path | None]] = [[steps[step][row] for step in shown] for row in range(len(prompts))]
        parts.append(Grid(f"{name} while it learned", [f"step {step:,}" for step in shown], prompts, grid))
    teacher = f"from {plan.teacher.name}" if plan.teacher else "from the task alone"
    summary = f"{', '.join(names)} learned {teacher} for {plan.recipe.steps:,} steps of {plan.recipe.batch} samples."
    return Report("distill", f"Distilling {', '.join(names)}", summary, parts, {PROTOCOL: card})


def thinned(items: Sequence[Item], most: int) -> list[Item]:
    """The first, the last and evenly some between."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def model_card(plan: DistillPlan, student: StudentModel, found: Sequence[Record], card: Card) -> ModelCard:
    """README.md beside a distilled model, for whoever gets the directory without the run."""
    experts = bool(specs(student.config))
    data = ModelCardData(library_name="asdm-cli" if experts else "diffusers", tags=["stable-diffusion", "distillation"])
    teacher = f"distilled from {plan.teacher.name}" if plan.teacher else "trained on the task loss alone"
    loads = "asdm_cli.load reads it: it has expert convolutions." if experts else "Plain diffusers loads it."
    ends = {each.metric: each.value for each in found if each.setup == student.name and each.at is None and not each.of}
    return ModelCard(
        f"""---
{data.to_yaml()}
---

# {student.name}

A Stable Diffusion UNet of {student.parameters() / 1e6:.1f} M parameters that started from {student.directory.name}
and was {teacher}, by asdm {__version__}. {loads}

## Training

{_table(card)}

## Losses at the end

{_table(ends)}

What its pictures are worth: `asdm eval`; what it costs: `asdm bench`.
"""
    )


def _table(facts: Mapping[str, Any]) -> str:
    rows = ["| what | value |", "| --- | --- |"]
    for key, value in facts.items():
        text = (
            f"{value:.6g}" if isinstance(value, float) else "; ".join(value) if isinstance(value, list) else str(value)
        )
        rows.append(f"| {key} | {' '.join(text.split()).replace('|', '/')} |")
    return "\n".join(rows)
