"""Guidance in an interval of the generation alone (Kynkäänniemi et al., arXiv:2404.07724): outside it the UNet computes
only the rows that see the prompt, and the others' outputs are put together from what is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from asdm_cli.errors import ModelError
from asdm_cli.patches.base import (
    PROMPT,
    CallHook,
    Configs,
    Layer,
    Live,
    Load,
    Patch,
    Stats,
    Trajectory,
    call_around,
    check_pipeline,
    in_force,
    inside,
    sample_and_timestep,
    stats_of,
)
from asdm_cli.patches.rows import Views, take_rows
from asdm_cli.patches.unet_schedule import assign
from asdm_cli.recipe.patches import GuidanceScheduleSpec, Segment, Switching

NAME = "asdm_guidance"
HALVES = ("unconditional", PROMPT)
THIRDS = (PROMPT, "image", "unconditional")
GROUPS: dict[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": HALVES,
    "StableDiffusionImg2ImgPipeline": HALVES,
    "StableDiffusionInpaintPipeline": HALVES,
    "StableDiffusionDepth2ImgPipeline": HALVES,
    "StableDiffusionUpscalePipeline": HALVES,
    "StableDiffusionAdapterPipeline": HALVES,
    "StableDiffusionControlNetPipeline": HALVES,
    "StableDiffusionControlNetImg2ImgPipeline": HALVES,
    "StableDiffusionControlNetInpaintPipeline": HALVES,
    "StableDiffusionInstructPix2PixPipeline": THIRDS,
    "StableDiffusionXLPipeline": HALVES,
    "StableDiffusionXLImg2ImgPipeline": HALVES,
    "StableDiffusionXLInpaintPipeline": HALVES,
    "StableDiffusionXLAdapterPipeline": HALVES,
    "StableDiffusionXLControlNetPipeline": HALVES,
    "StableDiffusionXLControlNetImg2ImgPipeline": HALVES,
    "StableDiffusionXLControlNetInpaintPipeline": HALVES,
    "StableDiffusionXLControlNetUnionPipeline": HALVES,
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": HALVES,
    "StableDiffusionXLControlNetUnionInpaintPipeline": HALVES,
    "StableDiffusionXLInstructPix2PixPipeline": THIRDS,
    "LatentConsistencyModelPipeline": (),
    "LatentConsistencyModelImg2ImgPipeline": (),
}
"""diffusers' pipelines -> equal parts of the rows of each UNet call, in order, where there is guidance. A consistency
model reads the scale of its guidance; every row of its calls sees a prompt."""
GUIDED = "do_classifier_free_guidance"
"""What pipelines call the question whether there is any: a property, or a variable of `__call__`."""
INSIDE, OUTSIDE = "inside", "outside"


def groups_by_class(pipe: Any) -> tuple[str, ...]:
    """Raises ModelError for pipelines that the table does not have."""
    if (name := type(pipe).__name__) not in GROUPS:
        raise ModelError(
            f"{name}: which rows of its UNet calls do not see the prompt is not known, so they cannot be left out; "
            "draw without the guidance-schedule, or with one of diffusers' own pipelines of Stable Diffusion and SDXL "
            "for text, images, inpainting, ControlNets or T2I adapters"
        )
    return GROUPS[name]


def guided(spec: GuidanceScheduleSpec, trajectory: Trajectory) -> list[bool]:
    """Whether each call has guidance: an interval is up to three parts in turn."""
    parts = [] if spec.start is None else [Segment(unet=OUTSIDE, until=spec.start)]
    parts.append(Segment(unet=INSIDE, until=spec.until))
    parts += [] if spec.until is None else [Segment(unet=OUTSIDE)]
    names = assign(Switching(by=spec.by, parts=parts), trajectory.places(spec.by, "timestep"))
    return [name == INSIDE for name in names]


def computed_groups(spec: GuidanceScheduleSpec, trajectory: Trajectory) -> tuple[tuple[str, ...], ...]:
    """Of each call's groups of rows, of which the trajectory knows, those that are computed."""
    assert trajectory.rows is not None, "they are known"
    if not any(len(groups) > 1 for groups in trajectory.rows):
        return trajectory.rows
    every = zip(trajectory.rows, guided(spec, trajectory), strict=True)
    return tuple(groups if all_of_it or PROMPT not in groups else (PROMPT,) for groups, all_of_it in every)


@dataclass
class GuidanceState:
    """Of one generation: the groups of rows that each call comes with, and those that are computed, which the layer
    inside sees; `inner` is its state."""

    outside: str
    rows: Sequence[tuple[str, ...]]
    computed: Sequence[tuple[str, ...]]
    inner: Any = None
    call: int = -1
    shape: tuple[int, ...] = ()
    views: Views = field(default_factory=dict)
    known: dict[str, Tensor] = field(default_factory=dict)
    """Group -> what `outside` wants of the last call that had all."""

    @property
    def guided_calls(self) -> int:
        """So far."""
        return sum(len(groups) > 1 for groups in self.computed[: self.call + 1])

    def next(self, sample: Tensor) -> slice | None:
        """Which rows of the call that comes are computed; None for all. Raises ModelError where they are others than
        was announced."""
        self.call += 1
        groups, count = self.rows[self.call], len(sample)
        before = self.shape[0] if self.shape else count
        if count != before or count % max(1, len(groups)):
            raise ModelError(
                f"a UNet call has {count} rows, after {before}, in {len(groups)} groups: something (a callback?) "
                "changes guidance within a generation, and so does the guidance-schedule; leave one of the two out"
            )
        if tuple(sample.shape) != self.shape:
            self.shape = tuple(sample.shape)
            self.known.clear()
        if groups == self.computed[self.call]:
            return None
        size, at = count // len(groups), groups.index(PROMPT)
        return slice(at * size, (at + 1) * size)

    def answer(self, output: Tensor) -> Tensor:
        """All rows of this call, of which those that are computed have this output."""
        groups = self.rows[self.call]
        if groups == self.computed[self.call]:
            self._keep(output)
            return output
        return torch.cat([output if group == PROMPT else self._forecast(group, output) for group in groups])

    def _keep(self, output: Tensor) -> None:
        """What the next call wants, where that does without."""
        groups, later = self.rows[self.call], self.call + 1
        goes_on = self.rows[later : later + 1] == self.computed[later : later + 1]
        if goes_on or self.outside == "conditional" or PROMPT not in groups:
            return
        parts = dict(zip(groups, output.chunk(len(groups)), strict=True))
        prompt = parts.pop(PROMPT)
        self.known = {
            group: part.clone() if self.outside == "reuse" else part - prompt for group, part in parts.items()
        }

    def _forecast(self, group: str, prompt: Tensor) -> Tensor:
        if group not in self.known:
            return prompt
        return self.known[group] if self.outside == "reuse" else prompt + self.known[group]


class GuidanceSchedule(Live):
    """On a UNet, around whatever else is in force on it."""

    layer = Layer.GUIDANCE
    outside = (
        "this UNet carries a guidance-schedule and was called outside a generation, so nobody knows which rows see the "
        "prompt; draw with the pipeline, or take it off: asdm_cli.remove(pipe)"
    )

    def __init__(self, unet: nn.Module, spec: GuidanceScheduleSpec):
        super().__init__()
        self.unet, self.spec = unet, spec
        self.attach(unet, CallHook(self, self.call), NAME)

    def begin(self, trajectory: Trajectory) -> GuidanceState:
        """Where every call has all its rows, the layer inside is told nothing of them: it does what it does alone."""
        rows = trajectory.rows or (self._groups(),) * trajectory.calls
        computed = computed_groups(self.spec, replace(trajectory, rows=rows))
        state = GuidanceState(self.spec.outside, rows, computed)
        if inner := inside(self, self.unet):
            less = trajectory.part(range(trajectory.calls), computed)
            state.inner = inner.begin(trajectory if computed == rows else less)
        return state

    def _groups(self) -> tuple[str, ...]:
        pipe, variables = call_around(self)
        if pipe is None:
            raise ModelError(self.outside)
        groups = groups_by_class(pipe)
        return groups if variables.get(GUIDED, getattr(pipe, GUIDED, False)) else ()

    def end(self, states: Sequence[GuidanceState]) -> None:
        if inner := inside(self, self.unet):
            inner.end([state.inner for state in states])
            inner.thread.handed = inner.thread.step = None
        self.last = Stats(figures={"guided_calls": states[0].guided_calls})

    def call(self, forward: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        state, arguments, named = self._before(arguments, named)
        return self._after(state, forward(*arguments, **named))

    @torch.compiler.disable
    def _before(
        self, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[GuidanceState, tuple[Any, ...], dict[str, Any]]:
        sample, timestep = sample_and_timestep(arguments, named)
        state: GuidanceState = self.arriving(timestep)
        if (part := state.next(sample)) is not None:
            arguments, named = take_rows(arguments, named, part, state.views)
        if inner := inside(self, self.unet):
            inner.thread.handed = state.inner
        return state, arguments, named

    @torch.compiler.disable
    def _after(self, state: GuidanceState, output: Any) -> Any:
        computed, whole = output[0], state.answer(output[0])
        if whole is computed:
            return output
        return (whole,) if isinstance(output, tuple) else UNet2DConditionOutput(sample=whole)


class GuidanceSchedulePatch(Patch[GuidanceScheduleSpec]):
    layer = Layer.GUIDANCE

    def check(self, configs: Configs, others: Sequence[Patch[Any]]) -> list[str]:  # noqa: ARG002 - every patch's
        faults = []
        if any(other.layer == Layer.GUIDANCE for other in others):
            faults.append("guidance is changed twice; leave one of the two out")
        for other in others:
            if other.layer == Layer.MODULE:
                faults.append(f"a {other.spec.kind} does not know of rows that are left out; leave it or guidance out")
        return faults

    @contextmanager
    def apply(self, pipe: Any, load: Load) -> Iterator[Callable[[], Stats]]:  # noqa: ARG002 - every patch's signature
        check_pipeline(pipe)
        groups_by_class(pipe)
        live = in_force(pipe, GuidanceSchedule(pipe.unet, self.spec))
        try:
            yield partial(stats_of, pipe)
        finally:
            live.remove()


patch = GuidanceSchedulePatch
