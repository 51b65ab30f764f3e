"""Tiny teachers and students, and samples in memory, for the tests of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from asdm_cli.data.encoder import Batch, Condition
from asdm_cli.recipe.verbs import DistillRecipe, Ema
from asdm_cli.training.distillation import Distillation, LossTerm
from asdm_cli.training.loop import Noise, Part, Training, train
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.feature_pairs import feature_pairs
from asdm_cli.unet.surgery import apply
from tests import tiny
from tests.patches.shapes import SHAPES

PLAIN = DistillRecipe.model_validate(
    {
        "verb": "distill",
        "teacher": "none",
        "students": [{"name": "s", "model": "m"}],
        "losses": [{"kind": "task"}],
        "out": "o",
        "steps": 4,
        "batch": 4,
        "optimizer": {"lr": 1e-3, "options": {"weight_decay": 0.01, "betas": [0.9, 0.99]}},
        "ema": "none",
        "checkpoint": 100,
        "validation": {"every": 100},
        "device": "cpu",
        "precision": "float32",
    }
)
"""As little as possible beside the losses."""
INNER = {
    "lr": "optimizer",
    "options": "optimizer",
    "schedule": "optimizer",
    "warmup": "optimizer",
    "every": "validation",
}


def like(recipe: DistillRecipe, **changes: Any) -> DistillRecipe:
    """The same but for these keys, wherever they stand; `ema` is a decay."""
    for key, value in changes.items():
        inner = INNER.get(key, key)
        if inner != key:
            value = getattr(recipe, inner).model_copy(update={key: value})
        elif key == "ema" and isinstance(value, float):
            value = Ema(decay=value)
        recipe = recipe.model_copy(update={inner: value})
    return recipe


@dataclass(frozen=True)
class InMemory:
    """Samples that are tensors already. `mirrored`, where there is any, are the latents of the mirrored pictures."""

    latents: Tensor
    condition: Condition
    empty: Condition
    mirrored: Tensor | None = None

    @property
    def size(self) -> int:
        return len(self.latents)

    def conditions(self, rows: Tensor) -> Condition:
        added = {name: value[rows].float() for name, value in self.condition.added.items()}
        return Condition(self.condition.text[rows].float(), added)

    def read(self, rows: Tensor, flipped: Tensor | None = None) -> Batch:
        latents = self.latents[rows].float()
        if flipped is not None and self.mirrored is not None:
            latents = torch.where(flipped[:, None, None, None], self.mirrored[rows].float(), latents)
        return Batch(latents, self.conditions(rows))


class Seen(Distillation):
    """Remembers which rows were read."""

    def read(self, rows: Tensor, noise: Noise) -> Any:
        self.__dict__.setdefault("seen", []).append(rows.tolist())
        return super().read(rows, noise)


def pair(kind: str, shape: str = "sd15") -> tuple[Any, Any]:
    """A teacher, and what a pruning leaves of it."""
    teacher = fresh(tiny.shape(shape))
    return teacher, pruned(teacher, kind)


def quick() -> tuple[Any, Any]:
    """A teacher and a student of its shape, of two levels: for what has nothing to do with their shapes."""
    return fresh(SHAPES["two levels"], 1), fresh(SHAPES["two levels"])


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
    students: Mapping[str, nn.Module],
    teacher: nn.Module,
    samples: InMemory | None = None,
    kind: type[Distillation] = Distillation,
    weights: tuple[float, ...] = (1, 1, 1),
    terms: Sequence[LossTerm] | None = None,
    normalise: bool = False,
    noise: Any = None,
    **settings: Any,
) -> Any:
    """The task for several students of one teacher: BK-SDM's three losses, or `terms` in the place of the first two."""
    trees = {name: Anatomy.of(dict(unet.config)) for name, unet in {**students, "": teacher}.items()}
    pairs = {name: feature_pairs(trees[name], trees[""], ["down.?", "up.?"]) for name in students}
    terms = terms or [LossTerm("task", weights[0]), LossTerm("output", weights[1])]
    features = LossTerm("features", weights[2], normalise=normalise, feature_pairs=pairs)
    task = kind(samples or memory(), noise or scheduler(), [*terms, features], **settings)
    task.attach_teacher(teacher.to(memory_format=torch.channels_last))  # as the verb does
    for name, student in students.items():
        task.attach_student(name, student)
    return task


def first_batch(task: Distillation, rows: Tensor | None = None, step: int = 0) -> Any:
    rows = torch.arange(4) if rows is None else rows
    return task.prepare(task.read(rows, Noise(0, step, Part(len(rows)))))


def trained(
    folder: Path, task: Distillation, students: dict[str, nn.Module], recipe: DistillRecipe = PLAIN
) -> Training:
    for student in students.values():
        student.train()
    return train(task, students, recipe, folder)
