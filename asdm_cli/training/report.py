"""What `asdm distill` tells: who learns what from which nodes; then curves, figures and where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from asdm_cli.models.write import carried_size, takes
from asdm_cli.report.document import Cell, Column, Curves, Grid, Interval, Part, Report, Table
from asdm_cli.training.distill_plan import DistillPlan, Learner
from asdm_cli.training.log import Line
from asdm_cli.training.loop import NORM
from asdm_cli.training.losses import Points

Row = dict[str, Cell | Interval]
NOT_TERMS = ("step", "student", "lr", "validation", NORM)
TITLES = {"loss": "total", "task": "task", "output": "output", "features": "feature"}
LAST = 0.1
"""Share of the steps, at the end, over which final losses are means."""
SHOWN = 8
"""Most columns of a grid of pictures."""


def planned(plan: DistillPlan, samples: str) -> Report:
    """The dry run. `samples` says in words what is known of the data."""
    recipe = plan.recipe
    teacher = plan.teacher.name if plan.teacher else "no teacher"
    names = ", ".join(learner.name for learner in plan.learners)
    summary = (
        f"{names} learn from {teacher}: {recipe.steps:,} steps of {recipe.batch} samples "
        f"at {plan.resolution} pixels. {samples} {_size(plan)}"
    )
    return Report("distill", "Plan", summary, [_students(plan), _losses(plan), *_taps(plan)])


def _size(plan: DistillPlan) -> str:
    carried = [carried_size(learner.directory, {"unet"}) for learner in plan.learners]
    return takes(sum(learner.checkpoint.size for learner in plan.learners), sum(carried))


def _students(plan: DistillPlan) -> Table:
    teacher = [] if plan.teacher is None else [_student("teacher", plan.teacher.name, None)]
    rows = [*teacher, *(_student(learner.name, learner.directory.name, learner) for learner in plan.learners)]
    columns = [
        Column("name", "Name"),
        Column("model", "Starts from"),
        Column("params_m", "Parameters (M)"),
        Column("learning_m", "of these learn"),
        Column("frozen", "Frozen"),
    ]
    return Table("Students", columns, rows)


def _student(name: str, model: str, learner: Learner | None) -> Row:
    if learner is None:
        return {"name": name, "model": model, "params_m": None, "learning_m": 0, "frozen": "all of it"}
    frozen = sorted({key.split(".")[0] for key in learner.frozen})
    return {
        "name": name,
        "model": model,
        "params_m": learner.parameters / 1e6,
        "learning_m": learner.learning / 1e6,
        "frozen": f"{len(learner.frozen)} tensors of {', '.join(frozen)}" if frozen else "nothing",
    }


def _losses(plan: DistillPlan) -> Table:
    rows: list[Row] = [
        {
            "kind": row.kind,
            "weight": _weight(row.weight),
            "timesteps": f"min-SNR, gamma {row.snr_gamma:g}" if row.snr_gamma else "alike",
            "normalised": ("by the teacher" if row.normalise else "no") if row.kind == "features" else None,
            "taps": ", ".join(f"{name}: {len(taps)}" for name, taps in row.taps.items()) or None,
        }
        for row in plan.rows
    ]
    columns = [
        Column("kind", "Loss"),
        Column("weight", "Weight"),
        Column("timesteps", "Timesteps weigh"),
        Column("normalised", "Normalised"),
        Column("taps", "Pairs of nodes"),
    ]
    return Table("Losses", columns, rows)


def _weight(weight: Points) -> str:
    if isinstance(weight, int | float):
        return f"{weight:g}"
    return ", ".join(f"{value:g} at step {step:,.0f}" for step, value in weight)


def _taps(plan: DistillPlan) -> list[Table]:
    """One table per feature row; students with the same pairs share their lines."""
    tables = []
    for row in plan.rows:
        pairs: dict[tuple[str, str], list[str]] = {}
        for name, taps in row.taps.items():
            for tap in taps:
                pairs.setdefault((tap.student, tap.teacher), []).append(name)
        rows: list[Row] = [
            {"student": mine, "teacher": theirs, "who": ", ".join(names)} for (mine, theirs), names in pairs.items()
        ]
        columns = [
            Column("student", "Node of the student"),
            Column("teacher", "of the teacher"),
            Column("who", "Students"),
        ]
        if rows:
            tables.append(Table("Features compared", columns, rows))
    return tables


def trained(
    plan: DistillPlan,
    lines: Sequence[Line],
    seconds: Mapping[str, float],
    pictures: Mapping[str, Mapping[int, list[Path]]],
    cards: dict[str, dict[str, Cell | list[str]]],
) -> Report:
    """`seconds` per step by phase; `pictures[student][step]` one per prompt."""
    names = [learner.name for learner in plan.learners]
    parts: list[Part] = [_figures(plan, lines), *_curves(names, lines), *_time(plan, seconds)]
    parts += [grid for name in names if (grid := _grid(name, plan, pictures.get(name, {})))]
    teacher = f"from {plan.teacher.name}" if plan.teacher else "from the task alone"
    summary = f"{', '.join(names)} learned {teacher} for {plan.recipe.steps:,} steps of {plan.recipe.batch} samples."
    return Report(
        "distill",
        f"Distilling {', '.join(names)}",
        summary,
        [*parts, _students(plan), _losses(plan), *_taps(plan)],
        cards,
    )


def _figures(plan: DistillPlan, lines: Sequence[Line]) -> Table:
    rows: list[Row] = []
    keys: dict[str, str] = {}
    for learner in plan.learners:
        row: Row = {"name": learner.name, "learning_m": learner.learning / 1e6}
        final = final_losses(lines, learner.name, plan.recipe.steps)
        held_out = final_validation(lines, learner.name)
        row |= {f"loss_{term}": value for term, value in final.items()}
        row |= {f"held_out_{term}": value for term, value in held_out.items()}
        keys |= {f"loss_{term}": f"{term}\nlast tenth" for term in final}
        keys |= {f"held_out_{term}": f"{term}\nheld out" for term in held_out}
        rows.append(row)
    columns = [Column("name", "Student"), Column("learning_m", "Learning (M)")]
    columns += [Column(key, title, "lower", 4) for key, title in keys.items()]
    note = (
        "Losses are means over the last tenth of the steps; held-out ones are unweighted and of the weights as written."
    )
    return Table("Where it ended", columns, rows, note, card="training")


def final_losses(lines: Sequence[Line], name: str, steps: int) -> dict[str, float]:
    """Mean of each term over the last tenth of the steps."""
    mine = [line for line in lines if line.get("student") == name and "loss" in line]
    last = [line for line in mine if line["step"] > steps * (1 - LAST)] or mine[-1:]
    return {term: fmean(line[term] for line in last) for term in _terms(mine)}


def final_validation(lines: Sequence[Line], name: str) -> dict[str, float]:
    found = [line["validation"] for line in lines if line.get("student") == name and "validation" in line]
    return dict(found[-1]) if found else {}


def _terms(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(term for line in lines for term in line if term not in NOT_TERMS))


def _curves(names: Sequence[str], lines: Sequence[Line]) -> list[Curves]:
    learnt = [line for line in lines if "loss" in line]
    looks = [{**line["validation"], **line} for line in lines if "validation" in line]
    kinds = dict.fromkeys(kind for line in looks for kind in line["validation"])
    plots = [_curve(names, learnt, term, f"{TITLES.get(term, term)} loss", log=True) for term in _terms(learnt)]
    plots += [_curve(names, looks, kind, f"{kind} loss, held out") for kind in kinds]
    rate, norm = (
        _curve(names[:1], learnt, "lr", "learning rate"),
        _curve(names, learnt, NORM, "gradient norm", log=True),
    )
    return [*plots, rate, norm]


def _curve(names: Sequence[str], lines: Sequence[Line], key: str, title: str, log: bool = False) -> Curves:
    points = {
        name: [(line["step"], line[key]) for line in lines if line["student"] == name and key in line] for name in names
    }
    return Curves(title.capitalize(), "step", title, {name: found for name, found in points.items() if found}, log)


def _time(plan: DistillPlan, seconds: Mapping[str, float]) -> list[Table]:
    total = sum(seconds.values())
    if not total:
        return []
    rows: list[Row] = [
        {"phase": phase, "ms": 1e3 * each, "share": 100 * each / total} for phase, each in seconds.items()
    ]
    rows.append({"phase": "all", "ms": 1e3 * total, "share": 100.0})
    columns = [Column("phase", "Phase"), Column("ms", "ms per step"), Column("share", "%", digits=1)]
    note = f"{plan.recipe.batch / total:,.1f} samples per second, of the first process."
    return [Table("Where the time went", columns, rows, note, card="training", total=True)]


def _grid(name: str, plan: DistillPlan, pictures: Mapping[int, list[Path]]) -> Grid | None:
    """The same prompts and noise, as the student learned; the first, the last and some between."""
    steps = sorted(pictures)
    if not steps:
        return None
    chosen = steps
    if len(steps) > SHOWN:
        chosen = [steps[round(index * (len(steps) - 1) / (SHOWN - 1))] for index in range(SHOWN)]
    prompts = plan.recipe.validation.prompts
    rows = [[pictures[step][index] for step in chosen] for index in range(len(prompts))]
    return Grid(f"{name} while it learned", [f"step {step:,}" for step in chosen], prompts, rows)  # type: ignore[arg-type]
