"""What is measured of players: the pictures of each, what an image takes, and times side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from asdm_cli.console import track
from asdm_cli.inheritance.course import Resting
from asdm_cli.measure.contestants import blame, image_call, networks
from asdm_cli.measure.drawing import Share, Style, draw
from asdm_cli.measure.latency import stopwatch, turns
from asdm_cli.measure.pictures import PictureSet
from asdm_cli.measure.players import Player, on_stage
from asdm_cli.measure.trajectory import Trajectory, count
from asdm_cli.switching.inheriting import engines, last_cache_bytes, last_steps
from asdm_cli.switching.pipelines import switched


@dataclass(frozen=True)
class Cost:
    """What one image takes: multiply-accumulates at the dispatcher, the rules that rested at each UNet call (plans
    of ours only; of several UNets, the calls of the first), and the bytes that were kept at its end."""

    trajectory: Trajectory
    steps: tuple[Resting, ...]
    cache_bytes: int | None
    full: int | None = None
    """UNet calls that were computed in full, by whichever UNet; None where nobody inherits by a plan of ours."""
    served: tuple[str, ...] = ()
    """Who served each UNet call, where several UNets take turns."""


@dataclass
class Times:
    """Seconds of each round: the whole image, and the UNet's part of it."""

    image: list[float] = field(default_factory=list)
    unet: list[float] = field(default_factory=list)


def draw_share(
    pipe: DiffusionPipeline, player: Player, prompts: Sequence[str], style: Style, target: PictureSet, share: Share
) -> None:
    """Draw this process's missing pictures of one player."""
    wanted = target.missing(share.of(range(target.count), style.batch))
    if not wanted:
        return
    own_style = replace(style, steps=player.steps, alone=player.package is not None)
    with blame(player.name, "drawing"), on_stage(pipe, player):
        for index, picture in draw(player.name, pipe, prompts, wanted, own_style):
            target.save(index, picture)


def cost(pipe: DiffusionPipeline, player: Player, style: Style) -> Cost:
    with on_stage(pipe, player):
        call = image_call(pipe, 1, player.steps, style.guidance, style.size)
        trajectory = count(player.name, networks(pipe), call)
        unets = switched(pipe)
        served = unets.last_served if unets else ()
        if not engines(pipe):
            return Cost(trajectory, (), None, served=served)
        rested = last_steps(pipe)
        first = rested.get(next(iter(engines(pipe))), [])
        full = sum(not resting for steps in rested.values() for resting in steps)
        return Cost(trajectory, tuple(first), last_cache_bytes(pipe), full, served)


def take_turns(
    pipe: DiffusionPipeline, players: Sequence[Player], style: Style, warmups: int, rounds: int
) -> Mapping[str, Times]:
    """One image a round with everybody in turn; putting a player on the stage is not timed."""
    by_name = {player.name: player for player in players}
    times = {name: Times() for name in by_name}
    seconds = stopwatch(style.device)
    for name in track(turns(list(by_name), warmups + rounds), "timing images", len(by_name) * (warmups + rounds)):
        player = by_name[name]
        with blame(name, "timing images"), on_stage(pipe, player), _unet_clock(pipe, style.device) as unet:
            times[name].image.append(seconds(image_call(pipe, 1, player.steps, style.guidance, style.size)))
        times[name].unet.append(sum(unet()))
    return {name: Times(each.image[warmups:], each.unet[warmups:]) for name, each in times.items()}


@contextmanager
def _unet_clock(pipe: Any, device: torch.device) -> Iterator[Any]:
    """Yields a function that gives the seconds of each UNet call so far, hooks of plans included."""
    marks: list[Any] = []
    stamp = _cuda_stamp if device.type == "cuda" else time.perf_counter
    elapsed = _cuda_elapsed if device.type == "cuda" else lambda start, end: end - start
    hooks = (
        pipe.unet.register_forward_pre_hook(lambda *_: marks.append(stamp())),
        pipe.unet.register_forward_hook(lambda *_: marks.append(stamp())),
    )
    try:
        yield lambda: [elapsed(*pair) for pair in zip(marks[::2], marks[1::2], strict=True)]
    finally:
        for hook in hooks:
            hook.remove()


def _cuda_stamp() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _cuda_elapsed(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    end.synchronize()
    return start.elapsed_time(end) / 1e3
