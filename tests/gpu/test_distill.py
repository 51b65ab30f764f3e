"""Training on the device: stopped and gone on with it ends bit-equal, in mixed precision, in parts, with a mean."""

from __future__ import annotations

import copy
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from asdm_cli.errors import RunError
from asdm_cli.recipe.verbs import DistillRecipe
from asdm_cli.training.distillation import Distillation
from asdm_cli.training.loop import Training
from tests.patches import shapes
from tests.training import students

CHANGES = {"schedule": "cosine", "warmup": 2, "ema": 0.9, "checkpoint": 3, "every": 4}
PLAN = students.like(students.PLAIN, steps=8, accumulate=2, device="auto", **CHANGES)
PRECISIONS = ["bfloat16", pytest.param("float16", marks=pytest.mark.gpu)]
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def attempt(folder: Path, device: torch.device, plan: DistillRecipe, stop: int | None = None) -> Training:
    """As `asdm distill` sets it up; `stop` is the sample read during which a signal comes."""
    teacher = copy.deepcopy(shapes.unet("two levels"))
    student = students.fresh(dict(teacher.config), seed=1)
    task: Any = students.distillation({"s": student}, teacher.to(device, AUTOCAST[plan.precision]))
    task.device = device
    task.precise = partial(torch.autocast, device.type, dtype=AUTOCAST[plan.precision])
    task.held_out = students.memory(2)
    reads, read = iter(range(1000)), Distillation.read

    def interrupted(*given: Any) -> Any:
        if next(reads) == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(task, *given)

    task.read = interrupted
    return students.trained(folder, task, {"s": student}, plan)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_stopped_and_gone_on_with_it_ends_bit_equal(precision: str, tmp_path: Path, device: torch.device) -> None:
    plan = students.like(PLAN, precision=precision)
    whole = attempt(tmp_path / "whole", device, plan).students[0].state()
    with pytest.raises(RunError, match="after step 5"):
        attempt(tmp_path / "broken", device, plan, stop=8)
    again = attempt(tmp_path / "broken", device, plan)
    assert again.start == 5
    assert same(again.students[0].state(), whole)
    assert next(again.students[0].module.parameters()).device.type == device.type


@pytest.mark.parametrize("precision", PRECISIONS)
def test_parts_and_the_running_mean(precision: str, tmp_path: Path, device: torch.device) -> None:
    """A batch in two parts is the batch in one, up to rounding (float16 skips its first steps, not the same ones in
    both); the mean lies between the start and the end."""
    plans = [students.like(PLAN, precision=precision, accumulate=parts) for parts in (1, 2)]
    one, two = (attempt(tmp_path / str(plan.accumulate), device, plan).students[0] for plan in plans)
    start = students.fresh(dict(one.module.config), seed=1).to(device)
    moved = distance(one.module, start)
    assert distance(one.module, two.module) < (0.2 if precision == "bfloat16" else 1) * moved
    with one.ema_weights() as mean:
        assert 0 < distance(mean, start) < moved


def distance(a: torch.nn.Module, b: torch.nn.Module) -> float:
    return (
        sum(
            float((x.detach() - y.detach()).double().square().sum())
            for x, y in zip(a.parameters(), b.parameters(), strict=True)
        )
        ** 0.5
    )


def same(a: Any, b: Any) -> bool:
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
