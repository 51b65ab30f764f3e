"""The task of `asdm distill`: UNets that learn to denoise, and to do it as a teacher does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from asdm_cli.data.samples import Condition, Samples
from asdm_cli.training.features import Features
from asdm_cli.training.losses import Points, feature_loss, min_snr_weight, prediction_loss
from asdm_cli.training.order import Noise, Part
from asdm_cli.training.plan import Task, Term
from asdm_cli.unet.feature_pairs import FeaturePair

HELD_OUT = 256
"""So many held-out samples are enough to see a trend."""


@dataclass(frozen=True)
class Row:
    """A row of the loss. `taps[student]` are the nodes of a `features` row."""

    kind: str
    weight: Points = 1.0
    snr_gamma: float | None = None
    normalise: bool = False
    taps: dict[str, list[FeaturePair]] = field(default_factory=dict)


@dataclass
class Noisy:
    """A part of a step: `noisy` latents at `timesteps`, what they are of, and what the teacher makes of them."""

    noisy: Tensor
    timesteps: Tensor
    condition: Condition
    target: Tensor
    alpha: Tensor
    teacher_output: Tensor | None = None
    teacher_features: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Noisy:
        added = {name: value.to(device) for name, value in self.condition.added.items()}
        return Noisy(
            self.noisy.to(device),
            self.timesteps.to(device),
            Condition(self.condition.text.to(device), added),
            self.target.to(device),
            self.alpha.to(device),
        )


class Distillation(Task):
    """`scheduler` adds the noise (any diffusers scheduler with betas and an epsilon or v prediction)."""

    def __init__(
        self, samples: Samples, scheduler: Any, rows: list[Row], text_dropout: float = 0.0, flip: bool = False
    ):
        self.samples, self.size = samples, samples.size
        self.scheduler, self.rows = scheduler, rows
        self.text_dropout, self.flip = text_dropout, flip
        self.kind: str = scheduler.config.prediction_type
        self.device = torch.device("cpu")
        self.teacher: nn.Module | None = None
        self.precise: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.features: dict[str, Features] = {}
        self.held_out: Samples | None = None
        self.on_validation: Callable[[str, nn.Module, int], None] | None = None

    def attach_teacher(
        self, teacher: nn.Module, precise: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> None:
        """`precise` opens the number format that the teacher runs in."""
        self.teacher, self.precise = teacher.eval().requires_grad_(False), precise
        taps = [tap for row in self.rows for of in row.taps.values() for tap in of]
        self._teacher_taps = Features(
            teacher, list(dict.fromkeys(name for tap in taps for name in tap.teacher_modules))
        )

    def attach_student(self, name: str, module: nn.Module) -> None:
        taps = [tap for row in self.rows for tap in row.taps.get(name, [])]
        self.features[name] = Features(module, list(dict.fromkeys(n for tap in taps for n in tap.student_modules)))

    def read(self, rows: Tensor, noise: Noise) -> Noisy:
        timesteps = noise.integers(self.scheduler.config.num_train_timesteps)
        dropped = noise.uniform() < self.text_dropout
        flipped = noise.uniform() < 0.5 if self.flip else None
        batch = self.samples.read(rows, flipped)
        eps = noise.normal(*batch.latents.shape[1:])
        return self._noisy(batch.latents, _dropped(batch.condition, self.samples.empty, dropped), timesteps, eps)

    def _noisy(self, latents: Tensor, condition: Condition, timesteps: Tensor, eps: Tensor) -> Noisy:
        noisy = self.scheduler.add_noise(latents, eps, timesteps)
        velocity = self.kind == "v_prediction"
        target = self.scheduler.get_velocity(latents, eps, timesteps) if velocity else eps
        return Noisy(noisy, timesteps, condition, target, self.scheduler.alphas_cumprod[timesteps])

    @torch.no_grad()
    def prepare(self, batch: Noisy) -> Noisy:
        batch = batch.to(self.device)
        if self.teacher is None:
            return batch
        with self.precise(), self._teacher_taps.recorded() as features:
            batch.teacher_output = _predict(self.teacher, batch)
        batch.teacher_features = dict(zip(self._teacher_taps.names, features, strict=True))
        return batch

    def losses(self, name: str, module: nn.Module, batch: Noisy, step: int) -> dict[str, Term]:
        with self.features[name].recorded() as outputs:
            predicted = _predict(module, batch)
        features = dict(zip(self.features[name].names, outputs, strict=True))
        terms: dict[str, Term] = {}
        for row in self.rows:
            label = row.kind if row.kind not in terms else f"{row.kind} {len(terms) + 1}"
            terms[label] = Term.at(step, self._value(row, name, predicted, features, batch), row.weight)
        return terms

    def _value(self, row: Row, name: str, predicted: Tensor, features: dict[str, Tensor], batch: Noisy) -> Tensor:
        if row.kind == "features":
            ours = [features[module] for tap in row.taps[name] for module in tap.student_modules]
            theirs = [batch.teacher_features[module] for tap in row.taps[name] for module in tap.teacher_modules]
            return feature_loss(ours, theirs, row.normalise)
        weights = None if row.snr_gamma is None else min_snr_weight(batch.alpha, row.snr_gamma, self.kind)
        wanted = batch.target if row.kind == "task" else batch.teacher_output
        assert wanted is not None, "the recipe let a row pass that needs a teacher"
        return prediction_loss(predicted, wanted, weights)

    def validate(self, name: str, module: nn.Module, step: int) -> dict[str, float]:
        """Task and output losses on held-out samples, unweighted, always with the same noise."""
        if self.on_validation is not None:
            self.on_validation(name, module, step)
        if self.held_out is None:
            return {}
        rows = torch.arange(min(HELD_OUT, self.held_out.size))
        batch = self.held_out.read(rows)
        noise = Noise(0, 0, Part(len(rows)))
        timesteps, eps = (
            noise.integers(self.scheduler.config.num_train_timesteps),
            noise.normal(*batch.latents.shape[1:]),
        )
        whole = self._noisy(batch.latents, batch.condition, timesteps, eps)
        sums: dict[str, float] = {}
        for part in _parts(whole):
            part = self.prepare(part)
            with self.precise():
                predicted = _predict(module, part)
            for kind, wanted in (("task", part.target), ("output", part.teacher_output)):
                if wanted is not None:
                    sums[kind] = sums.get(kind, 0.0) + float(prediction_loss(predicted, wanted)) * len(predicted)
        return {kind: total / len(rows) for kind, total in sums.items()}


def _predict(unet: nn.Module, batch: Noisy) -> Tensor:
    noisy = batch.noisy.to(memory_format=torch.channels_last)
    added = batch.condition.added or None
    predicted: Tensor = unet(noisy, batch.timesteps, batch.condition.text, added_cond_kwargs=added, return_dict=False)[
        0
    ]
    return predicted


def _dropped(condition: Condition, empty: Condition, dropped: Tensor) -> Condition:
    """The empty prompt's condition in the places that are dropped; sizes and crops stay."""
    text = torch.where(dropped[:, None, None], empty.text, condition.text)
    added = dict(condition.added)
    if "text_embeds" in added:
        added["text_embeds"] = torch.where(dropped[:, None], empty.added["text_embeds"], added["text_embeds"])
    return Condition(text, added)


def _parts(batch: Noisy, size: int = 32) -> list[Noisy]:
    chunks = []
    for start in range(0, len(batch.noisy), size):
        part = slice(start, start + size)
        added = {name: value[part] for name, value in batch.condition.added.items()}
        condition = Condition(batch.condition.text[part], added)
        chunks.append(Noisy(batch.noisy[part], batch.timesteps[part], condition, batch.target[part], batch.alpha[part]))
    return chunks
