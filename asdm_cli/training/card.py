"""The model card of a distilled model: README.md beside it, for whoever gets the directory without the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asdm_cli import __version__
from asdm_cli.report.document import Cell, Interval, Table
from asdm_cli.training.distill_plan import DistillPlan, Learner
from asdm_cli.training.log import Line
from asdm_cli.training.report import final_losses, final_validation, planned
from asdm_cli.unet.stock import EXPERTS


def model_card(plan: DistillPlan, learner: Learner, lines: Sequence[Line], facts: dict[str, Any]) -> str:
    """Markdown: donors, data, losses, steps and figures; `facts` are lines of a table, as they are."""
    report = planned(plan, "")
    teacher = f"distilled from {plan.teacher.name}" if plan.teacher else "trained on the task loss alone"
    loads = (
        "asdm_cli.load reads it: it has expert convolutions."
        if learner.config.get(EXPERTS)
        else "Plain diffusers loads it."
    )
    parts = [
        f"# {learner.name}",
        f"A Stable Diffusion UNet of {learner.parameters / 1e6:.1f} M parameters that started from "
        f"{learner.directory.name} and was {teacher}, by asdm {__version__}. {loads}",
        "## Training",
        _table([("what", "value"), *((key, _text(value)) for key, value in facts.items())]),
    ]
    for table in report.parts[1:]:
        assert isinstance(table, Table), "a plan has tables only"
        titles = [column.title for column in table.columns]
        rows = [[_text(row.get(column.key)) for column in table.columns] for row in table.rows]
        parts += [f"## {table.title}", _table([titles, *rows])]
    final = final_losses(lines, learner.name, plan.recipe.steps)
    held_out = final_validation(lines, learner.name)
    figures = [
        ("loss", "mean of the last tenth of the steps"),
        *((name, f"{value:.5g}") for name, value in final.items()),
    ]
    figures += [(f"{name}, held out", f"{value:.5g}") for name, value in held_out.items()]
    parts += ["## Figures", _table(figures), "What its pictures are worth: `asdm eval`; what it costs: `asdm bench`."]
    return "\n\n".join(parts) + "\n"


def _text(cell: Cell | Interval | list[str]) -> str:
    if isinstance(cell, list):
        return ", ".join(cell)
    if isinstance(cell, float):
        return f"{cell:.6g}"
    return "" if cell is None else str(cell)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
