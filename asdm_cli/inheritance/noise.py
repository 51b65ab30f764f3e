"""The noise levels of a generation's UNet calls, read from a scheduler once."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from asdm_cli.errors import ModelError


def log_snr(scheduler: Any, calls: int, first: float) -> list[float]:
    """log(alpha_t^2 / sigma_t^2) at the timestep of each of the last `calls` entries of the scheduler's timesteps that
    begin with `first`; between trained timesteps it is interpolated.

    Raises ModelError for schedulers that do not follow a trained noise schedule.
    """
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alphas, Tensor):
        raise ModelError(f"coordinate 'log-snr': {type(scheduler).__name__} has no alphas_cumprod; use `step`")
    kept = alphas.double().cpu().numpy()
    times = _times([float(time) for time in scheduler.timesteps.tolist()], calls, first)
    levels = np.interp(times, np.arange(len(kept)), np.log(kept / (1 - kept)))
    return [float(level) for level in levels]


def _times(times: list[float], calls: int, first: float) -> list[float]:
    """A pipeline may leave out steps at the start (image to image) or at the end (SDXL's base before its refiner)."""
    starts = [start for start, time in enumerate(times) if time == first]
    start = len(times) - calls if len(times) - calls in starts else starts[0] if starts else 0
    chosen = times[start : start + calls]
    return chosen + chosen[-1:] * (calls - len(chosen))
