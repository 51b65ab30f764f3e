"""The noise levels of a generation's UNet calls, read from a scheduler once."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from asdm_cli.errors import ModelError

Levels = NDArray[np.float64]
COORDINATES: dict[str, Callable[[Levels], Levels]] = {
    "log-snr": lambda signal: np.log(signal / (1 - signal)),
    "angle": lambda signal: np.arccos(np.sqrt(signal)),
    "signal": lambda signal: signal,
}
"""Name -> the coordinate at each share of signal alpha^2 = 1 - sigma^2, strictly between 0 and 1.

The angle turns from the picture (0) to the noise (pi / 2); see [arXiv:2202.00512], appendix D.
"""
TIMESTEP = "timestep"
"""Known to every scheduler."""


def alphas_cumprod(scheduler: Any) -> Tensor | None:
    """The share of signal at each timestep that a model was trained on. None where the noise is of another kind (EDM,
    flow matching), which some schedulers are told beside betas that then mean nothing."""
    alphas, known = getattr(scheduler, "alphas_cumprod", None), signature(type(scheduler).__init__).parameters
    config = {key: value for key, value in scheduler.config.items() if key in known}  # diffusers keeps others' too
    other = config.get("use_flow_sigmas") or config.get("timestep_type") == "continuous"
    return alphas.double().cpu() if isinstance(alphas, Tensor) and not other else None


def coordinates(scheduler: Any, name: str, calls: int, first: float, instead: str = "step") -> list[float]:
    """The coordinate at each of `calls` successive timesteps of the scheduler, of which the first is `first`.

    Between trained timesteps it is interpolated. Raises ModelError, which names the coordinate to use `instead`, for
    schedulers without a trained noise schedule.
    """
    times = [float(time) for time in scheduler.timesteps.tolist()]
    # a pipeline may leave out steps at the start (image to image) or at the end (SDXL's base before its refiner)
    starts = [start for start, time in enumerate(times) if time == first] or [0]
    start = len(times) - calls if len(times) - calls in starts else starts[0]
    times = times[start : start + calls]
    times += times[-1:] * (calls - len(times))
    if name == TIMESTEP:
        return times
    alphas = alphas_cumprod(scheduler)
    if alphas is None:
        raise ModelError(f"axis {name!r}: {type(scheduler).__name__} has no alphas_cumprod; use `{instead}`")
    signal = alphas.numpy()
    signal = signal.clip(signal[signal > 0].min())  # some schedules end in pure noise, infinitely far away
    return [float(level) for level in np.interp(times, np.arange(len(signal)), COORDINATES[name](signal))]


PREDICTIONS: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "epsilon": lambda alpha, sigma: (1 / sigma, -alpha / sigma),
    "v_prediction": lambda alpha, sigma: (alpha / sigma, -1 / sigma),
    "sample": lambda *_: (0.0, 1.0),
}
"""What a model predicts -> the factors of its input x = alpha x0 + sigma eps, and of x0, of which it is the sum."""
SPACES = {"x0": "sample", "eps": "epsilon", "v": "v_prediction"}


def in_space(prediction: str, space: str, signal: float) -> tuple[float, float]:
    """a and b by which a x + b y is in `space` what a model that predicts so said as y of x, at a share of signal
    alpha^2. Raises ModelError for what is none of the three."""
    if prediction not in PREDICTIONS:
        raise ModelError(f"space {space!r}: the model predicts {prediction or 'nobody knows what'}; use `space: model`")
    alpha, sigma = signal**0.5, (1 - signal) ** 0.5
    of_input, of_clean = PREDICTIONS[prediction](alpha, sigma)
    to_input, to_clean = PREDICTIONS[SPACES[space]](alpha, sigma)
    return to_input - of_input * to_clean / of_clean, to_clean / of_clean
