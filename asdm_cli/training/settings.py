"""The part of a recipe that says how the loop goes, checked by trying it."""

from __future__ import annotations

import os
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from accelerate.tracking import get_available_trackers

from asdm_cli.errors import ModelError
from asdm_cli.recipe.verbs import DistillRecipe, Ema, FeatureLoss
from asdm_cli.training.gate import Faults
from asdm_cli.training.plan import Plan, mixed_precision

SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""What accelerate can share out weights by, as it calls them in the environment."""


def training_plan(recipe: DistillRecipe, faults: Faults) -> Plan | None:
    optimizer = recipe.optimizer
    ema = recipe.ema if isinstance(recipe.ema, Ema) else None
    kind = faults.catch("optimizer.name", lambda: _optimizer(optimizer.name))
    options: dict[str, Any] = dict(optimizer.options)
    if kind:
        options = _quickest(kind) | options
        faults.catch("optimizer.options", lambda: _try(kind, optimizer.lr, options))
    faults.catch("precision", lambda: mixed_precision(recipe.precision, recipe.device))
    faults.catch("device", lambda: _check_device(recipe.device))
    faults.catch("batch", lambda: _check_batch(recipe))
    faults.catch("losses", lambda: _check_shared(recipe))
    faults.catch("device", _check_whole_weights)
    faults.catch("compile", lambda: _check_compile(recipe))
    faults.catch("trackers", lambda: _check_trackers(recipe.trackers))
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
    except (ImportError, AttributeError, TypeError) as error:  # TypeError: a relative name
        raise ModelError(
            f"{name!r} is not there ({error}); name a class of torch.optim, or package.module:Class"
        ) from None
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return found
    raise ModelError(f"{name!r} is no torch optimizer; name a class that is one")


def _quickest(kind: type[torch.optim.Optimizer]) -> dict[str, Any]:
    """torch's own choice on a CPU is a loop over tensors, several times slower than one fused pass."""
    return {"fused": True} if "fused" in signature(kind).parameters else {}


def _try(kind: type[torch.optim.Optimizer], lr: float, options: dict[str, Any]) -> None:
    """One step with a small matrix: some take these arguments and then want a closure or sparse gradients."""
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    try:
        kind([weight], lr=lr, **options).step()
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"{kind.__name__} does not take them ({error})") from None


def _check_device(device: str) -> None:
    if device not in ("auto", "cpu", "cuda"):
        raise ModelError(f"{device!r}: training runs on auto, cpu or cuda; which GPUs is the launcher's affair")
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("there is no GPU here; use auto or cpu")


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _check_shared(recipe: DistillRecipe) -> None:
    if _processes() > 1 and all(isinstance(loss, FeatureLoss) for loss in recipe.losses):
        raise ModelError(
            "features alone give the last weights no gradient, and several processes wait for each; "
            "add a task or output row, or use one process"
        )


def _check_compile(recipe: DistillRecipe) -> None:
    """Measured on small UNets, with and without our hooks: a quarter of the gradient is missing, without a word."""
    if recipe.compile and (recipe.device == "cpu" or not torch.cuda.is_available()):
        raise ModelError("compiled for a CPU, UNets get wrong gradients (torch 2.13, inductor); leave it out here")


def _check_whole_weights() -> None:
    for name in SHARDED:
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true"):
            raise ModelError(f"the launcher switched {name} on, which shares out weights; use plain processes (DDP)")


def _check_batch(recipe: DistillRecipe) -> None:
    processes = _processes()
    if recipe.batch % (recipe.accumulate * processes):
        parts = f"{processes} process(es) with {recipe.accumulate} part(s) each"
        raise ModelError(f"{recipe.batch} samples cannot be divided over {parts}; choose a multiple")


def _check_trackers(wanted: list[Any]) -> None:
    there = {str(tracker) for tracker in get_available_trackers()}
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ModelError(f"{', '.join(missing)}: not installed; pip install {' '.join(missing)}")
