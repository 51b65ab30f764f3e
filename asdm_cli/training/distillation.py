"""The task of `asdm distill`: UNets that learn to denoise, and to do it as a teacher does. Its losses are on tensors
alone: those of BK-SDM (Kim et al. 2023), section 3.2, with weights over timesteps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy
import torch
from accelerate.utils import send_to_device, slice_tensors
from torch import Tensor, nn

from asdm_cli.data.cache import Samples, Texts
from asdm_cli.data.encoder import Batch
from asdm_cli.experts.layer import host_timesteps
from asdm_cli.training.loop import Noise, Part, Task
from asdm_cli.unet.feature_pairs import FeaturePair

Points = float | Sequence[Sequence[float]]
HELD_OUT = 256
"""So many held-out samples, evenly among all, are enough to see a trend."""


def prediction_loss(predicted: Tensor, wanted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean square over a prediction [n, c, h, w], in float32; `weights` [n] for each sample's timestep."""
    error = (predicted.float() - wanted.float()).square()
    return error.mean() if weights is None else (weights * error.mean((1, 2, 3))).mean()


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], normalise: bool = False) -> Tensor:
    """Sum over features of their mean square differences, in float32.

    With `normalise` each is divided by the teacher's mean square there, so that no node outweighs the others
    (as LAPTOP-Diff has it).
    """
    terms = []
    for ours, theirs in zip(student, teacher, strict=True):
        wanted = theirs.float()
        term = (ours.float() - wanted).square().mean()
        terms.append(term / wanted.square().mean().clamp_min(1e-12) if normalise else term)
    return torch.stack(terms).sum()


def min_snr_weight(alpha: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """min(SNR, gamma) over SNR (epsilon) or SNR + 1 (v); Hang et al. 2023, eqs. 6 and 9. Finite at zero SNR.

    `alpha` [n]: the cumulative product at each sample's timestep, SNR = alpha / (1 - alpha).
    """
    if prediction_type == "v_prediction":
        return torch.minimum(alpha, gamma * (1 - alpha))
    return (gamma * (1 - alpha) / alpha).clamp(max=1)


def along(points: Points, at: Any) -> numpy.ndarray:
    """Values at steps or timesteps: a constant, or straight lines between [step, value] points, constant outside."""
    steps, values = ([0.0], [points]) if isinstance(points, int | float) else zip(*points, strict=True)
    return numpy.interp(at, steps, values)


def in_words(points: Points, of: str) -> str:
    if isinstance(points, int | float):
        return str(points)
    return ", ".join(f"{value:g} at {of} {at:,.0f}" for at, value in points)


@dataclass(frozen=True)
class LossTerm:
    """A row of the weighted sum. `feature_pairs[student]` are the nodes that a `features` term compares."""

    kind: str
    weight: Points = 1.0
    snr_gamma: float | None = None
    normalise: bool = False
    feature_pairs: dict[str, list[FeaturePair]] = field(default_factory=dict)

    def __str__(self) -> str:
        told = [f"{self.kind}, weight {in_words(self.weight, 'step')}"]
        told += [f"min-SNR gamma {self.snr_gamma:g}"] if self.snr_gamma else []
        told += ["normalised by the teacher"] if self.normalise else []
        for name, pairs in self.feature_pairs.items():
            told.append(f"{name} {' '.join(f'{pair.student}={pair.teacher}' for pair in pairs)}")
        return ", ".join(told)


@dataclass(frozen=True)
class OtherCaptions:
    """With this probability at a timestep a noisy latent is given one of these conditions in the place of its own."""

    probability: Points
    texts: Texts


class NoisyBatch(NamedTuple):
    """A part of a step: `noisy` latents at `timesteps`, what they are of, and what the teacher makes of them. `own`
    [n] is 0 for those whose condition is that of another picture, 1 for others; `host` has the timesteps where they are
    read without waiting."""

    noisy: Tensor
    timesteps: Tensor
    text: Tensor
    added: dict[str, Tensor]
    target: Tensor
    alpha: Tensor
    own: Tensor
    teacher_output: Tensor | None = None
    teacher_features: dict[str, Tensor] = {}  # noqa: RUF012 - never changed in place
    host: Tensor | None = None


class FeatureRecorder:
    """Keeps what modules of a plain (unwrapped) model return, by name, while `recorded` is open.

    Gradient checkpointing runs layers a second time in the backward pass: that pass is not recorded.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]):
        self._kept: dict[str, Tensor] | None = None
        for name in dict.fromkeys(names):
            model.get_submodule(name).register_forward_hook(partial(self._keep, name))

    @contextmanager
    def recorded(self) -> Iterator[dict[str, Tensor]]:
        self._kept = kept = dict[str, Tensor]()
        try:
            yield kept
        finally:
            self._kept = None

    def _keep(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if self._kept is not None:
            self._kept[name] = output if isinstance(output, Tensor) else output[0]


class Distillation(Task):
    """`scheduler` adds the noise (any diffusers scheduler with betas and an epsilon or v prediction); `precise` opens
    the number format that the teacher, and what is held out, are computed in."""

    def __init__(  # noqa: PLR0913 - what a step depends on, each by its name
        self,
        samples: Samples,
        scheduler: Any,
        terms: Sequence[LossTerm],
        text_dropout: float = 0.0,
        flip: bool = False,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
        precise: Callable[[], AbstractContextManager[Any]] = nullcontext,
        others: OtherCaptions | None = None,
    ):
        self.samples, self.size, self.scheduler, self.terms = samples, samples.size, scheduler, terms
        self.text_dropout, self.flip, self.device, self.precise = text_dropout, flip, device, precise
        self.others = others
        self.kind: str = scheduler.config.prediction_type
        self.teacher: nn.Module | None = None
        self.recorders: dict[str, FeatureRecorder] = {}
        self.held_out: Samples | None = None
        self.on_validation: Callable[[str, nn.Module, int], None] = lambda *_: None

    def attach_teacher(self, teacher: nn.Module) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        pairs = [pair for term in self.terms for each in term.feature_pairs.values() for pair in each]
        self.teacher_recorder = FeatureRecorder(teacher, (name for pair in pairs for name in pair.teacher_modules))

    def attach_student(self, name: str, module: nn.Module) -> None:
        pairs = [pair for term in self.terms for pair in term.feature_pairs.get(name, ())]
        self.recorders[name] = FeatureRecorder(module, (each for pair in pairs for each in pair.student_modules))

    def read(self, rows: Tensor, noise: Noise) -> NoisyBatch:
        timesteps = noise.integers(self.scheduler.config.num_train_timesteps)
        dropped = noise.uniform() < self.text_dropout
        flipped = noise.uniform() < 0.5 if self.flip else None
        samples = self.samples.read(rows, flipped)
        batch = self._noisy(samples, timesteps, noise.normal(*samples.latents.shape[1:]))
        if self.others:
            batch = self._under_other_captions(batch, self.others, noise)
        text = torch.where(dropped[:, None, None], self.samples.empty.text, batch.text)
        added = dict(batch.added)
        if "text_embeds" in added:  # sizes and crops stay
            empty = self.samples.empty.added["text_embeds"]
            added["text_embeds"] = torch.where(dropped[:, None], empty, added["text_embeds"])
        return batch._replace(text=text, added=added, own=torch.where(dropped, 1.0, batch.own))

    def _under_other_captions(self, batch: NoisyBatch, others: OtherCaptions, noise: Noise) -> NoisyBatch:
        """What noise was added is no target for those: it would teach to take no notice of captions."""
        probability = torch.from_numpy(along(others.probability, batch.timesteps.numpy()))
        changed, chosen = noise.uniform() < probability, noise.integers(others.texts.size)
        seats = changed.nonzero().flatten()
        if not len(seats):
            return batch
        other = others.texts.conditions(chosen[seats])
        added = {name: value.index_copy(0, seats, other.added[name]) for name, value in batch.added.items()}
        return batch._replace(text=batch.text.index_copy(0, seats, other.text), added=added, own=(~changed).float())

    def _noisy(self, samples: Batch, timesteps: Tensor, eps: Tensor) -> NoisyBatch:
        noisy = self.scheduler.add_noise(samples.latents, eps, timesteps)
        velocity = self.kind == "v_prediction"
        target = self.scheduler.get_velocity(samples.latents, eps, timesteps) if velocity else eps
        condition, alpha = samples.condition, self.scheduler.alphas_cumprod[timesteps]
        return NoisyBatch(noisy, timesteps, condition.text, condition.added, target, alpha, torch.ones(len(timesteps)))

    @torch.no_grad()
    def prepare(self, batch: NoisyBatch) -> NoisyBatch:
        batch = send_to_device(batch, self.device)._replace(host=batch.timesteps)
        if self.teacher is None:
            return batch
        with self.precise(), self.teacher_recorder.recorded() as features:
            return batch._replace(teacher_output=_predict(self.teacher, batch), teacher_features=features)

    def losses(self, name: str, module: nn.Module, batch: NoisyBatch, step: int) -> dict[str, tuple[float, Tensor]]:
        with self.recorders[name].recorded() as features:
            predicted = _predict(module, batch)
        found: dict[str, tuple[float, Tensor]] = {}
        for term in self.terms:
            if term.kind == "features":
                pairs = term.feature_pairs[name]
                ours = [features[each] for pair in pairs for each in pair.student_modules]
                theirs = [batch.teacher_features[each] for pair in pairs for each in pair.teacher_modules]
                value = feature_loss(ours, theirs, term.normalise)
            else:
                weights = min_snr_weight(batch.alpha, term.snr_gamma, self.kind) if term.snr_gamma else None
                if term.kind == "task" and self.others:
                    weights = batch.own if weights is None else batch.own * weights
                wanted = batch.target if term.kind == "task" else batch.teacher_output
                assert wanted is not None, "the recipe let a term pass that needs a teacher"
                value = prediction_loss(predicted, wanted, weights)
            label = term.kind if term.kind not in found else f"{term.kind} {len(found) + 1}"
            found[label] = float(along(term.weight, step)), value
        return found

    def validate(self, name: str, module: nn.Module, step: int) -> dict[str, float]:
        """Task and output losses on held-out samples, unweighted, always the same with the same noise."""
        self.on_validation(name, module, step)
        if self.held_out is None:
            return {}
        count = min(HELD_OUT, self.held_out.size)
        rows = torch.linspace(0, self.held_out.size - 1, count).round().long()
        samples, noise = self.held_out.read(rows), Noise(0, 0, Part(count))
        timesteps = noise.integers(self.scheduler.config.num_train_timesteps)
        whole = self._noisy(samples, timesteps, noise.normal(*samples.latents.shape[1:]))
        sums: dict[str, float] = defaultdict(float)
        for start in range(0, count, 32):
            batch = self.prepare(slice_tensors(whole, slice(start, start + 32)))
            with self.precise():
                predicted = _predict(module, batch)
            for kind, wanted in (("task", batch.target), ("output", batch.teacher_output)):
                if wanted is not None:
                    sums[kind] += float(prediction_loss(predicted, wanted)) * len(predicted)
        return {kind: total / count for kind, total in sums.items()}


def _predict(unet: nn.Module, batch: NoisyBatch) -> Tensor:
    noisy = batch.noisy.to(memory_format=torch.channels_last)
    added = batch.added or None
    with host_timesteps(batch.host):
        predicted: Tensor = unet(noisy, batch.timesteps, batch.text, added_cond_kwargs=added, return_dict=False)[0]
    return predicted
