"""What `asdm distill` would do, found out from the recipe, configs and file headers; all that does not fit, at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from inspect import signature
from math import prod
from typing import Any

import torch
from accelerate.tracking import get_available_trackers

from asdm_cli.data.encoder import check_resolution
from asdm_cli.data.sources import Shard, find_shards
from asdm_cli.errors import ModelError
from asdm_cli.models.checked import check_drawing, check_unet
from asdm_cli.models.donors import unlike_pipelines
from asdm_cli.models.parts import check_parts
from asdm_cli.models.provenance import taken
from asdm_cli.models.schedulers import planned_scheduler, training_scheduler
from asdm_cli.models.source import ModelDirectory, find
from asdm_cli.models.switched import one_unet
from asdm_cli.recipe.verbs import DistillRecipe, Ema
from asdm_cli.training.distillation import LossTerm
from asdm_cli.training.student import TrainingConfig, mixed_precision
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.checkpoint import Checkpoint
from asdm_cli.unet.cost import latent_size
from asdm_cli.unet.settings import unlike_inputs
from asdm_cli.unet.taps import taps

NONE, FROM = "none", "from "
SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""What accelerate can share out weights by, as it calls them in the environment."""


class ErrorCollector:
    """What is wrong, each fault with its key, so that all of it is told at once."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def add(self, key: str, what: str) -> None:
        self.told.append(f"{key}: {what}")

    @contextmanager
    def at(self, key: str) -> Iterator[None]:
        """A ModelError ends the block, not more."""
        try:
            yield
        except ModelError as error:
            self.add(key, str(error))

    def raise_all(self) -> None:
        if self.told:
            raise ModelError("\n".join(dict.fromkeys(self.told)))


@dataclass(frozen=True)
class StudentModel:
    """A student before it is loaded. `frozen` are names of its tensors."""

    name: str
    directory: ModelDirectory
    checkpoint: Checkpoint
    frozen: frozenset[str]

    @cached_property
    def config(self) -> Config:
        return self.directory.config("unet")

    def parameters(self, names: Iterable[str] | None = None) -> int:
        """How many there are, of all tensors or of these."""
        tensors = self.checkpoint.tensors
        return sum(prod(tensors[name].shape) for name in (tensors if names is None else names))


@dataclass(frozen=True)
class DistillPlan:
    recipe: DistillRecipe
    teacher: ModelDirectory | None
    host: ModelDirectory
    """Whose VAE, text encoder and scheduler everybody works with."""
    students: tuple[StudentModel, ...]
    terms: tuple[LossTerm, ...]
    train: tuple[Shard, ...]
    held_out: tuple[Shard, ...]
    resolution: int
    config: TrainingConfig


def make_plan(recipe: DistillRecipe, allow_pipes: bool = False) -> DistillPlan:
    """Raises ModelError with all that does not fit, each fault with its key."""
    errors = ErrorCollector()
    teacher = anatomy = None
    with errors.at("teacher"):
        teacher = None if recipe.teacher == NONE else one_unet(find(recipe.teacher))
    students = [each for index in range(len(recipe.students)) if (each := _student(recipe, index, errors))]
    models = [*([teacher] if teacher else []), *(each.directory for each in students)]
    host = next((model for model in models if model.is_pipeline), None)
    if host is None and not errors.told:
        errors.add("teacher", "neither it nor a student is a whole pipeline; one must bring VAE and text encoder")
    if teacher:
        with errors.at("teacher"):
            check_unet(teacher)
            anatomy = Anatomy.of(teacher.config("unet"))
    if lead := teacher or host:
        for index, each in enumerate(students):
            for unlike in unlike_inputs({lead.name: lead.config("unet"), f"student {each.name}": each.config}):
                errors.add(f"students[{index}].model", unlike)
    with errors.at("students"):
        named = {"teacher": teacher} if teacher else {}
        for unlike in unlike_pipelines(named | {f"student {each.name}": each.directory for each in students}):
            errors.add("students", unlike)
    terms = _loss_terms(recipe, anatomy, students, errors)
    resolution = recipe.data.resolution or 0
    if host:
        for check in (partial(check_drawing, training=True), check_parts, training_scheduler, _check_prediction):
            with errors.at("teacher"):
                check(host)
        if recipe.validation.prompts:
            with errors.at("validation"):
                planned_scheduler(host, "own", recipe.validation.steps)
        levels = len(host.config("vae").get("block_out_channels", (0,) * 4))
        resolution = resolution or latent_size(host.config("unet"))[0] * 2 ** (levels - 1)
        with errors.at("data.resolution"):
            check_resolution(host, resolution)
    shards = find_data(recipe, allow_pipes, errors)
    config = training_config(recipe, errors)
    errors.raise_all()
    assert host, "no fault, so there is a host"
    assert config, "no fault, so there is an optimizer"
    return DistillPlan(recipe, teacher, host, tuple(students), tuple(terms), *shards, resolution, config)


def _student(recipe: DistillRecipe, index: int, errors: ErrorCollector) -> StudentModel | None:
    student = recipe.students[index]
    with errors.at(f"students[{index}].model"):
        directory = one_unet(find(student.model))
        checkpoint, frozen = check_unet(directory), frozenset[str]()
        with errors.at(f"students[{index}].freeze"):
            if student.freeze is not None:
                anatomy = Anatomy.of(directory.config("unet"))
                frozen = frozen_keys(anatomy, checkpoint.tensors, student.freeze, taken(directory))
            if len(frozen) == len(checkpoint.tensors):
                raise ModelError("all of it is frozen; leave something to learn")
        return StudentModel(student.name, directory, checkpoint, frozen)
    return None  # type: ignore[unreachable]


def _loss_terms(
    recipe: DistillRecipe, teacher: Anatomy | None, students: Sequence[StudentModel], errors: ErrorCollector
) -> list[LossTerm]:
    terms = []
    for index, loss in enumerate(recipe.losses):
        if loss.kind != "features":
            terms.append(LossTerm(loss.kind, loss.weight, loss.snr_gamma))
            continue
        pairs = {}
        for student in students:
            if teacher is None:
                break
            with errors.at(f"losses[{index}].at: student {student.name!r}"):
                pairs[student.name] = taps(Anatomy.of(student.config), teacher, loss.at)
        terms.append(LossTerm(loss.kind, loss.weight, None, loss.normalise == "teacher", pairs))
    return terms


def _check_prediction(host: ModelDirectory) -> None:
    kind = host.config("scheduler").get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise ModelError(f"{host.name}: predicts {kind!r}; only noise (epsilon) and v_prediction are trained")


def find_data(
    recipe: DistillRecipe, allow_pipes: bool, errors: ErrorCollector
) -> tuple[tuple[Shard, ...], tuple[Shard, ...]]:
    """The shards to learn from and those held out."""
    found: dict[str, tuple[Shard, ...]] = {}
    for key in ("train", "held_out"):
        sources = getattr(recipe.data, key)
        found[key] = ()
        with errors.at(f"data.{key}"):
            if sources:
                found[key] = tuple(find_shards([sources] if isinstance(sources, str) else sources, allow_pipes))
    return found["train"], found["held_out"]


def frozen_keys(
    anatomy: Anatomy, keys: Iterable[str], patterns: str | Sequence[str], donors: Mapping[str, Sequence[str]]
) -> frozenset[str]:
    """The tensors that patterns name: addresses, modules outside the blocks, or `from DONOR`.

    `donors` says what an assembled model has of each donor, in the same words. Raises ModelError for a pattern
    that names nothing.
    """
    words: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        donor = pattern.removeprefix(FROM).strip() if pattern.startswith(FROM) else None
        if donor is not None and donor not in donors:
            known = f"its donors are {', '.join(donors)}" if donors else "it was not made by asdm assemble"
            raise ModelError(f"{pattern!r}: the student has nothing from {donor!r}; {known}")
        words += [pattern] if donor is None else donors[donor]
    address = {key: anatomy.address_of_key(key) for key in keys}
    outside = {key.split(".")[0] for key in address if address[key] is None}
    try:
        named = anatomy.match([word for word in words if word not in outside])
    except ModelError as error:
        raise ModelError(f"{error}; outside the blocks are {', '.join(sorted(outside))}") from None
    inside = frozenset().union(*(anatomy.inside(each) for each in named))
    return frozenset(key for key in address if address[key] in inside or key.split(".")[0] in words)


def training_config(recipe: DistillRecipe, errors: ErrorCollector) -> TrainingConfig | None:
    """The part of a recipe that says how the loop goes, checked by trying it."""
    optimizer, gpu, processes = recipe.optimizer, torch.cuda.is_available(), int(os.environ.get("WORLD_SIZE", "1"))
    kind: type[torch.optim.Optimizer] | None = None
    options, parts = dict[str, Any](optimizer.options), recipe.accumulate * processes
    with errors.at("optimizer.name"):
        kind = _optimizer(optimizer.name)
    with errors.at("optimizer.options"):
        if kind:  # torch's own choice on a CPU is a loop over tensors, several times slower than one fused pass
            options = ({"fused": True} if "fused" in signature(kind).parameters else {}) | options
            _try(kind, optimizer.lr, options)
    with errors.at("precision"):
        mixed_precision(recipe.precision, recipe.device)
    sharded = [name for name in SHARDED if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true")]
    missing = sorted({*recipe.trackers} - {str(tracker) for tracker in get_available_trackers()})
    checks: tuple[tuple[str, object, str], ...] = (
        (
            "device",
            recipe.device not in ("auto", "cpu", "cuda"),
            f"{recipe.device!r}: training runs on auto, cpu or cuda; which GPUs is the launcher's affair",
        ),
        ("device", recipe.device == "cuda" and not gpu, "there is no GPU here; use auto or cpu"),
        (
            "device",
            sharded,
            f"the launcher switched {', '.join(sharded)} on, which shares out weights; use plain processes (DDP)",
        ),
        (
            "batch",
            recipe.batch % parts,
            f"{recipe.batch} samples cannot be divided over {processes} process(es) with {recipe.accumulate} part(s) "
            "each; choose a multiple",
        ),
        (
            "losses",
            processes > 1 and all(loss.kind == "features" for loss in recipe.losses),
            "features alone give the last weights no gradient, and several processes wait for each; add a task or "
            "output row, or use one process",
        ),
        (  # measured on small UNets, with and without our hooks: a quarter of the gradient is missing, without a word
            "compile",
            recipe.compile and (recipe.device == "cpu" or not gpu),
            "compiled for a CPU, UNets get wrong gradients (torch 2.13, inductor); leave it out here",
        ),
        ("trackers", missing, f"{', '.join(missing)}: not installed; pip install {' '.join(missing)}"),
    )
    for key, wrong, what in checks:
        if wrong:
            errors.add(key, what)
    ema = recipe.ema if isinstance(recipe.ema, Ema) else None
    if kind is None:
        return None  # type: ignore[unreachable]  # a block may end early
    return TrainingConfig(
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
    except (ImportError, AttributeError, TypeError) as error:  # TypeError: a relative name
        raise ModelError(
            f"{name!r} is not there ({error}); name a class of torch.optim, or package.module:Class"
        ) from None
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return found
    raise ModelError(f"{name!r} is no torch optimizer; name a class that is one")


def _try(kind: type[torch.optim.Optimizer], lr: float, options: dict[str, Any]) -> None:
    """One step with a small matrix: some take these arguments and then want a closure or sparse gradients."""
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    try:
        kind([weight], lr=lr, **options).step()
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"{kind.__name__} does not take them ({error})") from None
