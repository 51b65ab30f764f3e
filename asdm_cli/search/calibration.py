"""What each choice errs and costs at each UNet call, found out while the first UNet draws.

At every call all UNets answer the same input. An answer's error is how far from the first UNet's the scheduler's step
takes the latents: the root of the mean square, over all latents of a picture. For samplers that look back at earlier
answers this is the effect on the next latents alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from statistics import fmean, median
from typing import Any

import numpy as np
from torch import Tensor

from asdm_cli.compare.setup import Session, Setup
from asdm_cli.console import track
from asdm_cli.errors import RunError, blame
from asdm_cli.patches.base import live_on, unet_calls
from asdm_cli.patches.unet_schedule import UNetSchedule
from asdm_cli.profiling.accelerators import idle
from asdm_cli.sampling.generate import SamplingSettings, latents
from asdm_cli.sampling.prompts import Given
from asdm_cli.search.dynamic_programme import FARTHEST, GAPS, GRID, Choices
from asdm_cli.search.forecasts import copied

Null = tuple[int, int]
"""Distance to the last prediction, and gap between that and the one before; 0 for its plain reuse."""
NULLS = [(distance, gap) for distance in range(1, FARTHEST + 1) for gap in range(GAPS + 1)]
Choice = str | Null


@dataclass(frozen=True)
class Calibration:
    """Means over pictures of errors, medians of seconds; by UNet's name, then by call.

    `nulls[distance - 1][gap][call]`, with None before there were such predictions.
    """

    timesteps: list[float]
    errors: dict[str, list[float]]
    seconds: dict[str, list[float]]
    nulls: list[list[list[float | None]]]

    def choices(self) -> Choices:
        """Costs in whole units, GRID of them in a mean call of the first UNet, rounded up."""
        unit = fmean(next(iter(self.seconds.values()))) / GRID
        nulls = np.array(self.nulls, dtype=np.float64)
        nulls[np.isnan(nulls)] = np.inf
        return Choices(
            {name: np.array(errors) for name, errors in self.errors.items()},
            {name: np.ceil(np.array(each) / unit - 1e-6).astype(np.int64) for name, each in self.seconds.items()},
            nulls[:, 0],
            nulls[:, 1:],
        )


class Panel:
    """Asks all UNets at each UNet call of a drawing, and at each of the scheduler's steps what would come of it."""

    def __init__(self, pipe: Any, guidance: float):
        unet: UNetSchedule = pipe.unet
        self.pipe, self.unet, self.guidance = pipe, unet, guidance
        self.timesteps: list[float] = []
        self.seconds: dict[str, list[float]] = {name: [] for name in unet.names}
        choices: list[Choice] = [*unet.names, *NULLS]
        self.errors: dict[Choice, list[float]] = {choice: [] for choice in choices}
        self._own: list[Tensor] = []
        self._answers: dict[Choice, Tensor] = {}
        self._began = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """To one drawing by the first UNet, which goes on as if nobody listened."""
        scheduler, real = self.pipe.scheduler, self.pipe.scheduler.step
        with ExitStack() as undo:
            for name in self.unet.names[1:]:
                for live in live_on(self.unet.unets[name])[:1]:
                    undo.enter_context(live.generation(partial(unet_calls, self.pipe), scheduler))
            undo.callback(self.unet.register_forward_pre_hook(self._before).remove)
            undo.callback(self.unet.register_forward_hook(self._after, with_kwargs=True).remove)
            undo.callback(scheduler.__dict__.pop, "step")

            @wraps(real)  # pipelines look at its signature; a function is not copied with the scheduler
            def step(answer: Tensor, timestep: Any, sample: Tensor, **named: Any) -> Any:
                return self._step(real, answer, timestep, sample, **named)

            scheduler.step = step
            yield

    def _before(self, *_: object) -> None:
        self._began = self._now()

    def _after(self, _: object, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        first, *others = self.unet.names
        self.seconds[first].append(self._now() - self._began)
        self._answers = {first: output[0]}
        for name in others:
            with self.unet.present(name) as unet:
                began = self._now()
                self._answers[name] = unet(*args, **named)[0]
                self.seconds[name].append(self._now() - began)
        with self.unet.present(first):
            self._own.append(output[0].clone())
        self._answers |= {null: self._null(*null) for null in NULLS if sum(null) < len(self._own)}

    def _null(self, distance: int, gap: int) -> Tensor:
        last = self._own[-1 - distance]
        return last + (last - self._own[-1 - distance - gap]) * (distance / gap) if gap else last

    def _step(self, real: Callable[..., Any], answer: Tensor, timestep: Any, sample: Tensor, **named: Any) -> Any:
        """Copies of the scheduler step to where each other answer leads; then it steps itself."""
        own = self._answers.pop(self.unet.names[0])
        led = {
            choice: self._led(answer + self._guided(each - own, len(sample)), timestep, sample, named)
            for choice, each in self._answers.items()
        }
        result = real(answer, timestep, sample, **named)
        self.timesteps.append(float(timestep))
        for choice, errors in self.errors.items():
            to = led.get(choice, result[0] if choice == self.unet.names[0] else None)
            errors.append(float("nan") if to is None else float((to - result[0]).double().square().mean().sqrt()))
        return result

    def _led(self, answer: Tensor, timestep: Any, sample: Tensor, named: dict[str, Any]) -> Tensor:
        scheduler = copy.deepcopy(self.pipe.scheduler)
        led: Tensor = type(scheduler).step(scheduler, answer, timestep, sample, **copied(named))[0]
        return led

    def _guided(self, change: Tensor, rows: int) -> Tensor:
        """What a change of the UNet's answer changes after guidance, which is a weighted sum of its two halves."""
        if len(change) == rows:
            return change
        without, text = change.chunk(2)
        return without + self.guidance * (text - without)

    def _now(self) -> float:
        idle(self.unet.device)
        return time.perf_counter()


def calibrate(
    session: Session, first: Setup, prompts: Sequence[str], settings: SamplingSettings, given: Sequence[Given] = ()
) -> Calibration:
    """Draw each prompt with the first UNet alone, one at a time as it is timed, while all answer.

    Raises RunError for a UNet whose answers are no numbers.
    """
    panels: list[Panel] = []
    with session.stage(first) as (pipe, _), blame("the search", "calibrating"):
        for index, prompt in enumerate(track(prompts, "calibrating", len(prompts))):
            panels.append(Panel(pipe, settings.guidance))
            with panels[-1].listening():
                latents(pipe, prompt, settings, index, given[index : index + 1])
        return _means(panels)


def _means(panels: Sequence[Panel]) -> Calibration:
    unet, timesteps = panels[0].unet, panels[0].timesteps
    means = {
        choice: [fmean(each) for each in zip(*(panel.errors[choice] for panel in panels), strict=True)]
        for choice in panels[0].errors
    }
    strange = [name for name in unet.names if not np.isfinite(means[name]).all()]
    if strange:
        raise RunError(f"UNets {', '.join(strange)}: answer with what is no number; try `dtype: float32`")
    seconds = {
        name: [median(call) for call in zip(*(panel.seconds[name] for panel in panels), strict=True)]
        for name in unet.names
    }
    for name in unet.names:
        if not live_on(unet.unets[name]):  # then all its calls are the same work
            seconds[name] = [median(taken for panel in panels for taken in panel.seconds[name])] * len(timesteps)
    nulls = [
        [[None if np.isnan(each) else each for each in means[distance, gap]] for gap in range(GAPS + 1)]
        for distance in range(1, FARTHEST + 1)
    ]
    return Calibration(timesteps, {name: means[name] for name in unet.names}, seconds, nulls)
