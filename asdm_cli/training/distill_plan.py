"""What `asdm distill` would do, found out from the recipe, configs and file headers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from math import prod
from typing import Any

import torch
from accelerate.tracking import get_available_trackers

from asdm_cli.data.encoder import check_resolution
from asdm_cli.data.sources import Shard, find_shards
from asdm_cli.errors import ModelError
from asdm_cli.models.provenance import taken
from asdm_cli.models.source import ModelDirectory, find
from asdm_cli.recipe.verbs.distill import DistillRecipe, Ema, FeatureLoss, Student
from asdm_cli.training.distillation import Row
from asdm_cli.training.freezing import frozen_keys
from asdm_cli.training.plan import Plan, mixed_precision
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.checkpoint import Checkpoint, open_checkpoint, require
from asdm_cli.unet.cost import shapes
from asdm_cli.unet.taps import Tap, taps

NONE = "none"
ALIKE = ("in_channels", "out_channels", "cross_attention_dim", "addition_embed_type", "class_embed_type")
"""Settings in which a student must be like its teacher: they see the same inputs."""


@dataclass(frozen=True)
class Learner:
    """A student before it is loaded. `frozen` are names of its tensors."""

    name: str
    directory: ModelDirectory
    checkpoint: Checkpoint
    frozen: frozenset[str]

    @property
    def config(self) -> Config:
        return self.directory.config("unet")

    @cached_property
    def anatomy(self) -> Anatomy:
        return Anatomy.of(self.config)

    @property
    def parameters(self) -> int:
        return sum(prod(entry.shape) for entry in self.checkpoint.tensors.values())

    @property
    def learning(self) -> int:
        """Parameters that are not frozen."""
        return self.parameters - sum(prod(self.checkpoint.tensors[key].shape) for key in self.frozen)


@dataclass(frozen=True)
class DistillPlan:
    recipe: DistillRecipe
    teacher: ModelDirectory | None
    host: ModelDirectory
    """Whose VAE, text encoder and scheduler everybody works with."""
    learners: tuple[Learner, ...]
    rows: tuple[Row, ...]
    train: tuple[Shard, ...]
    held_out: tuple[Shard, ...]
    resolution: int
    training: Plan


def make_plan(recipe: DistillRecipe, allow_pipes: bool = False) -> DistillPlan:
    """Raises ModelError with all that does not fit, each fault with its key."""
    faults = _Faults()
    teacher = faults.catch("teacher", lambda: None if recipe.teacher == NONE else find(recipe.teacher))
    learners = [each for index in range(len(recipe.students)) if (each := _learner(recipe, index, faults))]
    found = [directory for directory in (teacher, *(each.directory for each in learners)) if directory]
    host = next((directory for directory in found if directory.is_pipeline), None)
    if host is None and not faults.told:
        faults.add("teacher", "neither it nor a student is a whole pipeline; one must bring VAE and text encoder")
    if teacher:
        faults.catch("teacher", lambda: _check_unet(teacher))
        _check_alike(teacher, learners, faults)
    rows = _rows(recipe, teacher, learners, faults)
    if host:
        faults.catch("teacher", lambda: _check_prediction(host))
    train = faults.catch("data.train", lambda: find_shards(_listed(recipe.data.train), allow_pipes)) or []
    held = recipe.data.held_out
    held_out = faults.catch("data.held_out", lambda: find_shards(_listed(held), allow_pipes) if held else []) or []
    resolution = recipe.data.resolution or (host and _own_resolution(host)) or 0
    if host and resolution:
        faults.catch("data.resolution", lambda: check_resolution(host, resolution))
    training = _training(recipe, faults)
    faults.raise_all()
    assert host, "no fault, so there is a host"
    assert training, "no fault, so there is a plan"
    return DistillPlan(
        recipe, teacher, host, tuple(learners), tuple(rows), tuple(train), tuple(held_out), resolution, training
    )


class _Faults:
    """Collects what is wrong, each with its key, so that all of it is told at once."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def add(self, key: str, what: str) -> None:
        self.told.append(f"{key}: {what}")

    def catch(self, key: str, look: Callable[[], Any]) -> Any:
        """What `look` returns, or None after a ModelError, which is kept."""
        with self.catching(key):
            return look()

    @contextmanager
    def catching(self, key: str) -> Iterator[None]:
        try:
            yield
        except ModelError as error:
            self.add(key, str(error))

    def raise_all(self) -> None:
        if self.told:
            raise ModelError("\n".join(dict.fromkeys(self.told)))


def _learner(recipe: DistillRecipe, index: int, faults: _Faults) -> Learner | None:
    student: Student = recipe.students[index]
    with faults.catching(f"students[{index}].model"):
        directory = find(student.model)
        checkpoint = _check_unet(directory)
        frozen: frozenset[str] = frozenset()
        learner = Learner(student.name, directory, checkpoint, frozen)
        with faults.catching(f"students[{index}].freeze"):
            if student.freeze is not None:
                frozen = frozen_keys(learner.anatomy, checkpoint.tensors, student.freeze, taken(directory))
            if len(frozen) == len(checkpoint.tensors):
                raise ModelError("all of it is frozen; leave something to learn")
        return Learner(student.name, directory, checkpoint, frozen)
    return None  # type: ignore[unreachable]


def _check_unet(directory: ModelDirectory) -> Checkpoint:
    folder = directory.component("unet")
    checkpoint = open_checkpoint(folder, directory.path)
    require(checkpoint, shapes(directory.config("unet")), folder)
    return checkpoint


def _check_alike(teacher: ModelDirectory, learners: list[Learner], faults: _Faults) -> None:
    theirs = teacher.config("unet")
    for index, learner in enumerate(learners):
        for key in ALIKE:
            if learner.config.get(key) != theirs.get(key):
                what = (
                    f"{key} is {learner.config.get(key)!r} and the teacher's {theirs.get(key)!r}; they see other inputs"
                )
                faults.add(f"students[{index}].model", what)


def _check_prediction(host: ModelDirectory) -> None:
    kind = host.config("scheduler").get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise ModelError(f"{host.name}: predicts {kind!r}; only noise (epsilon) and v_prediction are trained")


def _rows(recipe: DistillRecipe, teacher: ModelDirectory | None, learners: list[Learner], faults: _Faults) -> list[Row]:
    anatomy = faults.catch("teacher", lambda: Anatomy.of(teacher.config("unet"))) if teacher else None
    rows = []
    for index, loss in enumerate(recipe.losses):
        if isinstance(loss, FeatureLoss):
            found = _taps(loss, index, anatomy, learners, faults) if anatomy else {}
            rows.append(Row("features", loss.weight, normalise=loss.normalise == "teacher", taps=found))
        else:
            rows.append(Row(loss.kind, loss.weight, loss.snr_gamma))
    return rows


def _taps(
    loss: FeatureLoss, index: int, teacher: Anatomy, learners: list[Learner], faults: _Faults
) -> dict[str, list[Tap]]:
    found = {}
    for learner in learners:
        with faults.catching(f"losses[{index}].at: student {learner.name!r}"):
            found[learner.name] = taps(learner.anatomy, teacher, loss.at)
    return found


def _training(recipe: DistillRecipe, faults: _Faults) -> Plan | None:
    optimizer = recipe.optimizer
    ema = recipe.ema if isinstance(recipe.ema, Ema) else None
    kind = faults.catch("optimizer.name", lambda: _optimizer(optimizer.name))
    options: dict[str, Any] = dict(optimizer.options)
    if kind:
        faults.catch("optimizer.options", lambda: _try(kind, optimizer.lr, options))
    faults.catch("precision", lambda: mixed_precision(recipe.precision, recipe.device))
    faults.catch("device", lambda: _check_device(recipe.device))
    faults.catch("batch", lambda: _check_batch(recipe))
    faults.catch("trackers", lambda: _check_trackers(recipe.trackers))
    if recipe.optimizer.warmup >= recipe.steps:
        faults.add(
            "optimizer.warmup", f"{optimizer.warmup} steps of warm-up are not fewer than the {recipe.steps} of all"
        )
    return kind and Plan(
        steps=recipe.steps,
        batch=recipe.batch,
        lr=optimizer.lr,
        schedule=optimizer.schedule,
        warmup=optimizer.warmup,
        optimizer=kind,
        options=options,
        accumulate=recipe.accumulate,
        clip=recipe.clip if isinstance(recipe.clip, float) else None,
        ema_decay=ema.decay if ema else None,
        ema_after=ema.after if ema else 0,
        seed=recipe.seed,
        save_every=recipe.checkpoint,
        keep=recipe.keep,
        validate_every=recipe.validation.every,
        precision=recipe.precision,
        device=recipe.device,
        compile=recipe.compile,
        trackers=tuple(recipe.trackers),
    )


def _optimizer(name: str) -> type[torch.optim.Optimizer]:
    """A class of torch.optim, or of an installed package: `package.module:Class`."""
    module, _, kind = name.rpartition(":")
    try:
        found = getattr(import_module(module) if module else torch.optim, kind)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"{name!r} is not there ({error}); name a class of torch.optim, or package.module:Class"
        ) from None
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return found
    raise ModelError(f"{name!r} is no torch optimizer; name a class that is one")


def _try(kind: type[torch.optim.Optimizer], lr: float, options: dict[str, Any]) -> None:
    try:
        kind([torch.nn.Parameter(torch.zeros(1))], lr=lr, **options)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{kind.__name__} does not take them ({error})") from None


def _check_device(device: str) -> None:
    if device not in ("auto", "cpu", "cuda"):
        raise ModelError(f"{device!r}: training runs on auto, cpu or cuda; which GPUs is the launcher's affair")
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("there is no GPU here; use auto or cpu")


def _check_batch(recipe: DistillRecipe) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.batch % (recipe.accumulate * processes):
        parts = f"{processes} process(es) with {recipe.accumulate} part(s) each"
        raise ModelError(f"{recipe.batch} samples cannot be divided over {parts}; choose a multiple")


def _check_trackers(wanted: list[Any]) -> None:
    there = {str(tracker) for tracker in get_available_trackers()}
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ModelError(f"{', '.join(missing)}: not installed; pip install {' '.join(missing)}")


def _own_resolution(host: ModelDirectory) -> int:
    levels = len(host.config("vae").get("block_out_channels", (0,) * 4))
    return int(host.config("unet").get("sample_size", 64)) * 2 ** (levels - 1)


def _listed(sources: str | list[str]) -> list[str]:
    return [sources] if isinstance(sources, str) else sources
