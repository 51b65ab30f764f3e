"""A plan on a whole pipeline: each call of the pipeline is one generation. No pipeline's own code is restated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self
from weakref import ref

from diffusers import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.torch_utils import unwrap_module

from asdm_cli.errors import ModelError
from asdm_cli.inheritance.course import Nodes
from asdm_cli.inheritance.engine import COPIED, Engine, engine_on
from asdm_cli.inheritance.noise import coordinates
from asdm_cli.recipe.patches import Rules

MARK = "_asdm_engine"
AGAIN = "put it on again: asdm_cli.remove(pipe), then asdm_cli.inherit(pipe, plan)"


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


def attach(pipe: DiffusionPipeline, plan: Rules | Nodes) -> Handle:
    """Raises ModelError where the plan does not fit the pipeline's UNet."""
    check_unet(pipe)
    engine = Engine(pipe.unet, plan)
    pipe.__class__ = subclass(type(pipe), partial(_generation, engine), **{MARK: engine, "save_pretrained": _not_saved})
    engine.undo.append(partial(_restore, ref(pipe), engine))
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


def _restore(pipe: ref[DiffusionPipeline], engine: Engine) -> None:
    """The class that the pipeline had."""
    held = pipe()
    if held is not None and getattr(type(held), MARK, None) is engine:
        held.__class__ = type(held).__bases__[0]


def detach(pipe: DiffusionPipeline) -> None:
    """Take off whatever plan is in force, also that of a loaded model; nothing if there is none."""
    engine = engine_of(pipe)
    if engine is not None:
        Handle(pipe, engine).remove()


def engine_of(pipe: DiffusionPipeline) -> Engine | None:
    """Of the plan that was put on this pipeline, or on its UNet by way of another one."""
    return getattr(type(pipe), MARK, None) or engine_on(getattr(pipe, "unet", None))


def _not_saved(_pipe: DiffusionPipeline, *_: Any, **__: Any) -> None:
    raise ModelError(
        "a plan is in force here, which diffusers would leave out; take it off first (asdm_cli.remove(pipe)), or let "
        "`asdm inherit` write a model that carries it"
    )


@contextmanager
def _generation(engine: Engine, pipe: Any) -> Iterator[None]:
    """Raises ModelError where the UNet that draws does not know of the plan."""
    with engine.generation(partial(unet_calls, pipe), partial(coordinates, pipe.scheduler)):
        if engine_on(pipe.unet) is not engine:
            raise ModelError(f"the plan on this pipeline is not on its UNet, which was replaced; {AGAIN}")
        yield
        if not engine.called:
            raise ModelError(
                f"the plan saw no call of the UNet, whose hooks were taken off: this is drawn plain; {AGAIN}"
            )


def unet_calls(pipe: Any) -> int:
    """UNet calls of the drawing under way; known from its first UNet call on."""
    return getattr(pipe, "_num_timesteps", 0) or len(pipe.scheduler.timesteps)


def _shallow(pipe: Any) -> Any:
    """`copy.copy`: the same networks, and what is in force on them."""
    made = object.__new__(type(pipe))
    made.__dict__.update(pipe.__dict__)
    return made


def _not_copied(_pipe: Any, _protocol: int) -> Any:
    raise ModelError(COPIED)


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
    names |= {"__copy__": _shallow, "__reduce_ex__": _not_copied}
    return type(kind.__name__, (kind,), {**names, **attributes})
