"""What UNet calls of set-ups cost: on paper, in time side by side, block by block, in memory; and those of plans,
pattern by pattern, beside the bound that their multiply-accumulates set."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch

from asdm_cli.compare.setup import Session, Setup, image_call, networks, twin
from asdm_cli.console import note, track
from asdm_cli.errors import blame
from asdm_cli.models.schedulers import strength_of
from asdm_cli.patches.base import Trajectory
from asdm_cli.patches.cache_plan import ResolvedPlan, Reused, resolve
from asdm_cli.patches.feature_cache import FeatureCache
from asdm_cli.patches.guidance import GROUPS, HALVES
from asdm_cli.profiling.expected import Work
from asdm_cli.profiling.latency import (
    block_seconds,
    quartiles,
    round_robin,
    speedup,
    stopwatch,
    time_interleaved,
)
from asdm_cli.profiling.memory import FEW_STEPS, in_fresh_process, measure_memory
from asdm_cli.recipe.verbs import OnDevice
from asdm_cli.records import Record
from asdm_cli.unet.flops import Macs, countable, inputs, macs, macs_of, parameters

FULL: Reused = frozenset()
Groups = tuple[str, ...]
"""Of rows."""
Seconds = Mapping[str, list[float]]


@dataclass(frozen=True)
class Rounds:
    """How often things are timed, and with how many images at once; `size` in pixels."""

    repeats: int
    warmups: int
    batches: tuple[int, ...] = (1,)
    size: int | None = None


def on_paper(setup: Setup, size: int | None) -> list[Record]:
    """Parameters, and multiply-accumulates of one call on one latent; by block, or by UNet where several take turns
    (whose calls are not alike), those that serve no call left out."""
    configs, kind = setup.serving, "block" if setup.one_unet else "unet"
    counts = {name: parameters(config) for name, config in configs.items()}
    parts = (
        next(iter(counts.values())) if setup.one_unet else {name: sum(each.values()) for name, each in counts.items()}
    )
    found = [Record(setup.name, "params_m", sum(parts.values()) / 1e6)]
    found += [Record(setup.name, "params_m", count / 1e6, of=f"{kind}/{name}") for name, count in parts.items()]
    for name, config in configs.items():
        counted = macs(config, size=setup.latent(size), tokens=setup.surroundings[1])
        of = "" if setup.one_unet else f"unet/{name}"
        found.append(Record(setup.name, "macs_g", counted.total / 1e9, of=of))
        found.append(Record(setup.name, "plain_macs_g", counted.plain / 1e9, of=of))
        if setup.one_unet:
            found += [Record(setup.name, "macs_g", each / 1e9, of=f"block/{at}") for at, each in counted.blocks.items()]
    return found


def work(setups: Sequence[Setup], images: int, rounds: Rounds | None, size: int | None, recipe: OnDevice) -> Work:
    """Of the UNets, when everybody draws so many images, then one to be counted, and those of timed rounds; at most,
    where patches leave something out: as if none did, and the largest of several UNets served all calls."""
    total, timed = 0, (rounds.repeats + rounds.warmups) * sum({1, *rounds.batches}) if rounds else 0
    for setup in setups:
        latent, tokens = setup.latent(size), setup.surroundings[1]
        call = max(macs(each, setup.rows, latent, tokens).total for each in setup.configs.values())
        total += call * (setup.calls * (images + 1 + timed) if setup.draws else timed)
    first = setups[0]
    at_most = any(setup.patches for setup in setups)
    return Work(total, first.config, first.latent(size), first.surroundings[1], recipe.device, recipe.dtype, at_most)


def ratios(metric: str, seconds: Seconds, of: str = "") -> list[Record]:
    """Speed-ups over the first, from times of the same rounds."""
    first = next(iter(seconds))
    return [
        Record(name, metric, *speedup(seconds[first], taken), of=of, against=first, n=len(taken))
        for name, taken in seconds.items()
        if name != first
    ]


def times(metric: str, seconds: Seconds, of: str = "") -> list[Record]:
    """Milliseconds."""
    return [Record(name, metric, *quartiles(taken, 1e3), of=of, n=len(taken)) for name, taken in seconds.items()]


def three_ways(speedups: Sequence[Record]) -> list[Record]:
    """The ways in which the ratios are published besides: per cent of time saved, and of more work in the same time."""
    ways = {"latency_cut_pct": lambda ratio: 1 - 1 / ratio, "throughput_gain_pct": lambda ratio: ratio - 1}
    return [
        Record(each.setup, metric, 100 * way(each.value), of=f"of/{each.metric}", against=each.against)
        for each in speedups
        for metric, way in ways.items()
    ]


def unet_calls(session: Session, setups: Sequence[Setup], rounds: Rounds) -> list[Record]:
    """Of set-ups of one UNet without their patches; those of one body are timed once, with as many rows."""
    bodies: dict[Any, Setup] = {}
    for setup in setups:
        bodies.setdefault((setup.body, setup.rows), setup)
    by_name = {one.name: one for one in bodies.values()}
    found: list[Record] = []
    for batch in sorted({1, *rounds.batches}):
        works = {one.name: _call(session, one, rounds.size, batch) for one in bodies.values()}
        taken = time_interleaved(
            works,
            warmups=rounds.warmups,
            rounds=rounds.repeats,
            seconds=stopwatch(session.device),
            doing=f"timing UNet calls, batch {batch}",
            around=lambda name: session.present(session.bare(by_name[name])),
        )
        whole = {setup.name: taken[bodies[setup.body, setup.rows].name] for setup in setups}
        of = "" if batch == 1 else f"batch/{batch}"
        speeds = ratios("unet_speedup", whole, of)
        found += [*times("unet_ms", whole, of), *speeds, *([] if of else three_ways(speeds))]
        for name, seconds in whole.items():
            found.append(Record(name, "steps_per_s", batch / median(seconds), of=f"batch/{batch}"))
    return found


def by_block(session: Session, setups: Sequence[Setup], size: int | None) -> list[Record]:
    """Where a UNet call's time goes."""
    found = []
    for setup in {each.body: each for each in reversed(setups)}.values():
        note(f"{setup.name}: profiling its blocks")
        with blame(setup.name, "profiling its blocks"), session.present(session.bare(setup)) as unet:
            taken = block_seconds(unet, setup.config, _call(session, setup, size, 1), session.device)
        found += [Record(setup.name, "unet_ms", 1e3 * each, of=f"block/{at}") for at, each in taken.items()]
    return found


def memory(session: Session, setup: Setup, size: int | None) -> list[Record]:
    """Of one whole image where the set-up draws, of few steps unless patches make its calls unlike; else of one UNet
    call of one image. On the CPU in a process of its own."""
    note(f"{setup.name}: measuring memory")
    if session.device.type == "cpu":
        found = in_fresh_process(setup.name, _measured, setup, session.device, session.dtype, size)
    else:
        found = _measured(setup, session.device, session.dtype, size, session)
    weights, peak = found
    return [Record(setup.name, "weights_mb", weights / 1e6), Record(setup.name, "peak_memory_mb", peak / 1e6)]


def _measured(
    setup: Setup, device: torch.device, dtype: torch.dtype, size: int | None, session: Session | None = None
) -> tuple[int, int]:
    session = session or Session(device, dtype)
    with ExitStack() as stack:
        if setup.draws:
            pipe, _ = stack.enter_context(session.stage(setup))
            few = math.ceil(FEW_STEPS / strength_of(setup.kind, setup.strength))
            fewer = setup if setup.patches else replace(setup, steps=min(setup.steps, few))
            work = image_call(pipe, fewer, size)
            components = list(networks(pipe).values())
        else:
            components = [stack.enter_context(session.present(session.bare(setup)))]
            work = _call(session, setup, size, 1)
        with blame(setup.name, "running once to measure its memory"):
            found = measure_memory(components, work, device)
    return found.weights, found.peak


def _call(session: Session, setup: Setup, size: int | None, images: int) -> Callable[[], None]:
    """A UNet call of so many images, on latents of noise, where the UNet is present."""
    unet, count = session.bare(setup), images * setup.rows
    shape = setup.latent(size), setup.surroundings[1], session.device, session.dtype
    arguments = inputs(setup.config, count, *shape)

    @torch.inference_mode()
    def call() -> None:
        unet(**arguments, return_dict=False)

    return call


class Pattern(NamedTuple):
    """What a UNet call costs depends on: the rules whose nodes are reused, and the groups of rows that are computed,
    where guidance leaves some out; else none are named, and all are."""

    reused: Reused
    groups: Groups = ()

    @property
    def words(self) -> str:
        names = ", ".join(f"rules[{rule}]" for rule in sorted(self.reused)) or "nothing"
        return f"{names}; {' and '.join(self.groups)} rows" if self.groups else names


def patterns(resolved: ResolvedPlan, calls: int, groups: Sequence[Groups] = ()) -> Counter[Pattern]:
    """How many calls of a generation have which pattern; empty where that is decided while it runs. `groups` of each
    call: one with rows that were not there before computes everything."""
    steps, seen = resolved.steps(calls), set[str]()
    if None in steps.keys:
        return Counter()
    found: Counter[Pattern] = Counter()
    for call, present in enumerate(groups or [()] * calls):
        found[Pattern(steps.reused(call) if seen.issuperset(present) else FULL, present)] += 1
        seen |= {*present}
    return found


def pattern_macs(config: dict[str, Any], resolved: ResolvedPlan, calls: int, **shape: Any) -> dict[Reused, Macs]:
    """Cost of a call of each pattern that a generation of `calls` may have; `shape` as `flops.inputs` has it.

    A full call is one that has a past: what is computed once a generation is left out.
    """
    unet = countable(config)
    cache, steps = FeatureCache(unet, resolved), resolved.steps(calls).digest()
    arguments = {**inputs(config, **shape), "timestep": 500}
    with torch.no_grad(), cache.generation(_evenly(steps)):
        return {steps.reused(call): macs_of(unet, arguments) for call in range(steps.calls)}


def plan_calls(session: Session, setups: Sequence[Setup], rounds: Rounds) -> list[Record]:
    """UNet calls of set-ups with a plan, of each pattern, beside plain ones of the first set-up of one UNet, in turn;
    and over a generation what is saved of the bound. Nothing where none has a plan."""
    planned = [setup for setup in setups if setup.cache is not None and (setup.sees_all or setup.kind)]
    if not planned:
        return []
    first = next(setup for setup in setups if setup.one_unet)
    caches = {setup.name: _planned(session, setup) for setup in planned}
    taken: dict[str, dict[Pattern, list[float]]] = {name: {} for name in (PLAIN_CALL, *caches)}
    order = round_robin(list(taken), rounds.warmups + rounds.repeats)
    for number, name in enumerate(
        track(order, "timing UNet calls of plans", len(taken) * (rounds.warmups + rounds.repeats))
    ):
        setup = first if name == PLAIN_CALL else next(each for each in planned if each.name == name)
        with blame(setup.name, "timing UNet calls of its plan"):
            seconds = _one_round(session, setup, caches.get(name), rounds)
        for pattern, each in seconds.items() if number >= rounds.warmups * len(taken) else ():
            taken[name].setdefault(pattern, []).append(each)
    plain = taken[PLAIN_CALL][Pattern(FULL)]
    whole = macs(first.config, size=first.latent(rounds.size), tokens=first.surroundings[1])
    return [
        record
        for setup in planned
        for record in _of_plan(setup, caches[setup.name], taken[setup.name], plain, whole, first, rounds)
    ]


PLAIN_CALL = " plain call"
"""No set-up has this name."""


def _planned(session: Session, setup: Setup) -> FeatureCache:
    assert setup.cache is not None, "asked for only where there is a plan"
    return FeatureCache(twin(session.bare(setup)), resolve(setup.cache, setup.config))


def _groups(setup: Setup) -> tuple[Groups, ...]:
    """Of each call; of none where all are always computed."""
    return () if setup.sees_all else setup.computed


def _one_round(session: Session, setup: Setup, cache: FeatureCache | None, rounds: Rounds) -> dict[Pattern, float]:
    """Seconds of a call of each pattern. The first of all has no past, and one like it follows."""
    shape = setup.latent(rounds.size), setup.surroundings[1], session.device, session.dtype
    unet, seconds = (cache.unet if cache else session.bare(setup)), stopwatch(session.device)
    groups = sorted({*_groups(setup)}, key=len, reverse=True) or [()]
    of_groups = {each: inputs(setup.config, _rows(setup, each), *shape) for each in groups}

    @torch.no_grad()  # as pipelines call: their tensors are no inference tensors
    def call(present: Groups) -> None:
        unet(**of_groups[present], return_dict=False)

    if cache is None:
        with session.present(unet):
            return {Pattern(FULL): seconds(partial(call, groups[0]))}
    digest = cache.resolved.steps(setup.calls).digest()
    reused = [digest.reused(number) for number in range(digest.calls)]
    order = [Pattern(FULL, groups[0]), *(Pattern(each, present) for present in groups for each in reused[1:])]
    steps = digest.following([pattern.reused for pattern in order])
    rows = tuple(pattern.groups for pattern in order) if groups[0] else None
    with session.present(unet), cache.generation(replace(_evenly(steps), rows=rows)):
        return {pattern: seconds(partial(call, pattern.groups)) for pattern in order}


def _rows(setup: Setup, present: Groups) -> int:
    """Latents of a call with these groups of rows; with none, of all."""
    every = len(GROUPS.get(setup.kind, HALVES))
    return setup.rows * len(present) // every if present else setup.rows


def _evenly(steps: Any) -> Trajectory:
    """Time axes where there is no scheduler: what an extrapolation multiplies with changes no cost."""
    return Trajectory(steps.calls, lambda *_: range(steps.calls), plan=steps)


def _of_plan(  # noqa: PLR0913 - what was measured of a plan, and beside what
    setup: Setup,
    cache: FeatureCache,
    taken: Mapping[Pattern, list[float]],
    plain: list[float],
    whole: Macs,
    first: Setup,
    rounds: Rounds,
) -> Iterator[Record]:
    shape = {"size": setup.latent(rounds.size), "tokens": setup.surroundings[1]}
    macs_by = pattern_macs(setup.config, cache.resolved, setup.calls, **shape)
    counts = patterns(cache.resolved, setup.calls, _groups(setup))
    shares = {
        pattern: median(mine / theirs for mine, theirs in zip(each, plain, strict=True))
        for pattern, each in taken.items()
    }
    against = first.name
    on_paper = {each: macs_by[each.reused].total * _rows(setup, each.groups) / first.rows for each in taken}
    for pattern, seconds in taken.items():
        of = f"inherited/{pattern.words}"
        yield Record(setup.name, "unet_ms", *quartiles(seconds, 1e3), of=of, n=len(seconds))
        yield Record(setup.name, "macs_share", on_paper[pattern] / whole.total, of=of, against=against)
        yield Record(setup.name, "time_share", shares[pattern], of=of, against=against)
        if counts:
            yield Record(setup.name, "calls", counts[pattern], of=of)
    if counts:
        share = sum(count * on_paper[pattern] for pattern, count in counts.items()) / (first.calls * whole.total)
        time = sum(count * shares[pattern] for pattern, count in counts.items()) / first.calls
        whole_image = {"macs_share": share, "time_share": time, "denoising_speedup": 1 / time}
        if share < 1:
            whole_image["bound_share"] = (1 - time) / (1 - share)
        for metric, value in whole_image.items():
            yield Record(setup.name, metric, value, of="generation/UNet calls", against=against)
        if not setup.draws:  # of those that do it is measured
            yield Record(setup.name, "denoising_speedup", 1 / time, against=against)
    yield Record(setup.name, "cache_mb", (cache.stats().cache_bytes or 0) / 1e6, of="generation/UNet calls")
