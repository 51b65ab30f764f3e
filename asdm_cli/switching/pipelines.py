"""Several UNets in a pipeline: each call of the pipeline is one generation. No pipeline's own code is restated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from asdm_cli.errors import ModelError
from asdm_cli.inheritance.course import Nodes
from asdm_cli.inheritance.pipelines import InForce, check_unet, engine_of, subclass, unet_calls
from asdm_cli.recipe.patches import Idle, Part, Rules, Switching
from asdm_cli.switching.unet import SwitchedUNet

MARK = "_asdm_switched"


class Handle(InForce):
    """UNets that take turns in `pipe`."""

    def __init__(self, pipe: DiffusionPipeline, unet: SwitchedUNet, before: UNet2DConditionModel):
        self.pipe, self.unet, self.before = pipe, unet, before

    def remove(self) -> None:
        """The pipeline as it was, on its device; no UNet inherits. May be called again."""
        self.unet.disinherit()
        if getattr(type(self.pipe), MARK, None) is self.unet:
            self.before.to(self.unet.device)
            whole: Any = self.pipe
            whole.unet = self.before
            self.pipe.__class__ = type(self.pipe).__bases__[0]


def attach(
    pipe: DiffusionPipeline,
    unets: Mapping[str, UNet2DConditionModel],
    rules: Switching,
    plans: Mapping[str, Rules | Nodes] | None = None,
    idle: Idle = "stay",
) -> Handle:
    """The first UNet is the pipeline's own, or takes its place. Raises ModelError with all that does not fit."""
    check_free(pipe)
    before: Any = pipe.unet
    unet = SwitchedUNet(unets, rules, plans, idle)
    whole: Any = pipe
    whole.unet = unet
    pipe.__class__ = subclass(type(pipe), partial(_generation, unet), **{MARK: unet, "save_pretrained": _not_saved})
    return Handle(pipe, unet, before)


def check_free(pipe: DiffusionPipeline) -> None:
    """ModelError unless this is a pipeline whose UNet may be put in another's place."""
    if switched(pipe) is not None:
        raise ModelError("this pipeline switches already; call remove() on the handle of the earlier switch first")
    check_unet(pipe)
    if engine_of(pipe) is not None:
        raise ModelError("this pipeline inherits; take its plan off (asdm_cli.remove), switch, and inherit then")


def switched(pipe: Any) -> SwitchedUNet | None:
    """The UNets that take turns in this pipeline, if several do."""
    return getattr(type(pipe), MARK, None)


@contextmanager
def scheduled(pipe: DiffusionPipeline, rules: Switching) -> Iterator[None]:
    """Other rules for a while, in a pipeline that switches. Raises ModelError for unknown names."""
    unet = switched(pipe)
    if unet is None:
        raise ModelError("this pipeline has one UNet; give it several first: asdm_cli.switch")
    with unet.ruled(rules):
        yield


def alone(name: str) -> Switching:
    """The rules by which one UNet serves every call."""
    return Switching(by="step", parts=[Part(unet=name)])


def _not_saved(_pipe: DiffusionPipeline, *_: Any, **__: Any) -> None:
    """diffusers would leave out what it does not know, and the directory would lack a UNet."""
    raise ModelError("several UNets take turns here, which diffusers cannot save; `asdm switch` writes such models")


def _generation(unet: SwitchedUNet, pipe: Any) -> AbstractContextManager[None]:
    return unet.generation(partial(unet_calls, pipe), pipe.scheduler)
