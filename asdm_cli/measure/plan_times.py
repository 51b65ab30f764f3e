"""What the UNet calls of a plan cost, pattern by pattern: multiply-accumulates without a device, and times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from asdm_cli.console import track
from asdm_cli.inheritance.course import Nodes, Resting
from asdm_cli.inheritance.engine import Engine
from asdm_cli.measure.contestants import Contestant, Protocol, blame, first_of_one
from asdm_cli.measure.latency import stopwatch, turns
from asdm_cli.unet.cost import Macs, inputs, macs_of, meta_unet

FULL: Resting = frozenset()


@dataclass
class CallTimes:
    """Seconds of each round's calls: the plain one's, or those of every pattern; and the bytes kept at the end."""

    by_pattern: dict[Resting, list[float]] = field(default_factory=dict)
    cache_bytes: int = 0


PlanTimes = Mapping[str, CallTimes]


def patterns(nodes: Nodes, calls: int) -> Counter[Resting]:
    """How many calls of a generation have which pattern; empty where that is decided while it runs."""
    course = nodes.course(calls)
    known = None not in course.keys
    return Counter(course.resting(call) for call in range(calls)) if known else Counter()


def pattern_macs(config: dict[str, Any], nodes: Nodes, calls: int, **shape: Any) -> dict[Resting, Macs]:
    """Cost of a call of each pattern that a generation of `calls` may have; `shape` as `cost.inputs` has it.

    A full call is one that has a past: what is computed once a generation is left out.
    """
    unet = meta_unet(config).eval()
    engine, course = Engine(unet, nodes), nodes.course(calls).digest()
    arguments = {**inputs(config, **shape), "timestep": 500}
    with torch.no_grad(), engine.generation(course, _evenly):
        return {course.resting(call): macs_of(unet, arguments) for call in range(course.calls)}


def time_plans(contestants: Sequence[Contestant], protocol: Protocol) -> PlanTimes:
    """Contestants with plans beside the first one of one UNet, in turn; nothing where none has a plan."""
    if all(one.engine is None for one in contestants):
        return {}
    plain = first_of_one(one.entrant for one in contestants)
    playing = {one.name: one for one in contestants if one.engine is not None or one.entrant is plain}
    times = {name: CallTimes() for name in playing}
    rounds = protocol.warmups + protocol.repeats
    order = turns(list(playing), rounds)
    for number, name in enumerate(track(order, "timing UNet calls of plans", len(playing) * rounds)):
        with blame(name, "timing UNet calls of its plan"):
            taken = _one_round(playing[name], protocol)
        for pattern, seconds in taken.items() if number >= protocol.warmups * len(playing) else ():
            times[name].by_pattern.setdefault(pattern, []).append(seconds)
        engine = playing[name].engine
        times[name].cache_bytes = engine.last_cache_bytes if engine else 0
    return times


def _one_round(one: Contestant, protocol: Protocol) -> dict[Resting, float]:
    seconds, call = stopwatch(protocol.device), _call(one)
    if one.engine is None:
        return {FULL: seconds(call)}
    course = one.engine.nodes.course(one.entrant.calls).digest()
    with one.engine.generation(course, _evenly):
        return {course.resting(number): seconds(call) for number in range(course.calls)}


def _call(one: Contestant) -> Any:
    """Like `Contestant.unet_call`, but as pipelines call: their tensors are no inference tensors."""
    arguments = one.unet_inputs(1)

    @torch.no_grad()
    def call() -> None:
        one.unet(**arguments, return_dict=False)

    return call


def _evenly(_coordinate: str, calls: int, _first: float) -> range:
    """Noise levels where there is no scheduler: what a forecast multiplies with changes no cost."""
    return range(calls)
