"""A plan on a whole pipeline: each call of the pipeline is one generation. No pipeline's own code is restated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, Self

from diffusers import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.torch_utils import unwrap_module

from asdm_cli.errors import ModelError
from asdm_cli.inheritance.course import Nodes
from asdm_cli.inheritance.engine import Engine
from asdm_cli.inheritance.noise import coordinates
from asdm_cli.recipe.plans import Rules

MARK = "_asdm_engine"


class InForce(ABC):
    """Something that is in force on a pipeline until `remove()`, or to the end of a `with` block."""

    @abstractmethod
    def remove(self) -> None:
        """What it was before. May be called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class Handle(InForce):
    """A plan that is in force on `pipe`."""

    def __init__(self, pipe: DiffusionPipeline, engine: Engine):
        self.pipe, self.engine = pipe, engine

    def remove(self) -> None:
        """Pipeline and UNet as they were. May be called again."""
        self.engine.remove()
        if getattr(type(self.pipe), MARK, None) is self.engine:
            self.pipe.__class__ = type(self.pipe).__bases__[0]


def attach(pipe: DiffusionPipeline, plan: Rules | Nodes) -> Handle:
    """Raises ModelError where the plan does not fit the pipeline's UNet."""
    check_unet(pipe)
    engine = Engine(pipe.unet, plan)
    pipe.__class__ = subclass(type(pipe), partial(_generation, engine), **{MARK: engine})
    return Handle(pipe, engine)


def check_unet(pipe: Any) -> None:
    """ModelError unless this is a pipeline whose UNet is of the class that Stable Diffusion's are of."""
    name = type(pipe).__name__
    if not isinstance(pipe, DiffusionPipeline):
        raise ModelError(f"{name}: is no diffusers pipeline; give a Stable Diffusion pipeline")
    if (unet := getattr(pipe, "unet", None)) is None:
        why = " (it has a transformer, and DiTs are not supported)" if getattr(pipe, "transformer", None) else ""
        raise ModelError(f"{name}: is no pipeline with a UNet{why}; give a Stable Diffusion 1.x, 2.x or SDXL pipeline")
    check_class(f"{name}: its UNet", unet)


def check_class(what: str, unet: Any) -> None:
    """ModelError unless `what` is a UNet2DConditionModel."""
    if not isinstance(inner := unwrap_module(unet), UNet2DConditionModel):
        kind = type(inner).__name__
        raise ModelError(f"{what} is a {kind}; only UNet2DConditionModel, as Stable Diffusion has it, is supported")


def detach(pipe: DiffusionPipeline) -> None:
    """Take off whatever plan is in force, also that of a loaded model; nothing if there is none."""
    engine = engine_of(pipe)
    if engine is not None:
        Handle(pipe, engine).remove()


def engine_of(pipe: DiffusionPipeline) -> Engine | None:
    return getattr(type(pipe), MARK, None)


def _generation(engine: Engine, pipe: Any) -> AbstractContextManager[None]:
    return engine.generation(partial(unet_calls, pipe), partial(coordinates, pipe.scheduler))


def unet_calls(pipe: Any) -> int:
    """UNet calls of the drawing under way; known from its first UNet call on."""
    return getattr(pipe, "_num_timesteps", 0) or len(pipe.scheduler.timesteps)


def subclass(
    kind: type[DiffusionPipeline], generation: Callable[[Any], AbstractContextManager[object]], **attributes: object
) -> type[DiffusionPipeline]:
    """A subclass under the same name, with these attributes, each call of which runs inside `generation(pipe)`.

    `pipe(...)` looks its `__call__` up on the class, nowhere else.
    """

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with generation(self):
            return kind.__call__(self, *args, **kwargs)

    call.__doc__, call.__wrapped__ = kind.__call__.__doc__, kind.__call__  # type: ignore[attr-defined]
    names = {"__call__": call, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), {**names, **attributes})
