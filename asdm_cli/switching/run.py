"""One generation through several UNets: who serves its calls, the stretches that they serve, what was predicted.

It lives from a pipeline call's start to its end, in one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.inheritance.course import Resting
from asdm_cli.inheritance.engine import Engine
from asdm_cli.inheritance.generation import Announced, Memory
from asdm_cli.inheritance.noise import coordinates
from asdm_cli.recipe.patches import NULLS, Switching
from asdm_cli.switching.assignment import COUNTED, Place, assign

LINE = 1
"""Order of the forecast that `extrapolate` makes: a straight line in the number of the call."""


class Places:
    """Where the calls of one generation lie. The first call's timestep is read from its device once, if at all."""

    def __init__(self, calls: int, scheduler: Any, first: Tensor | float):
        self.calls, self.scheduler, self.first = calls, scheduler, first
        self._found: dict[str, Sequence[Place]] = {}

    def __call__(self, coordinate: str, instead: str) -> Sequence[Place]:
        """Raises ModelError, which names what to use `instead`, for coordinates that the scheduler does not know."""
        if coordinate not in self._found:
            counted = COUNTED.get(coordinate)
            self._found[coordinate] = counted(self.calls) if counted else self._of_scheduler(coordinate, instead)
        return self._found[coordinate]

    def _of_scheduler(self, coordinate: str, instead: str) -> Sequence[float]:
        if self.scheduler is None:
            raise ModelError(f"coordinate {coordinate!r}: only a scheduler knows it; give one, or use `step`")
        if isinstance(self.first, Tensor):
            self.first = float(self.first.flatten()[0])
        return coordinates(self.scheduler, coordinate, self.calls, self.first, instead)


def served_by(rules: Switching, scheduler: Any) -> tuple[str, ...]:
    """Who serves each call of a whole run of a scheduler whose timesteps are set. Raises ModelError like `Places`."""
    places = Places(len(scheduler.timesteps), scheduler, float(scheduler.timesteps[0]))
    return assign(rules, places(rules.by, "timestep"))


class Pending:
    """A generation before its first UNet call, when nobody knows yet how many there will be."""

    def __init__(self, calls: int | Callable[[], int], scheduler: Any):
        self.calls, self.scheduler = calls, scheduler

    def start(self, rules: Switching, engines: Mapping[str, Engine], timestep: Tensor | float) -> Run:
        places = Places(self.calls if isinstance(self.calls, int) else self.calls(), self.scheduler, timestep)
        return Run(assign(rules, places(rules.by, "timestep")), engines, places)


class Run:
    """`names[i]` serves call i. Each stretch of calls that one UNet serves is a generation of that UNet's engine.

    Calls of the null model inside a stretch do not end it; the engine is not called for them, and neither counts
    nor places them. Its memory goes when another UNet begins, and a later stretch of the same one starts anew.
    """

    def __init__(self, names: Sequence[str], engines: Mapping[str, Engine], places: Places):
        self.names, self.engines, self.places = list(names), engines, places
        self.announced = Announced(len(self.names))
        self.call = -1
        self.served: list[str] = []
        self.rested: dict[str, list[Resting]] = {}
        self.cache_bytes = 0
        self._stretch = ExitStack()
        self._serving = ""
        self._shape: torch.Size | None = None
        self._predicted = Memory(LINE)

    def next(self, sample: Tensor, timestep: Tensor | float) -> str:
        """Who serves the next call. Of a new shape nothing has been predicted: the next UNet serves.

        Raises ModelError for calls that were not announced.
        """
        self.announced.next(timestep)
        self.call += 1
        at = self.call
        if sample.shape != self._shape:
            self._shape, self._predicted = sample.shape, Memory(LINE)
        if self.names[at] in NULLS and not self._predicted.known:
            self.names[at] = self._instead(at)
            self.close()  # the stretch was announced without this call
        name = self.names[at]
        if name not in NULLS and name != self._serving:
            self._open(name, at)
        self.served.append(name)
        return name

    def keep(self, prediction: Tensor) -> None:
        """A UNet's answer to this call, a copy of it, if a null model may want it."""
        if any(name in NULLS for name in self.names[self.call :]):
            self._predicted.prepare(self.call, keeps=True)
            self._predicted.keep(prediction.clone())

    def null(self, name: str) -> Tensor:
        """What stands for a prediction at a call of this null model; a tensor of its own."""
        known = self._predicted
        assert known.differences is not None, "`next` names a null model only where something was predicted"
        if name == "reuse":
            return known.differences[0].clone()
        known.prepare(self.call, keeps=False)
        return known.hand_on()

    def close(self) -> None:
        """End the stretch under way, if there is one."""
        self._stretch.close()
        if engine := self.engines.get(self._serving):
            self.rested.setdefault(self._serving, []).extend(engine.last_steps)
            self.cache_bytes = max(self.cache_bytes, engine.last_cache_bytes)
        self._serving = ""

    def _open(self, name: str, at: int) -> None:
        self.close()
        self._serving = name
        if engine := self.engines.get(name):
            calls = self._calls(name, at)
            where = lambda coordinate, *_: self._where(coordinate, calls)  # noqa: E731
            self._stretch.enter_context(engine.generation(len(calls), where))

    def _where(self, coordinate: str, calls: Sequence[int]) -> list[float]:
        places = self.places(coordinate, "step")
        return [float(places[call]) for call in calls]

    def _calls(self, name: str, at: int) -> list[int]:
        """The calls that it serves from here on until another UNet begins."""
        found = []
        for call in range(at, len(self.names)):
            if self.names[call] == name:
                found.append(call)
            elif self.names[call] not in NULLS:
                break
        return found

    def _instead(self, at: int) -> str:
        """The next UNet, or the last one where none follows; the first call has one, whatever the rules say."""
        return next(name for name in (*self.names[at:], *reversed(self.names[:at])) if name not in NULLS)
