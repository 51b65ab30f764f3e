"""Ways of drawing with one loaded pipeline, each put in force for as long as it is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from asdm_cli.errors import ModelError
from asdm_cli.inheritance.course import Nodes
from asdm_cli.models.schedulers import set_sampler
from asdm_cli.recipe.patches import Switching
from asdm_cli.switching.inheriting import inherit
from asdm_cli.switching.pipelines import scheduled

PLAIN, ASDM, FEWER, DEEPCACHE = "plain", "asdm", "fewer steps", "DeepCache"


@dataclass(frozen=True)
class Player:
    """The plain model, a plan of ours, or the DeepCache package; `series` is the line of the plot it belongs to."""

    name: str
    series: str
    steps: int
    sampler: str
    nodes: Nodes | None = None
    """Of a plan on the pipeline's UNet; where several take turns on the first, and all draw by its rules."""
    package: tuple[int, int] | None = None
    """DeepCache's cache_interval and cache_branch_id."""
    rules: Switching | None = None
    """Who serves what, where the pipeline's UNets take turns; those of the pipeline itself if left out."""
    place: tuple[str, ...] = field(default=(), compare=False)
    """Where it stands in a table of several dimensions: nodes, mode and interval of a product's players."""


def require_package() -> None:
    if find_spec("DeepCache") is None:
        raise ModelError("the DeepCache package is not installed; pip install 'asdm-cli[peers]', or leave it out")


@contextmanager
def on_stage(pipe: DiffusionPipeline, player: Player) -> Iterator[None]:
    """The pipeline draws as the player does; afterwards it is what it was."""
    whole: Any = pipe
    own = whole.scheduler
    with ExitStack() as undo:
        undo.callback(setattr, pipe, "scheduler", own)
        set_sampler(pipe, player.sampler)
        if player.rules is not None:
            undo.enter_context(scheduled(pipe, player.rules))
        if player.nodes is not None:
            undo.enter_context(inherit(pipe, player.nodes))
        if player.package is not None:
            undo.enter_context(_deepcache(pipe, *player.package, player.steps))
        yield


@contextmanager
def _deepcache(pipe: Any, interval: int, branch: int, steps: int) -> Iterator[None]:
    from DeepCache import DeepCacheSDHelper

    # it finds its step among the timesteps of the scheduler that it was given, whichever scheduler draws
    pipe.scheduler.set_timesteps(steps)
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()
