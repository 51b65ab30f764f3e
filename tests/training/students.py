"""Tiny teachers and students, and samples in memory, for the tests of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import nn

from asdm_cli.data.samples import Condition, InMemory
from asdm_cli.training.distillation import Distillation, LossTerm
from asdm_cli.training.loop import Training, train
from asdm_cli.training.student import TrainingConfig
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.surgery import apply
from asdm_cli.unet.taps import taps
from tests import tiny

PLAIN = TrainingConfig(
    steps=4,
    batch=4,
    lr=1e-3,
    schedule="constant",
    warmup=0,
    ema_decay=None,
    save_every=100,
    validate_every=100,
    device="cpu",
    precision="float32",
)
"""As little as possible beside the losses."""


def pair(kind: str, shape: str = "sd15", seed: int = 0) -> tuple[Any, Any]:
    """A teacher, and what a pruning leaves of it."""
    teacher = fresh(tiny.shape(shape), seed)
    return teacher, pruned(teacher, kind)


def fresh(config: dict[str, Any], seed: int = 0) -> Any:
    """The same random weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return tiny.unet(config, seed)


def pruned(teacher: Any, remove: Any) -> Any:
    config, tensors = apply(dict(teacher.config), teacher.state_dict(), remove)
    student = fresh(config)
    student.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()})
    return student


def rows(
    student: Any, teacher: Any, name: str = "s", normalise: bool = False, weights: Any = (1, 1, 1)
) -> list[LossTerm]:
    """The three rows of BK-SDM."""
    pairs = taps(Anatomy.of(dict(student.config)), Anatomy.of(dict(teacher.config)), ["down.?", "up.?"])
    kinds = ("task", "output", "features")
    return [
        LossTerm(kind, weight, feature_pairs={name: pairs} if kind == "features" else {}, normalise=normalise)
        for kind, weight in zip(kinds, weights, strict=True)
    ]


def memory(count: int = 12, size: int = 8, added: int | None = None) -> InMemory:
    """Random latents and conditions; `added` is the width of SDXL's pooled text."""
    draws = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draws)

    def condition(n: int) -> Condition:
        more = {"text_embeds": random(n, added), "time_ids": torch.full((n, 6), 32.0)} if added else {}
        return Condition(random(n, 5, tiny.WIDTH), more)

    return InMemory(random(count, 4, size, size), condition(count), condition(1), random(count, 4, size, size))


def scheduler(**settings: Any) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, **settings
    )


def distillation(
    students: Mapping[str, nn.Module], teacher: nn.Module, samples: InMemory | None = None, **settings: Any
) -> Distillation:
    """The task for several students of one teacher, with BK-SDM's losses."""
    weights = settings.pop("weights", (1, 1, 1))
    each = [rows(student, teacher, name, weights=weights) for name, student in students.items()]
    joined = [
        LossTerm(
            row.kind,
            row.weight,
            feature_pairs={name: tap for of in each for name, tap in of[index].feature_pairs.items()},
        )
        for index, row in enumerate(each[0])
    ]
    task = Distillation(samples or memory(), scheduler(), joined, **settings)
    task.attach_teacher(teacher.to(memory_format=torch.channels_last))  # as the verb does
    for name, student in students.items():
        task.attach_student(name, student)
    return task


def trained(folder: Path, task: Distillation, students: dict[str, nn.Module], plan: TrainingConfig = PLAIN) -> Training:
    for student in students.values():
        student.train()
    return train(task, students, plan, folder)
