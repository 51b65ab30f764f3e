"""Plans on pipelines of one UNet or several: put in force, taken off, and what they did in the last drawing."""

from __future__ import annotations

from collections.abc import Mapping

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from asdm_cli.inheritance import pipelines
from asdm_cli.inheritance.course import Nodes, Resting
from asdm_cli.inheritance.engine import Engine
from asdm_cli.recipe.patches import Rules
from asdm_cli.switching.pipelines import switched
from asdm_cli.switching.unet import SwitchedUNet

UNET = "unet"
"""The name of a pipeline's only UNet."""


class Handle(pipelines.InForce):
    """Plans that are in force on the UNets of `pipe`."""

    def __init__(self, pipe: DiffusionPipeline, unet: SwitchedUNet):
        self.pipe, self.unet = pipe, unet

    def remove(self) -> None:
        """Every UNet as it was; they still take turns. May be called again."""
        self.unet.disinherit()


def inherit(pipe: DiffusionPipeline, plan: Rules | Nodes) -> Handle | pipelines.Handle:
    """A plan for every UNet of a pipeline. Raises ModelError where it does not fit one, or one has a plan already."""
    unet = switched(pipe)
    if unet is None:
        return pipelines.attach(pipe, plan)
    rules = plan.plan if isinstance(plan, Nodes) else plan
    unet.inherit(dict.fromkeys(unet.names, rules))
    return Handle(pipe, unet)


def remove(pipe: DiffusionPipeline) -> None:
    """Take off whatever plans are in force, also those of a loaded model; nothing if there is none."""
    unet = switched(pipe)
    if unet is None:
        pipelines.detach(pipe)
    else:
        unet.disinherit()


def engines(pipe: DiffusionPipeline) -> Mapping[str, Engine]:
    """The engine of every UNet that inherits, by its name; empty where none does."""
    unet = switched(pipe)
    if unet is not None:
        return unet.engines
    engine = pipelines.engine_of(pipe)
    return {} if engine is None else {UNET: engine}


def last_steps(pipe: DiffusionPipeline) -> Mapping[str, list[Resting]]:
    """What rested at each call of the last drawing, by the name of the UNet that served it; of those that inherit."""
    unet = switched(pipe)
    return unet.last_steps if unet is not None else {name: each.last_steps for name, each in engines(pipe).items()}


def last_cache_bytes(pipe: DiffusionPipeline) -> int:
    """Bytes kept at the end of the last drawing; where UNets took turns, at the end of that stretch which kept most,
    as what one kept goes when another begins."""
    unet = switched(pipe)
    return unet.last_cache_bytes if unet is not None else sum(each.last_cache_bytes for each in engines(pipe).values())
