"""A patch as a plug-in would bring it, in one file: at some calls guidance is left out, whose unconditional half of the
rows nobody computes, and other calls are left out altogether: the last output stands for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from pydantic import Field
from torch import Tensor, nn

from asdm_cli.patches.base import (
    CallHook,
    Configs,
    Layer,
    Live,
    Load,
    Patch,
    Stats,
    Trajectory,
    call_around,
    in_force,
    inside,
    sample_and_timestep,
    stats_of,
)
from asdm_cli.recipe.patches import PatchSpec
from asdm_cli.recipe.schema import Whole

NAME = "tests_half_rows"
GROUPS = ("unconditional", "conditional")
"""In the order in which diffusers puts them into a call."""


class HalfRowsSpec(PatchSpec):
    """Guidance at some calls only, and calls that are not made."""

    kind: Literal["half-rows"] = "half-rows"
    """The kind of patch."""
    half: list[Whole] = Field(default_factory=list)
    """Calls without guidance."""
    skip: list[Whole] = Field(default_factory=list)
    """Calls for which the last output stands."""
    module: ClassVar[str] = "tests.patches.half_rows"


@dataclass
class State:
    """`inner` is that of the layer inside, which sees fewer calls."""

    guided: bool
    inner: Any
    call: int = -1
    last: Tensor | None = None


class HalfRows(Live):
    layer = Layer.GUIDANCE

    def __init__(self, unet: nn.Module, spec: HalfRowsSpec):
        super().__init__()
        self.unet, self.spec, self.halved = unet, spec, 0
        self.attach(unet, CallHook(self, self.call), NAME)

    def begin(self, trajectory: Trajectory) -> State:
        self.halved = 0
        guided = getattr(call_around(self)[0], "do_classifier_free_guidance", False)
        calls = [call for call in range(trajectory.calls) if call not in self.spec.skip]
        rows = [GROUPS[call in self.spec.half :] for call in calls] if guided else None
        inner = inside(self, self.unet)
        return State(guided, inner.begin(trajectory.part(calls, rows)) if inner else None)

    def end(self, states: Sequence[State]) -> None:
        if inner := inside(self, self.unet):
            inner.end([state.inner for state in states])
            inner.thread.handed = inner.thread.step = None

    def stats(self) -> Stats:
        return Stats(figures={"halved_calls": self.halved})

    def call(self, forward: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        sample, timestep = sample_and_timestep(arguments, named)
        state: State = self.arriving(timestep)
        state.call += 1
        if state.call not in self.spec.skip or state.last is None:
            if inner := inside(self, self.unet):
                inner.thread.handed = state.inner
            if state.guided and state.call in self.spec.half:
                self.halved += 1
                arguments, named = _conditional((arguments, {**named}), len(sample))
                state.last = torch.cat([forward(*arguments, **named)[0]] * 2)
            else:
                state.last = forward(*arguments, **named)[0]
        assert state.last is not None
        last = state.last.clone()
        return UNet2DConditionOutput(sample=last) if named.get("return_dict", True) else (last,)


def _conditional(value: Any, rows: int) -> Any:
    """The second half of all that has so many rows."""
    if isinstance(value, Tensor):
        return value.chunk(2)[1] if value.ndim and len(value) == rows else value
    if isinstance(value, dict):
        return {key: _conditional(each, rows) for key, each in value.items()}
    return tuple(_conditional(each, rows) for each in value) if isinstance(value, list | tuple) else value


class HalfRowsPatch(Patch[HalfRowsSpec]):
    layer = Layer.GUIDANCE

    def check(self, configs: Configs, others: Sequence[Patch[Any]]) -> list[str]:  # noqa: ARG002
        faults = ["half-rows: nothing was predicted before call 0; do not skip it"] if 0 in self.spec.skip else []
        if any(other.layer == self.layer for other in others):
            faults.append("half-rows: guidance is changed twice; leave one out")
        if any(other.layer == Layer.MODULE for other in others):
            faults.append("half-rows: a peer's cache sees neither calls nor rows that are left out; leave one out")
        return faults

    @contextmanager
    def apply(self, pipe: Any, load: Load) -> Iterator[Callable[[], Stats]]:  # noqa: ARG002
        live = in_force(pipe, HalfRows(pipe.unet, self.spec))
        try:
            yield lambda: stats_of(pipe)
        finally:
            live.remove()


patch = HalfRowsPatch
