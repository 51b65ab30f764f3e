"""Schedulers: a model's own, samplers made of it, and what noise a model was trained with.

A scheduler that is made of another's settings silently takes its own defaults for what those do not say. So the noise
itself is compared, here and nowhere else, wherever two models meet, or a model and a sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from asdm_cli.errors import ModelError, reason
from asdm_cli.models.directory import ModelDirectory
from asdm_cli.models.pipelines import PIPELINES, Kind
from asdm_cli.patches.noise import alphas_cumprod

SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "euler": (EulerDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpm++2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": (UniPCMultistepScheduler, {}),
}
SCHEDULER = "scheduler"
TRAINED = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
"""Settings that say what noise a model was trained with."""
AROUND: tuple[tuple[str, str, Any], ...] = (
    ("vae", "latent_channels", 4),
    ("vae", "block_out_channels", None),
    ("vae", "scaling_factor", 0.18215),
    ("text_encoder", "hidden_size", None),
    ("scheduler", "prediction_type", "epsilon"),
)
"""Component, setting and its default: UNets that were trained in pipelines which differ here speak other languages."""


def set_sampler(pipe: DiffusionPipeline, name: str) -> None:
    """Give `pipe` another scheduler, made from the settings of its own (betas, prediction type, spacing). ModelError
    where that would not be about the noise that the model was trained with."""
    pipe.scheduler = _sampler(pipe.scheduler, name)


def planned_scheduler(directory: ModelDirectory, sampler: str, steps: int, strength: float | None = None) -> Any:
    """The scheduler that would draw, from its config alone, with its timesteps set: the UNet calls of one image.

    Raises ModelError for more steps than it knows timesteps, and for so little strength that none is left.
    """
    kind = str(directory.index.get("_class_name"))
    if sampler != "own" and PIPELINES.get(kind, Kind()).own_sampler:
        raise ModelError(f"sampler {sampler!r}: a {kind} draws with its own alone; use `own`")
    scheduler, file = _sampler(own_scheduler(directory), sampler), directory.config_file(SCHEDULER)
    trained, alphas = scheduler.config.num_train_timesteps, alphas_cumprod(scheduler)
    if alphas is not None and len(alphas) != trained:
        raise ModelError(f"{file}: has {len(alphas)} betas for {trained} timesteps; fetch or write the file again")
    known = min(trained, scheduler.config.original_inference_steps) if isinstance(scheduler, LCMScheduler) else trained
    if steps > known:
        raise ModelError(f"steps: {steps} are more than the {known} that {file} knows; ask for {known} or fewer")
    _built(directory, lambda: set_steps(scheduler, kind, steps, strength))
    if not len(scheduler.timesteps):
        share = strength_of(kind, strength)
        raise ModelError(f"strength: {share:g} of {steps} steps are none; raise `strength` or `steps`")
    return scheduler


def strength_of(kind: str, strength: float | None) -> float:
    """The share of its steps that a pipeline of this class makes: what is asked for, or its own; 1 of those that begin
    with noise."""
    if "strength" not in PIPELINES.get(kind, Kind()).takes:
        return 1.0
    own: float = signature(getattr(diffusers, kind).__call__).parameters["strength"].default
    return own if strength is None else strength


def set_steps(scheduler: Any, kind: str, steps: int, strength: float | None) -> None:
    """Timesteps for the UNet calls that a pipeline of this class makes: the last ones, if it begins with a picture."""
    scheduler.set_timesteps(steps)
    if "strength" in PIPELINES.get(kind, Kind()).takes:
        around: Any = SimpleNamespace(scheduler=scheduler)
        left, _ = getattr(diffusers, kind).get_timesteps(around, steps, strength_of(kind, strength), "cpu")
        scheduler.timesteps = left


def own_scheduler(directory: ModelDirectory) -> Any:
    """The one that a model came with, from its config alone."""
    kind: Any = getattr(diffusers, str(directory.index[SCHEDULER][1]), None)
    return _built(directory, lambda: kind.from_config(directory.config(SCHEDULER)))


def training_scheduler(directory: ModelDirectory) -> DDIMScheduler:
    """Adds noise as the model's own sampler takes it away. ModelError for a model of another kind of noise."""
    own = own_scheduler(directory)
    if alphas_cumprod(own) is None:
        only = "only models whose noise is given by betas can be trained; use another"
        raise ModelError(f"{directory.config_file(SCHEDULER)}: {_noise(own)}: {only}")
    return _made_of(own, DDIMScheduler, {}, "training")


def unlike_noise(schedulers: Mapping[str, Any]) -> list[str]:
    """A sentence, unless all of these say that models were trained with the same noise."""
    first = next(iter(schedulers.values()), None)
    if all(_same_noise(first, other) for other in schedulers.values()):
        return []
    each = "; ".join(f"{name} has {_noise(scheduler)}" for name, scheduler in schedulers.items())
    return [f"the noise that models were trained with must be the same everywhere: {each}"]


def unlike_pipelines(models: Mapping[str, ModelDirectory]) -> list[str]:
    """In words: what VAE, text encoder and scheduler say that is not the same in all of them. Raises ModelError where
    no scheduler can be made."""
    whole = {name: each for name, each in models.items() if "scheduler" in each.components}
    faults = unlike_noise({name: own_scheduler(each) for name, each in whole.items()})
    for component, key, default in AROUND:
        having = {name: model for name, model in models.items() if component in model.components}
        values = {name: model.config(component).get(key, default) for name, model in having.items()}
        settings = list(values.values())  # of any kind: who broke the file decides
        if any(other != settings[0] for other in settings):
            each = "; ".join(
                f"{name} has {value!r} ({having[name].config_file(component)})" for name, value in values.items()
            )
            faults.append(f"{key} of the {component} must be the same everywhere: {each}")
    return faults


def _sampler(own: Any, name: str) -> Any:
    if name == "own":
        return own
    if name not in SAMPLERS:
        raise ModelError(f"sampler {name!r} is unknown; use one of own, {', '.join(SAMPLERS)}")
    return _made_of(own, *SAMPLERS[name], f"sampler {name!r}")


def _made_of(own: Any, kind: Any, settings: Mapping[str, Any], what: str) -> Any:
    """A scheduler with the settings of another, held against it."""
    trained = {key: own.config[key] for key in TRAINED if key in own.config}  # what it left to its own defaults, too
    unclipped = {"clip_sample": False} if "clip_sample" not in own.config and kind is DDIMScheduler else {}
    made = kind.from_config(own.config, **unclipped, **trained, **settings)  # latents are no pixels between -1 and 1
    if _same_noise(own, made):
        return made
    raise ModelError(
        f"{what}: would draw with another noise than the model was trained with (its own sampler is {_noise(own)}; "
        f"of that, {kind.__name__} makes {_noise(made)}); use `own`"
    )


def _same_noise(one: Any, other: Any) -> bool:
    mine, theirs = alphas_cumprod(one), alphas_cumprod(other)
    if mine is None or theirs is None:
        return mine is theirs and one.config.get("sigma_data") == other.config.get("sigma_data")
    return mine.shape == theirs.shape and torch.allclose(mine, theirs, rtol=1e-3, atol=1e-5)


def _noise(scheduler: Any) -> str:
    """In words."""
    kind, config = type(scheduler).__name__, scheduler.config
    if alphas_cumprod(scheduler) is None:
        return f"{kind}, without betas"
    if config.get("trained_betas") is not None:
        return f"{kind}, betas of its own"
    rescaled = ", rescaled to end in pure noise" if config.get("rescale_betas_zero_snr") else ""
    betas = f"{config.get('beta_schedule')} betas from {config.get('beta_start')} to {config.get('beta_end')}"
    return f"{kind}, {betas} in {config.get('num_train_timesteps')} steps{rescaled}"


def _built(directory: ModelDirectory, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except Exception as error:  # diffusers has many ways to say that settings do not fit
        file, kind = directory.config_file(SCHEDULER), directory.index[SCHEDULER][1]
        raise ModelError(f"{file}: no {kind} can be made of it ({reason(error)}); fetch the file again") from None
