"""A target ("twice as fast", "at least 35 dB") turned into a plan that was drawn with, or into fewer steps.

What calls cost is timed once; what a plan costs is added up from that. A plan has one rule, so its time is told by its
calls in full, and a budget of time is a number of those. How near its pictures come is not predicted but drawn, on the
prompts of the calibration. More calls cost more and come nearer, so of every family the one that just meets the target
is found by bisection; the best of the families are then timed in turn. What turns out too slow is exchanged for less;
what is not near enough on the pictures that will be reported, for more, and what is nearer there than it has to be, for
the fastest of what was tried that is near enough. Of several that are fast enough those pictures tell which is nearest.

Guidance in an interval is no family: its pictures are no longer those of the plain model. Of the bundled one, 25 DDIM
steps, the last two without it are 1.04 times as fast at 46 dB, where a plan at 48 dB is 2.2 times.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from accelerate import PartialState

from asdm_cli.compare.costs import Rounds, plan_calls
from asdm_cli.compare.pareto import FEWER
from asdm_cli.compare.run import Place, by_first, image_times, kept
from asdm_cli.compare.setup import PLAIN, Session, Setup, fewer_steps
from asdm_cli.console import note
from asdm_cli.errors import RunError
from asdm_cli.models.schedulers import strength_of
from asdm_cli.profiling.latency import machine, speedup
from asdm_cli.recipe.patches import OUT, CachePlan, CacheRule, Calibrated
from asdm_cli.recipe.verbs import Target
from asdm_cli.sampling.prompts import PromptList
from asdm_cli.search.forecasts import CALIBRATION, WorkedOut, calibrate, short
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
"""So often what turns out too slow is exchanged for fewer calls, or what is not near enough for more."""
TIMED = 3
"""So many, of as many families, are timed against each other."""
BETWEEN = 2
"""So many plans, or numbers of steps, are tried between a plan at all steps and fewer steps without one."""
OUTPUT = "output"


@dataclass(frozen=True)
class Costs:
    """Seconds. `rest` of an image without its calls, `step` of a call without its UNet, `full` of a UNet call; and of
    one at which a family's nodes are reused. `calls` are those of the plain model."""

    calls: int
    rest: float
    step: float
    full: float
    reused: Mapping[str, float]

    def image(self, family: str, calls: int, full: int) -> float:
        """Fewer steps reuse nothing."""
        reused = (calls - full) * self.reused[family] if full < calls else 0.0
        return self.rest + calls * self.step + full * self.full + reused

    def speedup(self, family: str, calls: int, full: int) -> float:
        return self.image(FEWER, self.calls, self.calls) / self.image(family, calls, full)


@dataclass(frozen=True)
class Tried:
    """What was drawn with: its family, its calls in full, the speed-up that its parts add up to, and its quality on
    prompts that it was not fitted to; and its speed-up once it was `timed`, and its quality on the pictures that will
    be reported once it was `held` against those."""

    family: str
    full: int
    speedup: float
    quality: float
    setup: Setup
    timed: float | None = None
    held: float | None = None

    @property
    def faster(self) -> float:
        """As far as is known."""
        return self.timed or self.speedup

    @property
    def nearness(self) -> float:
        """As far as is known."""
        return self.quality if self.held is None else self.held

    def row(self, metric: str) -> dict[str, Any]:
        """For people."""
        unit = "PSNR dB" if metric == "psnr" else "perceptual distance"
        return {
            "plan": "none" if self.family == FEWER else self.family,
            "steps": self.setup.steps,
            "calls in full": self.full,
            "predicted speed-up": round(self.speedup, 2),
            "timed speed-up": self.timed and round(self.timed, 2),
            f"predicted {unit}": round(self.quality, digits := 2 if metric == "psnr" else 4),
            f"measured {unit}": None if self.held is None else round(self.held, digits),
        }


@dataclass(frozen=True)
class Found:
    """The `best`, all that were `tried`, and the `steps` at which the plain model takes as long as the best. Where that
    is fewer steps, `beside` is the best plan that meets the target, if one does."""

    best: Tried
    tried: list[Tried]
    steps: int
    beside: Tried | None


def families(plain: Setup) -> dict[str, str]:
    """Name -> the nodes that are reused."""
    blocks = [block.address for block in Anatomy.of(plain.config).blocks if block.kind == "up"]
    return {OUTPUT: OUT, f"last block, {blocks[-1]}": blocks[-1]}


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
    held: Callable[[Tried], float],
) -> Found:
    """The best that meets the target. By all processes, to the same end; interrupted, it goes on. After so many
    `minutes`, MINUTES if None, nothing is tried that is not needed for one that meets it. `held` tells
    quality on the pictures that will be reported.

    Raises RunError for a target that cannot be had, and says what can.
    """
    known, began, minutes = costs(session, plain, place, folder, state), time.monotonic(), minutes or MINUTES

    def late() -> bool:
        return bool(by_first(state, lambda: time.monotonic() - began > 60 * minutes))

    search = Search(session, plain, target, prompts, place, folder, state, known, held, late)
    output, *others = families(plain)
    ways: dict[str, Callable[[], None]] = {
        output: partial(search.plans, output),
        FEWER: search.fewer,
        "plans at fewer steps": search.between,
        **{family: partial(search.plans, family) for family in others},
    }
    for family, look in ways.items():
        if search.tried and late():
            note(f"{family}: not tried, since {minutes:g} min are over")
            break
        note(f"looking for {target.words}: {family}")
        look()
    if not search.tried:
        raise RunError(
            f"target: {target.words} cannot be had by fewer UNet calls: {search.least} plain steps are "
            f"{search.speedup_at(search.least):.2f} times as fast. Ask for less, or prune the model first"
        )
    best = search.best()
    note(f"{len(search.tried)} tried; what was found is measured now, beside fewer steps")
    a_step = (known.step + known.full) * plain.calls / plain.steps
    alike = (known.image(FEWER, plain.calls, plain.calls) / best.faster - known.rest) / a_step
    return Found(best, search.tried, max(1, round(alike)), search.beside() if best.family == FEWER else None)


@dataclass
class Search:
    """For one target: all that it depends on, and what was `tried` so far."""

    session: Session
    plain: Setup
    target: Target
    prompts: PromptList
    place: Place
    folder: Path
    state: PartialState
    known: Costs
    held: Callable[[Tried], float]
    late: Callable[[], bool] = lambda: False
    tried: list[Tried] = field(default_factory=list)

    def plans(self, family: str) -> None:
        """At all steps."""
        steps, calls = self.plain.steps, self.plain.calls
        if self.target.speedup is None:
            bisect(self.target, LEAST, calls - 1, partial(self.draw, family, steps), self.late)
        elif full := most_calls(self.known, family, calls, self.target.speedup):
            self.draw(family, steps, full)
            if full > LEAST and not self.late():  # key steps of one call fewer may lie better
                self.draw(family, steps, full - 1)

    def fewer(self) -> None:
        """Steps, without a plan."""
        counts = range(self.least, self.plain.steps)
        if self.target.speedup is None:
            bisect(self.target, counts.start, counts.stop - 1, partial(self.draw, FEWER), self.late)
        elif fast := [steps for steps in counts if self.speedup_at(steps) >= self.target.speedup]:
            self.draw(FEWER, max(fast))

    def between(self) -> None:
        """Plans of the output at fewer steps: some between, and where they pay for more calls in full; at a quality,
        where they are faster than all that has it."""
        alone = min((each.setup.steps for each in self.near if each.family == FEWER), default=None)
        whole = [each.full for each in self.near if each.family == OUTPUT]
        if alone is None:
            return
        if self.target.speedup is not None:
            for full in some(range(max(whole, default=LEAST - 1) + 1, self.calls(alone))):
                if counts := self.affording(full, alone + 1, self.target.speedup):
                    self.draw(OUTPUT, max(counts), full)
            for steps in between(alone, self.plain.steps):
                full = min(most_calls(self.known, OUTPUT, calls := self.calls(steps), self.target.speedup), calls - 1)
                if full >= LEAST and not self.late():
                    self.draw(OUTPUT, steps, full)
            return
        for steps in between(alone, self.plain.steps) if whole else ():
            fastest = max(each.speedup for each in self.near)
            most = min(most_calls(self.known, OUTPUT, self.calls(steps), fastest), self.calls(steps) - 1)
            bisect(self.target, min(whole), most, partial(self.draw, OUTPUT, steps), self.late)

    def affording(self, full: int, least: int, speed: float) -> list[int]:
        """Numbers of steps at which so many calls in full are as fast, of those from `least`."""
        counts = {steps: self.calls(steps) for steps in range(least, self.plain.steps)}
        return [steps for steps, calls in counts.items() if most_calls(self.known, OUTPUT, calls, speed) >= full]

    @property
    def near(self) -> list[Tried]:
        """Enough for the target."""
        return [each for each in self.tried if meets(self.target, each.quality)]

    @property
    def least(self) -> int:
        """Steps."""
        return math.ceil(LEAST / strength_of(self.plain.kind, self.plain.strength))

    def speedup_at(self, steps: int) -> float:
        """Of plain steps."""
        return self.known.speedup(FEWER, calls := self.calls(steps), calls)

    def calls(self, steps: int) -> int:
        """Of the UNet."""
        return replace(self.plain, steps=steps).calls

    def of(self, family: str, steps: int) -> list[Tried]:
        return [each for each in self.tried if (each.family, each.setup.steps) == (family, steps)]

    def draw(self, family: str, steps: int, full: int = 0) -> Tried:
        """With a plan of so many calls in full; of fewer steps all are. Once."""
        known = [each for each in self.of(family, steps) if family == FEWER or each.full == full]
        if not known:
            self.tried += (known := [self._drawn(family, steps, full)])
        return known[0]

    def _drawn(self, family: str, steps: int, full: int) -> Tried:
        if family == FEWER:
            (setup,) = fewer_steps(self.plain, [steps])
            found, full = WorkedOut(setup, tuple((setup, half) for half in self.prompts.halves())), setup.calls
        else:
            at = "" if steps == self.plain.steps else f" at {steps} steps"
            plan = plan_of(families(self.plain)[family], full)
            made = replace(self.plain, steps=steps).with_cache(f"{family}{at}, {full} calls", plan)
            found = calibrate(self.session, made, self.prompts, self.place, self.folder, self.state, self.plain)
        where = self.session, self.plain, self.place, self.folder, self.state
        quality, calls = found.fidelity(self.target.metric, *where), found.setup.calls
        return Tried(family, full, self.known.speedup(family, calls, full), quality, found.setup)

    def best(self) -> Tried:
        """By what the best few took in turn, and what they come to on the pictures that will be reported."""
        few, failed = self._timed(best_few(self.target, self.tried)), list[Tried]()
        while few:
            few.remove(first := ranked(self.target, few)[0])
            if reaches(self.target, best := self.sure(first)):
                return self.nearest([best, *(each for each in few if reaches(self.target, each))])
            failed.append(best)
            if len(failed) <= TRIES and (other := self.instead(best)):
                few += self._timed([other])
        return min(failed, key=partial(misses_by, self.target))

    def nearest(self, fast: Sequence[Tried]) -> Tried:
        """At a speed-up, of those that have it, on the pictures that will be reported; at a quality the first, or what
        is faster yet."""
        if self.target.speedup is None:
            return self.spared(fast[0])
        if len(fast) > 1 and not self.late():
            fast = [self.hold(each) for each in fast]
        return ranked(self.target, fast)[0]

    def spared(self, best: Tried) -> Tried:
        """What is faster and was not near enough on the prompts of the calibration, but is on the pictures that will be
        reported, if those are easier: as much nearer as this one came out."""
        for _ in range(TRIES):
            easier = best.nearness - best.quality
            left = [each for each in self.tried if each.held is None and less(each, best)]
            near = [each for each in left if meets(self.target, each.quality + easier)]
            if not near:
                break
            one = max(near, key=lambda each: each.faster)
            (timed,) = self._timed([one])
            if less(timed, best) and reaches(self.target, found := self.sure(timed)):
                best = found
        return best

    def sure(self, one: Tried) -> Tried:
        """With what tells whether it reaches the target."""
        return one if self.target.speedup is not None else self.hold(one)

    def hold(self, one: Tried) -> Tried:
        """Against the pictures that will be reported."""
        return one if one.held is not None else self._known(one, replace(one, held=self.held(one)))

    def beside(self) -> Tried | None:
        """The best plan that meets the target, as far as is known."""
        plans = [each for each in self.near if each.family != FEWER and each.faster >= (self.target.speedup or 0)]
        return ranked(self.target, plans)[0] if plans else None

    def instead(self, of: Tried) -> Tried | None:
        """The same with as much less as it is too slow by; or the fastest that would be near enough if it came out as
        much worse than expected as this one, or one call more than this. None where there is no such."""
        alone, steps, speed = of.family == FEWER, of.setup.steps, self.target.speedup
        now, least = (steps, self.least) if alone else (of.full, LEAST)
        most = (self.plain.steps if alone else of.setup.calls) - 1
        if speed is not None:
            wanted = max(least, min(now - 1, int(now * of.faster / speed)))
        else:
            harder = of.nearness - of.quality
            left = [each for each in self.tried if each.timed is None and meets(self.target, each.quality + harder)]
            if left:
                return max(left, key=lambda each: each.faster)
            mine = [each for each in self.tried if each.family == of.family and (alone or each.setup.steps == steps)]
            held = {each.setup.steps if alone else each.full for each in mine if each.held is not None}
            wanted = next(count for count in range(now + 1, most + 2) if count not in held)
        if wanted == now or wanted > most:
            return None
        return self.draw(FEWER, wanted) if alone else self.draw(of.family, steps, wanted)

    def _known(self, old: Tried, new: Tried) -> Tried:
        self.tried[self.tried.index(old)] = new
        return new

    def _timed(self, those: Sequence[Tried]) -> list[Tried]:
        """Images, in turn with the plain model, by the first process."""
        setups = [self.plain, *(each.setup for each in those)]
        rounds, names = Rounds(ROUNDS, 1, (1,), self.place.size), [setup.name for setup in setups]

        def taken() -> list[list[float]]:
            times = image_times(self.session, setups, rounds, self.place, 1)
            return [times[name]["image"] for name in names]

        file = self.folder / CALIBRATION / f"times-{short({one.name: one.origin() for one in setups})}.json"
        first, *others = _kept_time(self.session, self.plain, self.place, file, self.state, taken)
        found = [speedup(first, mine).value for mine in others]
        return [self._known(each, replace(each, timed=value)) for each, value in zip(those, found, strict=True)]


def most_calls(known: Costs, family: str, calls: int, speedup: float) -> int:
    """That may be computed in full; 0 where even the least take too long."""
    fast = [full for full in range(LEAST, calls + 1) if known.speedup(family, calls, full) >= speedup]
    return max(fast, default=0)


def plans_tried(target: Target, calls: int) -> int:
    """About."""
    return 9 if target.speedup is not None else 3 * math.ceil(math.log2(max(calls, LEAST)))


def some(counts: range) -> list[int]:
    """BETWEEN of these, evenly; all where there are no more."""
    if len(counts) <= BETWEEN:
        return list(counts)
    return [counts[len(counts) * part // (BETWEEN + 1)] for part in range(1, BETWEEN + 1)]


def between(fewest: int, most: int) -> list[int]:
    """As many numbers between these, evenly by their ratios, the largest first."""
    counts = [round(most * (fewest / most) ** (part / (BETWEEN + 1))) for part in range(1, BETWEEN + 1)]
    return [count for count in dict.fromkeys(counts) if fewest < count < most]


def bisect(
    target: Target, low: int, high: int, draw: Callable[[int], Tried], late: Callable[[], bool] = lambda: False
) -> None:
    """Draw with one number, from `low` to `high`, after another, until the least that meets the target was drawn with,
    or it is `late` and one that meets it was."""
    while low <= high:
        middle = (low + high) // 2
        if meets(target, draw(middle).quality):
            high = middle - 1
            if late():
                return
        else:
            low = middle + 1


def less(one: Tried, other: Tried) -> bool:
    """Whether it computes less. Of one family, at as many steps, calls tell: a clock is wrong on a busy machine."""
    if (one.family, one.setup.steps) == (other.family, other.setup.steps):
        return one.full < other.full
    return one.faster > other.faster


def meets(target: Target, quality: float, margin: bool = True) -> bool:
    """Whether pictures are near enough; with what other prompts may differ by."""
    beyond = MARGIN[target.metric] if margin else 0
    if target.perceptual is not None:
        return quality <= max(target.perceptual - beyond, target.perceptual / 2)
    return target.psnr_db is None or quality >= target.psnr_db + beyond


def reaches(target: Target, one: Tried) -> bool:
    """By what was measured, as far as it was."""
    if target.speedup is not None:
        return one.faster >= target.speedup
    return meets(target, one.nearness, margin=False)


def misses_by(target: Target, one: Tried) -> float:
    """In units of the target."""
    if target.perceptual is not None:
        return one.nearness - target.perceptual
    return (target.speedup or 0) - one.faster if target.psnr_db is None else target.psnr_db - one.nearness


def ranked(target: Target, tried: Sequence[Tried]) -> list[Tried]:
    """The best first: the nearest pictures at a speed-up, the fastest at a quality."""
    sign = -1 if target.metric == "perceptual" else 1
    if target.speedup is not None:
        return sorted(tried, key=lambda each: sign * each.nearness, reverse=True)
    return sorted(tried, key=lambda each: (each.faster, sign * each.nearness), reverse=True)


def best_few(target: Target, tried: Sequence[Tried]) -> list[Tried]:
    """Of those that meet the target the best of each family, at a quality also of each number of steps; TIMED of them
    at most. Raises RunError where none does."""
    near = [each for each in tried if meets(target, each.quality)]
    near = near or [each for each in tried if meets(target, each.quality, margin=False)]
    if not near:
        least = target.metric == "perceptual"
        best = (min if least else max)(tried, key=lambda each: each.quality)
        # rounded so that it can be asked for
        within = math.ceil(best.quality * 1e4) / 1e4 if least else math.floor(best.quality * 10) / 10
        raise RunError(
            f"target: {target.words} cannot be had by leaving out UNet calls: the nearest is {within:g} at "
            f"{best.speedup:.2f} times the speed ({best.family}, {best.full} calls in full). Ask for that"
        )
    best_of: dict[tuple[str, int], Tried] = {}
    for each in ranked(target, near):
        alike = each.family == FEWER or target.speedup is not None
        best_of.setdefault((each.family, 0 if alike else each.setup.steps), each)
    return list(best_of.values())[:TIMED]


def costs(session: Session, plain: Setup, place: Place, folder: Path, state: PartialState) -> Costs:
    """Timed in turn by the first process, and read by all; kept for the next time."""
    file = folder / CALIBRATION / "costs.json"
    return Costs(**_kept_time(session, plain, place, file, state, lambda: asdict(_costs(session, plain, place))))


def _kept_time(
    session: Session, plain: Setup, place: Place, file: Path, state: PartialState, make: Callable[[], Any]
) -> Any:
    """Of this machine alone, by the first process."""
    origin = {"dtype": str(session.dtype), "size": place.size, **plain.origin()}
    return by_first(state, lambda: kept(file, {"machine": machine(place.device), **origin}, make))


def _costs(session: Session, plain: Setup, place: Place) -> Costs:
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
    return Costs(plain.calls, max(0.0, image[0] - few.calls * step), step - full, full, reused)


def _planned(plain: Setup, family: str, nodes: str) -> Setup:
    plan = plan_of(nodes, max(LEAST, plain.calls // 2)).standing_in(plain.calls)
    return plain.with_cache(f"{PLAIN}, {family}", plan)
