"""The measurement of `asdm bench`, from entrants to raw figures; `bench_report` makes tables of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from asdm_cli.console import note
from asdm_cli.measure import memory
from asdm_cli.measure.blocks import block_seconds
from asdm_cli.measure.contestants import Contestant, Entrant, Protocol, bodies, build_all
from asdm_cli.measure.latency import Work, stopwatch, take_turns
from asdm_cli.measure.memory import Memory
from asdm_cli.measure.plan_times import PlanTimes, time_plans
from asdm_cli.measure.trajectory import Trajectory, count_image
from asdm_cli.switching.pipelines import switched

Times = dict[int, dict[str, list[float]]]
"""Images at once -> contestant -> seconds of each round."""


@dataclass(frozen=True)
class Profile:
    """One contestant's figures that need no company. `component_parameters` by the pipeline's component names."""

    component_parameters: dict[str, int]
    block_seconds: dict[str, float]
    memory: Memory
    trajectory: Trajectory | None
    sampler: str
    served: tuple[str, ...]
    """Who served each UNet call of the trajectory, where several UNets take turns."""


@dataclass(frozen=True)
class Measurement:
    entrants: tuple[Entrant, ...]
    protocol: Protocol
    profiles: dict[str, Profile]
    unet_times: Times
    """Of the contestants of one UNet."""
    image_times: Times
    plan_times: PlanTimes
    """Of the contestants that inherit, and of the first one beside them."""


def measure(entrants: Sequence[Entrant], protocol: Protocol) -> Measurement:
    """All contestants, side by side; RunError with the name of the one that fails."""
    alone = bodies(entrants)
    memories = {body: _alone(entrant, protocol) for body, entrant in alone.items() if protocol.device.type == "cpu"}
    note(f"loading {len(entrants)} contestants")
    contestants = build_all(entrants, protocol)
    drawing = [contestant for contestant in contestants if contestant.entrant.draws]
    unlike = [contestant for contestant in contestants if contestant.entrant in alone.values()]
    profiles = {one.entrant.body: _profile(one, memories.get(one.entrant.body)) for one in unlike}
    single = [contestant for contestant in unlike if contestant.entrant.switch is None]
    calls = _time(single, protocol, "UNet calls", lambda one, images: one.unet_call(images))
    return Measurement(
        tuple(entrants),
        protocol,
        {entrant.name: profiles[entrant.body] for entrant in entrants},
        {
            images: {one.name: times[alone[one.body].name] for one in entrants if one.switch is None}
            for images, times in calls.items()
        },
        _time(drawing, protocol, "whole images", lambda one, images: one.image_call(images)),
        time_plans(contestants, protocol),
    )


def _alone(entrant: Entrant, protocol: Protocol) -> Memory:
    note(f"{entrant.name}: measuring memory in a process of its own")
    return memory.measure_in_fresh_process(entrant, protocol)


def _profile(contestant: Contestant, known: Memory | None) -> Profile:
    note(f"{contestant.name}: counting and profiling")
    scheduler, unets = getattr(contestant.pipe, "scheduler", None), switched(contestant.pipe)
    return Profile(
        {name: sum(weight.numel() for weight in part.parameters()) for name, part in contestant.components.items()},
        {} if unets else block_seconds(contestant),
        known or memory.measure(contestant),
        count_image(contestant) if contestant.entrant.draws else None,
        type(scheduler).__name__ if scheduler else "",
        unets.last_served if unets else (),
    )


def _time(
    contestants: Sequence[Contestant], protocol: Protocol, what: str, work: Callable[[Contestant, int], Work]
) -> Times:
    """Every batch size is a series of rounds of its own; single images are timed whatever `batches` says."""
    if not contestants:
        return {}
    times: Times = {}
    for images in sorted({1, *protocol.batches}):
        times[images] = take_turns(
            {contestant.name: work(contestant, images) for contestant in contestants},
            warmups=protocol.warmups,
            rounds=protocol.repeats,
            seconds=stopwatch(protocol.device),
            doing=f"timing {what}, batch {images}",
        )
        if protocol.device.type == "cuda":
            torch.cuda.empty_cache()
    return times
