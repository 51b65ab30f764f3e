"""A target ("twice as fast", "at least 35 dB") turned into a plan that was drawn with.

What calls cost is timed once; what a plan costs is added up from that. How near its pictures come is not predicted but
drawn, on the prompts of the calibration. A plan for more calls costs more and comes nearer, so of every family the one
that just meets the target is found by bisection.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from accelerate import PartialState

from asdm_cli.compare.costs import Rounds, plan_calls
from asdm_cli.compare.run import Place, image_times, kept
from asdm_cli.compare.setup import PLAIN, Session, Setup
from asdm_cli.console import note
from asdm_cli.errors import RunError
from asdm_cli.models.schedulers import strength_of
from asdm_cli.profiling.latency import machine, speedup
from asdm_cli.recipe.patches import OUT, CachePlan, CacheRule, Calibrated
from asdm_cli.recipe.verbs import Target
from asdm_cli.sampling.prompts import PromptList
from asdm_cli.search.forecasts import CALIBRATION, calibrate
from asdm_cli.unet.addresses import Anatomy

FEW, MORE = 2, 6
"""Steps of two images: their difference is what a step takes, and what is left is the rest of an image."""
ROUNDS = 5
MINUTES = 10.0
LEAST = 2
"""Calls that are computed in full at least."""
MARGIN = {"psnr": 0.5, "perceptual": 0.005}
"""Beyond a quality that is asked for, as other prompts differ: dB, and distance."""
TRIES = 4
"""So often a plan that turns out slower than it was added up to is exchanged for one of fewer calls."""


@dataclass(frozen=True)
class Costs:
    """Seconds. `rest` of an image without its calls, `step` of a call without its UNet, `full` of a UNet call; and of
    one at which a family's nodes are reused."""

    rest: float
    step: float
    full: float
    reused: Mapping[str, float]

    def image(self, family: str, calls: int, full: int) -> float:
        return self.rest + calls * self.step + full * self.full + (calls - full) * self.reused[family]

    def speedup(self, family: str, calls: int, full: int) -> float:
        return (self.rest + calls * (self.step + self.full)) / self.image(family, calls, full)


@dataclass(frozen=True)
class Tried:
    """A plan that was drawn with: its family, its calls in full, the speed-up that its parts add up to, and its quality
    on prompts that it was not fitted to."""

    family: str
    full: int
    speedup: float
    quality: float
    setup: Setup

    def row(self, metric: str) -> dict[str, Any]:
        """For people."""
        unit = "PSNR dB" if metric == "psnr" else "perceptual distance"
        faster, quality = round(self.speedup, 2), round(self.quality, 2 if metric == "psnr" else 4)
        return {"plan": self.family, "calls in full": self.full, "predicted speed-up": faster, unit: quality}


@dataclass(frozen=True)
class Found:
    """The `best` plan, all that were `tried`, and the `steps` at which the plain model takes as long as the best."""

    best: Tried
    tried: list[Tried]
    steps: int


def families(plain: Setup) -> dict[str, str]:
    """Name -> the nodes that are reused."""
    blocks = [block.address for block in Anatomy.of(plain.config).blocks if block.kind == "up"]
    return {"output": OUT, f"last block, {blocks[-1]}": blocks[-1]}


def plan_of(nodes: str, full: int) -> CachePlan:
    schedule = Calibrated(mode="calibrated", calls=full)
    return CachePlan(rules=[CacheRule(nodes=nodes, schedule=schedule, extrapolate="fitted")])


def find_plan(  # noqa: PLR0913 - what a search depends on, each by its name
    session: Session,
    plain: Setup,
    target: Target,
    minutes: float | None,
    prompts: PromptList,
    place: Place,
    folder: Path,
    state: PartialState,
) -> Found:
    """The best plan that meets the target. By all processes, to the same end; interrupted, it goes on. After so many
    `minutes`, MINUTES if None, nothing is tried that is not needed for one plan that meets it.

    Raises RunError for a target that cannot be had, and says what can.
    """
    known, began = costs(session, plain, place, folder, state), time.monotonic()
    nodes, tried, minutes = families(plain), list[Tried](), minutes or MINUTES

    def draw(family: str, full: int) -> Tried:
        made = plain.with_cache(f"{family}, {full} calls", plan_of(nodes[family], full))
        found = calibrate(session, made, prompts, place, folder, state)
        quality = found.fidelity(target.metric, session, plain, place, folder, state)
        tried.append(Tried(family, full, known.speedup(family, plain.calls, full), quality, found.setup))
        return tried[-1]

    def late() -> bool:
        return time.monotonic() - began > 60 * minutes

    for family in nodes:
        if tried and late():
            note(f"{family}: not tried, the {minutes:g} minutes are over")
            break
        if target.speedup is None:
            bisect(target, plain.calls, partial(draw, family), late)
        elif full := most_calls(known, family, plain.calls, target.speedup):
            draw(family, full)
    best = chosen(target, tried, known, plain.calls)
    for _ in range(TRIES if target.speedup is not None else 0):  # what was added up may be some per cent off
        faster = timed_speedup(session, plain, best.setup, place, folder, state)
        if faster >= (target.speedup or 0) or best.full == LEAST:
            break
        fewer = int(best.full * faster / (target.speedup or faster))
        best = draw(best.family, max(LEAST, min(best.full - 1, fewer)))
    a_step = (known.step + known.full) * plain.calls / plain.steps
    alike = (known.image(best.family, plain.calls, best.full) - known.rest) / a_step
    return Found(best, tried, max(1, round(alike)))


def timed_speedup(
    session: Session, plain: Setup, setup: Setup, place: Place, folder: Path, state: PartialState
) -> float:
    """Of images, in turn with the plain model, by the first process."""
    rounds, names = Rounds(ROUNDS, 1, (1,), place.size), (plain.name, setup.name)

    def taken() -> list[list[float]]:
        times = image_times(session, [plain, setup], rounds, place, 1)
        return [times[name]["image"] for name in names]

    read = partial(_kept_time, session, plain, place, folder / CALIBRATION / f"{setup.name}, times.json", taken)
    if state.is_main_process:
        read()
    state.wait_for_everyone()
    first, mine = read()
    return speedup(first, mine).value


def most_calls(known: Costs, family: str, calls: int, speedup: float) -> int:
    """That may be computed in full; 0 where even the least take too long."""
    fast = [full for full in range(LEAST, calls + 1) if known.speedup(family, calls, full) >= speedup]
    return max(fast, default=0)


def bisect(target: Target, calls: int, draw: Callable[[int], Tried], late: Callable[[], bool] = lambda: False) -> None:
    """Draw with one number of calls after another, until the least that meets the target was drawn with, or it is
    `late` and one that meets it was."""
    low, high = LEAST, calls - 1
    while low <= high:
        middle = (low + high) // 2
        if meets(target, draw(middle).quality):
            high = middle - 1
            if late():
                return
        else:
            low = middle + 1


def meets(target: Target, quality: float, margin: bool = True) -> bool:
    """Whether pictures are near enough; with what other prompts may differ by."""
    beyond = MARGIN[target.metric] if margin else 0
    if target.perceptual is not None:
        return quality <= max(target.perceptual - beyond, target.perceptual / 2)
    return target.psnr_db is None or quality >= target.psnr_db + beyond


def chosen(target: Target, tried: list[Tried], known: Costs, calls: int) -> Tried:
    """Of those that meet the target the nearest pictures at a speed-up, the fastest at a quality."""
    if target.speedup is not None:
        if not tried:
            most = max(known.speedup(family, calls, LEAST) for family in known.reused)
            raise RunError(
                f"target: {target.speedup:g} times as fast cannot be had by leaving out UNet calls: with {LEAST} of "
                f"{calls} it is {most:.2f} times. Ask for less, take fewer `steps`, or prune the model first"
            )
        return max(tried, key=lambda each: -each.quality if target.metric == "perceptual" else each.quality)
    near = [each for each in tried if meets(target, each.quality)]
    near = near or [each for each in tried if meets(target, each.quality, margin=False)]
    if not near:
        best = (min if target.metric == "perceptual" else max)(tried, key=lambda each: each.quality)
        raise RunError(
            f"target: {target.words} cannot be had by leaving out UNet calls: the nearest is {best.quality:.4g} at "
            f"{best.speedup:.2f} times the speed ({best.family}, {best.full} of {calls} calls). Ask for that"
        )
    return max(near, key=lambda each: (each.speedup, each.quality))


def costs(session: Session, plain: Setup, place: Place, folder: Path, state: PartialState) -> Costs:
    """Timed in turn by the first process, and read by all; kept for the next time."""
    file = folder / CALIBRATION / "costs.json"
    read = partial(_kept_time, session, plain, place, file, lambda: asdict(_timed(session, plain, place)))
    if state.is_main_process:
        read()
    state.wait_for_everyone()
    return Costs(**read())


def _kept_time(session: Session, plain: Setup, place: Place, file: Path, make: Callable[[], Any]) -> Any:
    """Of this machine alone."""
    own = machine(place.device)
    del own["date"]
    return kept(file, {"machine": own, "dtype": str(session.dtype), "size": place.size, **plain.origin()}, make)


def _timed(session: Session, plain: Setup, place: Place) -> Costs:
    rounds = Rounds(ROUNDS, 1, (1,), place.size)
    counts = [math.ceil(calls / strength_of(plain.kind, plain.strength)) for calls in (FEW, MORE)]
    few, more = (replace(plain, name=f"{steps} steps", steps=steps) for steps in counts)
    taken = image_times(session, [few, more], rounds, place, 1)
    image, unet = ([median(taken[each.name][part]) for each in (few, more)] for part in ("image", "unet"))
    calls = more.calls - few.calls
    full = max(0.0, unet[1] - unet[0]) / calls
    step = max(full, (image[1] - image[0]) / calls)
    planned = {family: _planned(plain, family, nodes) for family, nodes in families(plain).items()}
    shares = {
        record.setup: record.value
        for record in plan_calls(session, [plain, *planned.values()], rounds)
        if record.metric == "time_share" and record.of == "inherited/rules[0]"
    }
    reused = {family: full * shares[setup.name] for family, setup in planned.items()}
    return Costs(max(0.0, image[0] - few.calls * step), step - full, full, reused)


def _planned(plain: Setup, family: str, nodes: str) -> Setup:
    plan = plan_of(nodes, max(LEAST, plain.calls // 2)).standing_in(plain.calls)
    return plain.with_cache(f"{PLAIN}, {family}", plan)
