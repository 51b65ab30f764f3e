"""A distillation of several processes, which get a folder as their argument. Each leaves the rows that it read."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from asdm_cli.recipe.verbs import DistillRecipe
from asdm_cli.training.distillation import OtherCaptions
from tests.training.students import PLAIN, Seen, distillation, like, memory, quick, trained

PLAN = like(PLAIN, steps=6, batch=8, checkpoint=3, ema=0.9)
SIZE = 24
"""Three steps make an epoch."""


def run(folder: Path, plan: DistillRecipe = PLAN) -> list[list[int]]:
    """Train, leave the written weights, and return the rows part by part. The mid block is frozen."""
    teacher, student = quick()
    student.mid_block.requires_grad_(False)
    others = OtherCaptions([[0, 0.8], [1000, 0.2]], memory(7))
    task = distillation({"s": student}, teacher, memory(SIZE), Seen, text_dropout=0.3, others=others)
    task.held_out = memory(4)
    training = trained(folder, task, {"s": student}, plan)
    if training.lead.is_main_process:
        with training.students[0].ema_weights() as module:
            torch.save(module.state_dict(), folder / "written.pt")
    return task.seen  # type: ignore[attr-defined,no-any-return]


def main() -> None:
    home = Path(sys.argv[1])
    for accumulate in (1, 2):
        rows = run(home / f"two-{accumulate}", like(PLAN, accumulate=accumulate))
        (home / f"two-{accumulate}-{os.environ['RANK']}.json").write_text(json.dumps(rows))
    torch.distributed.destroy_process_group()
