"""What changes how a pipeline draws, as recipes, a model's asdm.json and the Python API write it.

Schedules say which UNet calls are key steps, plans what is inherited between them, switching which UNet serves which
calls.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from operator import or_
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainValidator,
    SerializeAsAny,
    Tag,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from asdm_cli.recipe import MOST
from asdm_cli.recipe.messages import did_you_mean, got, one_of, told, validated
from asdm_cli.recipe.schema import (
    Above,
    Distinct,
    Inner,
    Misfit,
    Misplaced,
    Name,
    Patterns,
    Positive,
    Seed,
    Strict,
    Text,
    Whole,
)

# Schedules ------------------------------------------------------------------------------------------------------------

CENTER = 0.3
"""Of the run: where `center` has its centre if the recipe names none; 15 of 50 calls, DeepCache's."""
FALL = 0.02
"""What a power loses at a time until the steps are as many as they should be."""
LISTED = 6
"""How many entries of `steps` a table shows."""
ROUNDING = 1e-9
"""A number this close below a whole one is that one, so that no machine's rounding moves a key step."""


def _whole(value: float) -> int:
    return math.trunc(value + math.copysign(ROUNDING, value))


class _Schedule(Strict):
    """Which calls of a generation are key steps, computed in full; on the others something is inherited.

    Calls are counted inside one generation. A timestep's value says nothing: PNDM calls the UNet twice with one.
    """

    mode: str
    """Stands here to be the first key of a recipe that is written back."""
    first: Whole = 0
    """So many calls at the start are key steps whatever the mode says; the very first call always is."""

    def key_steps(self, calls: int) -> tuple[int, ...] | None:
        """The key steps among 0..calls-1, in order, 0 always; None where they are decided while it runs."""
        assert calls >= 1, "a generation calls the UNet"
        return tuple(sorted({0, *range(min(self.first, calls)), *self._calls(calls)}))

    def _calls(self, calls: int) -> Iterable[int]:
        raise NotImplementedError

    def __str__(self) -> str:
        """A few words for tables."""
        return ", ".join([*self._words(), f"first {self.first}"] if self.first else self._words())

    def _words(self) -> Iterable[str]:
        raise NotImplementedError


class _Counted(_Schedule):
    interval: Positive
    """How far apart key steps are on average: a run of T calls has ceil(T / interval) of them. 1 is every call."""

    def _count(self, calls: int) -> int:
        return -(-calls // self.interval)

    def _words(self) -> Iterable[str]:
        return (self.mode, f"{self.interval} apart")


class Uniform(_Counted):
    """Every so many calls."""

    mode: Literal["uniform"]
    """Calls 0, interval, 2 interval, ..."""

    def _calls(self, calls: int) -> Iterable[int]:
        return range(0, calls, self.interval)

    def _words(self) -> Iterable[str]:
        ending = "th" if self.interval // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(self.interval % 10, "th")
        return ["every call" if self.interval == 1 else f"every {self.interval}{ending}"]


class _Law(_Counted):
    power: Annotated[float, Field(ge=1, le=10)] = 1.4
    """How uneven the steps are; 1 is evenly. Falls by 0.02 until the steps are as many as `interval` says."""

    def _falling(self, calls: int, place: Callable[[float, float], int]) -> set[int]:
        """Call 0 and `place(power, share of the run)`, at the largest power that gives as many as there should be.

        Dense steps fall together, so a lower power has more of them. The limit, 1, is an even spread, with them all.
        """
        power, count = self.power, self._count(calls)
        while power > 1 + ROUNDING:
            steps = {0, *(place(power, k / count) for k in range(1, count))}
            if len(steps) == count and min(steps) >= 0 and max(steps) < calls:
                return steps
            power -= FALL
        return {k * calls // count for k in range(count)}

    def _words(self) -> Iterable[str]:
        return (*super()._words(), f"power {self.power:g}")


class Early(_Law):
    """Dense at the start."""

    mode: Literal["early"]
    """A power law: step k of n is call T (k / n)^power."""

    def _calls(self, calls: int) -> set[int]:
        return self._falling(calls, lambda power, share: _whole(calls * share**power))


class Late(_Law):
    """Dense at the end."""

    mode: Literal["late"]
    """The distances of `early` in reverse."""

    def _calls(self, calls: int) -> set[int]:
        early = self._falling(calls, lambda power, share: _whole(calls * share**power))
        return {calls - step if step else 0 for step in early}


class Center(_Law):
    """Dense about a call inside the run."""

    mode: Literal["center"]
    """A power law to both sides of `center`."""
    center: Annotated[float, Field(ge=0)] | None = None
    """The call about which steps are densest, at most the run's end; 30% of the run if left out."""
    form: Literal["complex", "signed"] = "complex"
    """`complex`: DeepCache's, smooth, for powers below 2; `signed`: the law mirrored, densest at the centre itself."""

    def _calls(self, calls: int) -> set[int]:
        """Even steps between the roots of -center and calls - center, raised again.

        With `complex` the first root leaves the real line (Python's principal one), and what counts is the real part
        of a straight way back to it: DeepCache's schedule, but for calls that there depend on the rounding of whole
        numbers. Towards zero, as there, so the call of the centre itself is as wide as two.
        """
        center = min(calls * CENTER if self.center is None else self.center, calls)

        def raised(value: complex, exponent: float) -> complex:
            if self.form == "signed":
                return math.copysign(abs(value) ** exponent, value.real)
            return complex(value) ** exponent

        def place(power: float, share: float) -> int:
            low, high = raised(-center, 1 / power), raised(calls - center, 1 / power)
            return math.floor(center + ROUNDING) + _whole(raised(low + (high - low) * share, power).real)

        return self._falling(calls, place)

    def _words(self) -> Iterable[str]:
        _, *words = super()._words()
        centre = f"center {CENTER:.0%}" if self.center is None else f"center {self.center:g}"
        return [centre, *words] + ([self.form] if self.form != "complex" else [])


class Quadratic(_Counted):
    """Dense at the start, consecutive calls first."""

    mode: Literal["quadratic"]
    """Squares: step k of n is call T (k / n)^2, or the one after step k - 1 where that is later."""

    def _calls(self, calls: int) -> Iterator[int]:
        """Always as many as they should be: a square is no further than its step's share of the run."""
        step, count = -1, self._count(calls)
        for k in range(count):
            step = max(calls * k * k // count**2, step + 1)
            yield step


class Random(_Counted):
    """A seeded draw: what a schedule that means something has to beat."""

    mode: Literal["random"]
    """Call 0 and others drawn by `seed`, the same on every machine."""
    seed: Seed = 0
    """Another seed, another draw."""

    def _calls(self, calls: int) -> Iterable[int]:
        """Sorted by draws of random(), the one method whose sequence Python promises for all versions."""
        draw = random.Random(self.seed).random
        return sorted(range(1, calls), key=lambda _: draw())[: self._count(calls) - 1]

    def _words(self) -> Iterable[str]:
        return (*super()._words(), f"seed {self.seed}")


@dataclass(frozen=True)
class Span:
    """One entry of `steps`. Every so many calls (`every`) from `start` to before `end`; in hundredths of the run if
    `percent`; None is open."""

    start: Fraction
    end: Fraction | None
    percent: bool = False
    every: int = 1

    NUMBER = r"[0-9]{1,9}"
    PERCENT = rf"({NUMBER}(?:\.{NUMBER})?)%"
    EVERY = r"(?:/([1-9][0-9]{0,8}))?"
    FORMS = re.compile(rf"({NUMBER})-({NUMBER})?{EVERY}"), re.compile(rf"{PERCENT}-(?:{PERCENT})?{EVERY}")

    @classmethod
    def of(cls, entry: int | str) -> Span:
        """ValueError where the text is no range, or a range without calls."""
        if isinstance(entry, int):
            return cls(Fraction(entry), Fraction(entry + 1))
        calls, shares = (form.fullmatch(entry) for form in cls.FORMS)
        if not (match := calls or shares):
            raise ValueError(f"must be a call or a range such as '5-9', '20-' or '0%-40%', got {got(entry)}")
        start, end, every = match.groups()
        inside = 1 if calls else 0  # '5-9' has both its ends, '0%-40%' and '40%-100%' share no call
        last = None if end is None else Fraction(end) + inside
        span = cls(Fraction(start), last, percent=calls is None, every=int(every or 1))
        if span.percent and max(span.start, span.end or 0) > 100:
            raise ValueError(f"a run ends at 100%, got {got(entry)}")
        if span.end is not None and span.end <= span.start:
            raise ValueError(f"the range ends before it starts, got {got(entry)}")
        return span

    def within(self, calls: int) -> range:
        """Those of a run of so many calls: call i is in 'a%-b%' if a <= 100 i / calls < b."""
        unit = Fraction(calls, 100) if self.percent else 1
        end = calls if self.end is None else min(calls, math.ceil(self.end * unit))
        return range(math.ceil(self.start * unit), end, self.every)


def _span(entry: str) -> str:
    Span.of(entry)
    return entry


class Explicit(_Schedule):
    """A list of calls."""

    mode: Literal["explicit"]
    """The calls of `steps`, and call 0."""
    steps: Annotated[list[Whole | Annotated[Text, AfterValidator(_span)]], Field(min_length=1), Distinct]
    """Calls from 0 and ranges: `5-9` (with both ends), `20-` (to the run's end), `0%-40%` (of the run, without its
    end), `24%-90%/3` (every third of them). Calls that a run does not have are left out."""

    def _calls(self, calls: int) -> Iterable[int]:
        return (call for entry in self.steps for call in Span.of(entry).within(calls))

    def _words(self) -> Iterator[str]:
        yield "steps " + " ".join(str(entry) for entry in self.steps[:LISTED])
        if len(self.steps) > LISTED:
            yield f"and {len(self.steps) - LISTED} more"


class Growing(_Schedule):
    """Further and further apart."""

    mode: Literal["growing"]
    """After the `first` ones, a window of calls ends in a key step, and the next window is wider."""
    window: Annotated[float, Field(ge=1, le=100)] = 2.0
    """Calls of the first window; of each the whole part counts."""
    growth: Annotated[float, Field(ge=0, le=100)] = 0.75
    """What a window is wider than the one before."""

    def _calls(self, calls: int) -> Iterator[int]:
        call, window = max(0, self.first - 1), self.window
        while (call := call + _whole(window)) < calls:
            yield call
            window += self.growth

    def _words(self) -> Iterable[str]:
        return (f"windows of {self.window:g} growing by {self.growth:g}",)


class _Measured(_Schedule):
    """Decided while a generation runs, on what it measures."""

    longest: Positive = 8
    """Most calls from one key step to the next."""

    def key_steps(self, calls: int) -> None:  # noqa: ARG002
        return None

    def _words(self) -> Iterator[str]:
        if self.longest != type(self).model_fields["longest"].default:
            yield f"at most {self.longest} apart"


class Threshold(_Measured):
    """Decided while a generation runs, on the change that it measures."""

    mode: Literal["threshold"]
    """A key step follows as soon as inheriting would cost more than `threshold`."""
    threshold: Above
    """The largest relative error that an inherited feature may be expected to have."""

    def next_distance(self, error: float, distance: int, order: int) -> int:
        """The largest distance from a key step, 1..longest, whose expected error is at most `threshold`.

        `error` is the relative error of a forecast of `order` (0: plain reuse) at `distance` calls after its key step;
        errors grow like distance^(order + 1). At 1 nothing is inherited: where nothing may be, and after a nan or inf.
        """
        assert distance >= 1, "there is no error at the key step itself"
        if not math.isfinite(error):
            return 1
        if error <= 0:
            return self.longest
        reach = distance * (self.threshold / error) ** (1 / (order + 1))
        return max(1, _whole(min(reach, self.longest)))

    def _words(self) -> Iterator[str]:
        yield f"threshold {self.threshold:g}"
        yield from super()._words()


class Stability(_Measured):
    """Decided while a generation runs, on where its latents go: one value is read from the device for every call that
    may be left out."""

    mode: Literal["stability"]
    """As described in SADA (ICML 2025): a call is left out where the latents differ from what a multistep formula
    expects against the way in which their slope bends."""
    within: Annotated[Text, AfterValidator(_span)] = "22%-96%"
    """The calls that may be left out: a range, as in `steps`."""
    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """The largest cosine between the two at which a call is left out; at 1 all are, but for `longest`."""
    longest: Positive = 5
    """Most calls from one key step to the next."""

    def _words(self) -> Iterator[str]:
        yield f"stability within {self.within}"
        if self.threshold:
            yield f"threshold {self.threshold:g}"
        yield from super()._words()


class Calibrated(_Schedule):
    """Worked out by a calibration of the model and its sampler; `asdm inherit` does it, and writes what it found."""

    mode: Literal["calibrated"]
    """The key steps from which all other calls are forecast with the least error together."""
    calls: Positive
    """How many there are, the `first` ones among them."""

    def misfits(self) -> Iterator[Misfit]:
        if self.first > self.calls:
            yield ("first",), f"so many calls at the start are key steps, and there are {self.calls}; give more 'calls'"

    def _calls(self, calls: int) -> Iterable[int]:
        """Before they are known: as many, evenly."""
        count, first = min(self.calls, calls), max(self.first, 1)
        return (first + k * (calls - first) // (count - first) for k in range(count - first))

    def _words(self) -> Iterable[str]:
        return (f"{self.calls} calibrated",)


Schedule = Annotated[
    Uniform | Early | Late | Center | Quadratic | Random | Explicit | Growing | Threshold | Stability | Calibrated,
    Field(discriminator="mode"),
]
CountedMode = Literal["uniform", "early", "late", "center", "quadratic", "random"]
"""The modes that need nothing but an interval."""

# Plans ----------------------------------------------------------------------------------------------------------------

Order = Annotated[int, Field(ge=0, le=2)]
Cached = Literal["output", "residual"]
Axis = Literal["step", "log-snr", "angle"]
Space = Literal["model", "x0", "eps", "v"]
ORDERS = {"reuse": 0, "linear": 1, "quadratic": 2, "fitted": 1, "interleaved": 1, "multistep": 0}
"""Word of `extrapolate` -> the order that it is, or (fitted) falls back to."""
FITTED, INTERLEAVED = "fitted", "interleaved"
COUNTS_CALLS = f"goes with other forecasts; {INTERLEAVED} ones count calls"
COUNTS_NOTHING = "changes nothing where the last value is handed on; leave it out, or choose `order: 1` or `2`"
MULTISTEP = "multistep"
COUNTS_MULTISTEP = f"goes with other forecasts; {MULTISTEP} ones take the scheduler's own steps"
OUT = "out"
"""The word for the UNet's whole output, as a node."""


class Chebyshev(Strict):
    """A forecast by least squares, in Chebyshev polynomials of the place in the generation."""

    form: Literal["chebyshev"]
    """As described in Spectrum (CVPR 2026)."""
    degree: Annotated[int, Field(ge=1, le=8)] = 4
    """Of the polynomials."""
    ridge: Annotated[float, Field(ge=0)] = 0.1
    """The penalty on their coefficients (its lambda)."""
    values: Annotated[int, Field(ge=2, le=100)] = 100
    """Of so many last key steps, all of which are kept in memory."""


Extrapolate = Literal["reuse", "linear", "quadratic", "fitted", "interleaved", "multistep"] | Chebyshev


class Fit(Strict):
    """Forecasts fitted to a model, its sampler and its steps; what `asdm inherit` writes for `extrapolate: fitted`."""

    sampler: Text
    """diffusers' class of the scheduler."""
    timesteps: Annotated[list[float], Field(min_length=1)]
    """Of the UNet's calls."""
    keys: Annotated[list[Whole], Field(min_length=1)]
    """The key steps, in order; the first is 0."""
    weights: list[list[float]]
    """Of each call: of the UNet's input, then of the values of the last key steps, newest first. At a key step its own
    value is the first of them, and the sum is what is handed on in its place; none: the value itself."""

    def misfits(self) -> Iterator[Misfit]:
        if len(self.weights) != len(self.timesteps):
            yield ("weights",), f"must be as many as timesteps, {len(self.timesteps)}; there are {len(self.weights)}"
        if self.keys != sorted({0, *self.keys}) or self.keys[-1] >= len(self.timesteps):
            yield ("keys",), "must be calls in order, from 0"


class CacheRule(Strict):
    """Some nodes, and the calls at which they are inherited."""

    nodes: Patterns
    """Addresses (`level.3`, `up.*.1`, `*.cross`), named sets (base, small, tiny, encoder, deepcache.N), or a list; or
    `out`, the UNet's whole output: then nothing of it is computed."""
    schedule: Schedule
    """Which UNet calls compute these nodes; at all others they are inherited."""
    cache: Cached = "output"
    """What is handed on: a node's output, or the branch that it adds to its input."""
    extrapolate: Extrapolate | None = None
    """What is handed on: the last value (`reuse`); the line or parabola through the last two or three (`linear`,
    `quadratic`); a combination of the last values, and for `out` of the UNet's input, that a calibration fits call by
    call (`fitted`); in turn the last value and its change again, and the last value (`interleaved`); for `out` the
    picture that the last value makes of the latents that a multistep formula expects (`multistep`); or a fit by
    Chebyshev polynomials. Left out, `order` says it."""
    order: Order | None = None
    """The same in short: 0 is `reuse`, 1 `linear`, 2 `quadratic`; 0 if both are left out."""
    axis: Axis = "step"
    """What a forecast counts in: UNet calls, the log of the signal-to-noise ratio, or the angle between the two."""
    space: Space = "model"
    """For `out`: what is forecast, which is made of the UNet's output and input and turned back into an output: as the
    model predicts it, the picture without noise (`x0`), the noise (`eps`), or the velocity (`v`)."""
    fit: Fit | None = None
    """For `fitted`: what the calibration found. Left out, `asdm inherit` calibrates."""

    def misfits(self) -> Iterator[Misfit]:
        if self.extrapolate is not None and self.order is not None:
            yield ("order",), "either 'extrapolate' or 'order', not both"
        whole = [self.nodes] if isinstance(self.nodes, str) else self.nodes
        if OUT in whole and len(whole) > 1:
            yield ("nodes",), f"'{OUT}' is the whole output: nothing else is read beside it; name it alone"
        if self.cache == "residual" and OUT in whole:
            yield ("cache",), f"'{OUT}' adds nothing to an input; leave it out"
        if self.space != "model" and OUT not in whole:
            yield ("space",), f"goes with 'nodes: {OUT}' alone"
        if self.extrapolate == FITTED and (self.axis != "step" or self.space != "model"):
            key = "axis" if self.axis != "step" else "space"
            yield (key,), "goes with other forecasts; fitted ones know each call alone, as the model predicts"
        if self.axis != "step" and self.axis_unused:
            yield ("axis",), self.axis_unused
        if self.extrapolate == MULTISTEP and OUT not in whole:
            yield ("extrapolate",), f"{MULTISTEP} goes with 'nodes: {OUT}' alone; choose another forecast"
        if self.extrapolate == FITTED and isinstance(self.schedule, Threshold | Stability):
            yield ("schedule",), "key steps of a fitted forecast are known beforehand; choose another mode"
        if self.fit is not None and self.extrapolate != FITTED:
            yield ("fit",), "goes with 'extrapolate: fitted'"

    @property
    def axis_unused(self) -> str:
        """Why no axis but that of calls is of use; '' where it is."""
        if not isinstance(self.extrapolate, Chebyshev) and not ORDERS.get(self.extrapolate or "", self.order):
            return COUNTS_MULTISTEP if self.extrapolate == MULTISTEP else COUNTS_NOTHING
        return COUNTS_CALLS if self.extrapolate == INTERLEAVED else ""

    @property
    def words(self) -> str:
        """What is handed on, and how, for tables."""
        named = next(word for word, order in ORDERS.items() if order == (self.order or 0))
        how = self.extrapolate.form if isinstance(self.extrapolate, Chebyshev) else self.extrapolate or named
        return ", ".join([self.cache, how, *([f"in {self.space}"] if self.space != "model" else [])])

    @property
    def as_line(self) -> CacheRule:
        """Straight lines through the whole output, all written in one way; others as they are."""
        if self.nodes in (OUT, [OUT]) and (self.extrapolate == "linear" or self.order == 1):
            return self.model_copy(update={"nodes": OUT, "extrapolate": "linear", "order": None})
        return self

    @property
    def uncalibrated(self) -> str:
        """The key that only a calibration can fill; '' where there is none."""
        if isinstance(self.schedule, Calibrated):
            return "schedule"
        return "fit" if self.extrapolate == FITTED and self.fit is None else ""

    def standing_in(self, calls: int) -> CacheRule:
        """A rule that costs the same and needs no calibration; itself, where it needs none."""
        steps: list[Any] = [*(self.schedule.key_steps(calls) or ())]
        changed: dict[str, Any] = {}
        if isinstance(self.schedule, Calibrated):
            changed["schedule"] = Explicit(mode="explicit", steps=steps)
        if self.uncalibrated:
            changed["extrapolate"] = "linear" if self.extrapolate == FITTED else self.extrapolate
        return self.model_copy(update=changed)


class CachePlan(Strict):
    """A plan rule by rule."""

    rules: Annotated[list[CacheRule], Field(max_length=8)]
    """A node that several rules name belongs to the first of them."""
    cache_text: bool = False
    """Compute the keys and values of the text once a generation: the same pictures, bit by bit, as long as no weight
    changes meanwhile (the scale of a LoRA). In Python not under torch.inference_mode(), which counts no changes of the
    text: there they are computed at every call."""

    def resolved(self) -> CachePlan:
        return self

    @property
    def uncalibrated(self) -> bool:
        """Whether only a calibration can say what it is."""
        return any(rule.uncalibrated for rule in self.rules)

    def misfits(self) -> Iterator[Misfit]:
        for index, rule in list(enumerate(self.rules))[2:]:
            if rule.uncalibrated and len([each for each in self.rules[:index] if each.uncalibrated]) >= 2:
                what = "two rules at most are left to a calibration, which tries every way of each with every other"
                yield ("rules", index), f"{what}; give it `extrapolate: linear`, and steps"

    def standing_in(self, calls: int) -> CachePlan:
        """A plan that costs the same and needs no calibration."""
        return self.model_copy(update={"rules": [rule.standing_in(calls) for rule in self.rules]})


PRESETS: dict[str, CacheRule] = {
    "last-block": CacheRule(nodes="level.0", schedule=Uniform(mode="uniform", interval=2), order=1),
    "deepcache": CacheRule(nodes="deepcache.0", schedule=Uniform(mode="uniform", interval=3)),
    "encoder-propagation": CacheRule(
        nodes="encoder", schedule=Explicit(mode="explicit", steps=["0%-8%", 5, 10, 15, 25, 35])
    ),
    "base-mask": CacheRule(nodes="base", schedule=Uniform(mode="uniform", interval=2), cache="residual"),
    "zeus": CacheRule(
        nodes=OUT,
        schedule=Explicit(mode="explicit", steps=["0%-22%", "24%-90%/3", "90%-"]),
        extrapolate="interleaved",
    ),
    "spectrum": CacheRule(
        nodes=OUT, schedule=Growing(mode="growing", first=5), extrapolate=Chebyshev(form="chebyshev")
    ),
    "sada": CacheRule(nodes=OUT, schedule=Stability(mode="stability"), extrapolate="multistep", space="eps"),
    "t-gate": CacheRule(nodes="*.cross", schedule=Explicit(mode="explicit", steps=["0%-40%"])),
}
"""Name -> its rule as published. Faster Diffusion's schedule is for 50 calls. Of the layers that BK-SDM Base lacks
these are the residual branches: with outputs nothing before the last lives. `level.0` inherits down.0 too, which nobody
reads when the last up block hands on its own output.

ZEUS (arXiv 2604.01552), as its code has it at 50 steps, two of three calls left out, in shares of the run: 2 y1 - y2
of the last two key steps, then y1. Spectrum (arXiv 2603.01623) with its windows, degree and penalty, but of the whole
output, where its code keeps the last hidden state, and in places of the run at hand, where its code counts 50.
SADA (arXiv 2507.17135) with its paper's coefficients, its code's window at 50 steps, in shares of the run, and at most
four calls in a row left out; in the coordinate x / alpha, with whole steps, where its code moves x by one of 1000.
The slopes are those that the solver followed, as the UNet answers before guidance: DDIM's and Euler's are as there,
those of multistep solvers are means over a step. Without its late phase (every fourth step, and Lagrange's polynomials
in x0 between) and its pruning of tokens.
T-GATE (arXiv 2404.02747) of its first version: cross-attention alone, each half of guidance its own, where its code
keeps their mean and leaves guidance out after the gate (a guidance-schedule does that)."""
PresetName = Literal[
    "last-block", "deepcache", "encoder-propagation", "base-mask", "zeus", "spectrum", "sada", "t-gate"
]


class Preset(Strict):
    """A plan by its name."""

    preset: PresetName
    """`last-block`: the last up block's output is extrapolated from two key steps, every 2nd call is computed in full.
    `deepcache`: all but the outermost layers are inherited, every 3rd call is computed in full.
    `encoder-propagation` (Faster Diffusion): down blocks and mid are inherited, up blocks (and conv_in) always
    computed, by the schedule published for 50 calls. `base-mask`: the layers that BK-SDM Base lacks hand on their
    residual branches, every 2nd call is computed in full. Of the output alone: `zeus`, two of three calls are its last
    value and change, or its last value; `spectrum`, a fit by Chebyshev polynomials, over growing windows; `sada`, where
    the latents go as a multistep formula expects. `t-gate`: cross-attention is frozen after 40% of the run."""
    interval: Positive | None = None
    """Every so many calls are computed in full; left out, the preset's own schedule holds."""
    schedule: Schedule | None = None
    """Instead of `interval`: any schedule."""
    order: Order | None = None
    """0 hands on the last value; 1 and 2 forecast it. Left out, the preset's own."""
    axis: Axis = "step"
    """What a forecast counts in, as in a rule."""
    branch: Whole | None = None
    """DeepCache's cache_branch_id: how many skip connections are still computed at inherited calls, less one; 0 if left
    out."""

    def misfits(self) -> Iterator[Misfit]:
        if self.interval is not None and self.schedule is not None:
            yield ("schedule",), "either 'interval' or 'schedule', not both"
        if self.branch is not None and self.preset != "deepcache":
            yield ("branch",), f"goes with 'deepcache', and 'preset' is {self.preset}"
        (rule,) = self.resolved().rules
        if self.axis != "step" and rule.axis_unused:
            yield ("axis",), rule.axis_unused

    def resolved(self) -> CachePlan:
        """The one rule that this preset stands for."""
        changed: dict[str, Any] = {"axis": self.axis}
        if schedule := self.schedule or (Uniform(mode="uniform", interval=self.interval) if self.interval else None):
            changed["schedule"] = schedule
        if self.order is not None:
            changed |= {"order": self.order, "extrapolate": None}
        if self.branch is not None:
            changed["nodes"] = f"deepcache.{self.branch}"
        return CachePlan(rules=[PRESETS[self.preset].model_copy(update=changed)])


def _plan_tag(plan: Any) -> str:
    """Of two words: pydantic puts tags into the places of faults, and `rules` and `preset` are also keys."""
    named = "preset" in plan if isinstance(plan, dict) else isinstance(plan, Preset)
    return "plan by name" if named else "plan by rules"


def _by_name(plan: Any) -> Any:
    return {"preset": plan} if isinstance(plan, str) else plan


_Plan = Annotated[
    Annotated[CachePlan, Tag("plan by rules")] | Annotated[Preset, Tag("plan by name")], Discriminator(_plan_tag)
]
InheritPlan = Annotated[_Plan, BeforeValidator(_by_name, json_schema_input_type=PresetName | _Plan)]
"""Rules, a preset, or a preset's name alone."""


def read_plan(plan: Any, source: str = "plan") -> CachePlan:
    """A plan that does not come from a recipe, as its rules. Raises RecipeError with all faults; `source` names it."""
    read: CachePlan | Preset = validated(InheritPlan, plan, source)
    return read.resolved()


# Switching ------------------------------------------------------------------------------------------------------------

By = Literal["timestep", "log-snr", "fraction", "step"]
NULLS = ("reuse", "extrapolate")
"""The null model: no UNet runs. `reuse` is the last prediction again, `extrapolate` the line through the last two."""
FALLING = ("timestep",)
"""What falls during a generation; all else rises."""
LIMITS: dict[str, tuple[float, float]] = {
    "timestep": (0, float("inf")),
    "log-snr": (float("-inf"), float("inf")),
    "fraction": (0, 1),
    "step": (0, float("inf")),
}


class Segment(Strict):
    """A stretch of the generation."""

    unet: Name
    """Who serves it: a name from `unets`, or the null model: `reuse` or `extrapolate` (the last predictions)."""
    until: float | None = None
    """Where the next part begins: the call at which the generation has come to this value is already the next
    part's. The last part has none."""


class Switching(Strict):
    """Parts in the order of the generation, which begins in pure noise."""

    by: By = "timestep"
    """What `until` is: the timestep (falling, from about 1000), the log of the signal-to-noise ratio (rising), the
    fraction of the steps that are done (0 to 1), or the number of UNet calls that are done."""
    parts: Annotated[list[Segment], Field(min_length=1)]
    """Who serves what. A part whose `until` is reached before it begins serves nothing."""

    @property
    def serving(self) -> frozenset[str]:
        """The UNets that have a part."""
        return frozenset(part.unet for part in self.parts) - {*NULLS}

    def misfits(self) -> Iterable[Misfit]:
        return misordered(self.by, self.parts)


def described(rules: Switching) -> str:
    """`small until timestep 400, then large`."""
    spans = ["" if part.until is None else f" until {rules.by} {part.until:g}" for part in rules.parts]
    return ", then ".join(f"{part.unet}{span}" for part, span in zip(rules.parts, spans, strict=True))


def reserved(name: str) -> str:
    """The fault of a UNet that is called like the null model."""
    return f"'{name}' is the null model's name; call the UNet something else"


def read_switching(rules: Any, source: str) -> Switching:
    """Rules that do not come from a recipe. Raises RecipeError with all faults; `source` names them."""
    read: Switching = validated(Switching, rules, source)
    return read


def misordered(by: By, parts: list[Segment]) -> Iterator[Misfit]:
    """Faults of parts that do not follow each other; places begin at `parts`."""
    (low, high), falls, before = LIMITS[by], by in FALLING, None
    for index, part in enumerate(parts):
        where, last = ("parts", index, "until"), index == len(parts) - 1
        if part.until is None:
            if not last:
                yield where, "must be given: only the last part goes to the end"
            continue
        if last:
            yield where, "the last part goes to the end; leave it out, or say who comes after"
        if not low <= part.until <= high:
            yield where, f"a {by} lies between {low:g} and {high:g}"
        if before is not None and (part.until > before if falls else part.until < before):
            yield where, f"{by}s {'fall' if falls else 'rise'} from part to part; it was {before:g}"
        before = part.until
    if parts[0].unet in NULLS:
        yield ("parts", 0, "unet"), f"'{parts[0].unet}' needs a prediction: begin with a UNet"


def unknown_unets(parts: list[Segment], known: list[str], way: Inner = ("parts",)) -> Iterator[Misfit]:
    """Faults of names that are neither known nor the null model's; `way` leads to the parts."""
    for index, part in enumerate(parts):
        if part.unet not in (*known, *NULLS):
            hint = did_you_mean(part.unet, [*known, *NULLS])
            yield (*way, index, "unet"), f"no UNet is called {got(part.unet)}{hint}"


# Patches --------------------------------------------------------------------------------------------------------------

KINDS: dict[str, type[PatchSpec]] = {}
"""Every kind of patch: a class below `PatchSpec` adds itself."""


class PatchSpec(Strict):
    """What a recipe, or a model's asdm.json, says of something that changes how a pipeline draws."""

    kind: str
    """Stands here to be the first key of what is written back."""
    module: ClassVar[str]
    """Where its `patch` is, which does it."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        KINDS[get_args(cls.model_fields["kind"].annotation)[0]] = cls

    def written(self) -> dict[str, Any]:
        """As it stands in asdm.json."""
        return {"kind": self.kind, **self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)}

    def told(self) -> list[str]:
        """In words, a sentence a line."""
        return [f"{self.kind}: {self.model_dump_json(exclude={'kind'}, exclude_none=True, exclude_defaults=True)}"]


class FeatureCacheSpec(PatchSpec, CachePlan):
    """Reuse features from earlier calls, by rules."""

    kind: Literal["feature-cache"] = "feature-cache"
    """The kind of patch."""
    unet: Name | None = None
    """The UNet that it is for, where several take turns; all of them if left out."""
    module: ClassVar[str] = "asdm_cli.patches.feature_cache"

    def told(self) -> list[str]:
        whose = f"{self.unet}: " if self.unet else ""
        return [f"{whose}inherits {rule.nodes} ({rule.words}); computed: {rule.schedule}" for rule in self.rules]


class UNetScheduleSpec(PatchSpec, Switching):
    """Several UNets, and who serves which part of a generation."""

    kind: Literal["unet-schedule"] = "unet-schedule"
    """The kind of patch."""
    unets: Annotated[list[Name], Field(min_length=1), Distinct]
    """Their names. The first is the pipeline's own `unet`; the others lie in `unets/NAME`."""
    offload: bool = False
    """UNets that serve no call wait in the CPU\'s memory until it is their turn."""
    module: ClassVar[str] = "asdm_cli.patches.unet_schedule"

    def told(self) -> list[str]:
        offloaded = "; idle ones live on the CPU" if self.offload else ""
        return [f"UNets that take turns{offloaded}: {', '.join(self.unets)}", f"served by {described(self)}"]

    @property
    def rules(self) -> Switching:
        """Who serves what, alone."""
        return Switching(by=self.by, parts=self.parts)

    def misfits(self) -> Iterator[Misfit]:
        yield from super().misfits()
        yield from unknown_unets(self.parts, self.unets)
        yield from ((("unets", self.unets.index(name)), reserved(name)) for name in self.unets if name in NULLS)


class DeepCacheSpec(PatchSpec):
    """The DeepCache package itself (extra `peers`)."""

    kind: Literal["deepcache-package"] = "deepcache-package"
    """The kind of patch."""
    interval: Annotated[int, Field(ge=2, le=MOST)]
    """Its cache_interval."""
    branch: Whole = 0
    """Its cache_branch_id."""
    steps: Positive
    """Steps of the generations that it will see."""
    module: ClassVar[str] = "asdm_cli.patches.deepcache"


UNGUIDED = {
    "conditional": "the conditional output alone",
    "reuse": "the last unconditional output again",
    "difference": "the last difference of the two outputs again",
}
"""What stands for guidance at the calls that do without."""


class GuidanceScheduleSpec(PatchSpec):
    """Guidance in an interval of the generation alone: outside it only what sees the prompt is computed."""

    kind: Literal["guidance-schedule"] = "guidance-schedule"
    """The kind of patch."""
    by: By = "timestep"
    """What `start` and `until` are, as in `asdm switch`: the timestep (falling), the log of the signal-to-noise ratio
    (rising), the fraction of the steps that are done (0 to 1), or the number of UNet calls that are done."""
    start: float | None = None
    """The first call with guidance is that at which the generation has come to this; left out, the first of all."""
    until: float | None = None
    """The call at which the generation has come to this is the first without again; left out, none is."""
    outside: Literal["conditional", "reuse", "difference"] = "conditional"
    """What guidance works with outside. `conditional`: with nothing, the output is that of the prompt alone. `reuse`:
    the last unconditional output. `difference`: what last lay between the two outputs. Before there is any of these,
    with nothing."""
    module: ClassVar[str] = "asdm_cli.patches.guidance"

    def told(self) -> list[str]:
        bounds = {"from": self.start, "until": self.until}
        spans = [f"{word} {self.by} {bound:g}" for word, bound in bounds.items() if bound is not None]
        if not spans:
            return ["guidance at every call"]
        return [f"guidance {' '.join(spans)} only; outside: {UNGUIDED[self.outside]}"]

    def misfits(self) -> Iterator[Misfit]:
        (low, high), falls = LIMITS[self.by], self.by in FALLING
        start, until = self.start, self.until
        given = [(key, bound) for key, bound in (("start", start), ("until", until)) if bound is not None]
        wrong = [(key, bound) for key, bound in given if not low <= bound <= high]
        if until is None and self.outside != "conditional":
            yield (
                ("outside",),
                "hands on what a call with guidance had, and without 'until' none comes before; leave it out",
            )
        yield from (((key,), f"a {self.by} lies between {low:g} and {high:g}, got {bound:g}") for key, bound in wrong)
        if start is None or until is None or wrong:
            return
        if until >= start if falls else until <= start:
            way = "falls: give less" if falls else "rises: give more"
            yield ("until",), f"no call is left for guidance; a {self.by} {way} than 'start', {start:g}"


def _of_its_kind(value: Any) -> PatchSpec:
    """By `kind`, of the kinds that there are now: a plug-in may have added one."""
    if isinstance(value, PatchSpec):
        return value
    if not isinstance(value, dict):
        raise PydanticCustomError("model_type", "must be a mapping of keys")
    if (kind := value.get("kind")) not in KINDS:
        known = one_of(list(KINDS))
        what = f"must be {known}, got {got(kind)}{did_you_mean(str(kind), list(KINDS))}"
        raise Misplaced([(("kind",), what if "kind" in value else f"must be given: {known}")])
    try:
        return KINDS[kind].model_validate(value)
    except ValidationError as error:
        raise Misplaced((where, what) for where, what, _ in told(error, value, KINDS[kind])) from None


_TOLD: Any = reduce(or_, KINDS.values())
"""The kinds that ship, as the schema tells programs and people of them."""
AnyPatch = Annotated[
    SerializeAsAny[PatchSpec],
    PlainValidator(_of_its_kind, json_schema_input_type=Annotated[_TOLD, Field(discriminator="kind")]),
]
