"""Schedules as recipes write them: which UNet calls of a generation are key steps. `asdm_cli.schedule` reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from asdm_cli.recipe.schema import Distinct, Inner, Misplaced, Positive, Seed, Strict, Text, Whole
from asdm_cli.recipe.words import did_you_mean, got, one_of

_NUMBER = r"[0-9]{1,9}"
_PERCENT = rf"({_NUMBER}(?:\.{_NUMBER})?)%"
_CALLS = re.compile(rf"({_NUMBER})-({_NUMBER})?")
_SHARE = re.compile(rf"{_PERCENT}-(?:{_PERCENT})?")


@dataclass(frozen=True)
class Span:
    """One entry of `steps`. Calls from `start` to before `end`; in hundredths of the run if `percent`; None is open."""

    start: Fraction
    end: Fraction | None
    percent: bool = False

    @classmethod
    def of(cls, entry: int | str) -> Span:
        """ValueError where the text is no range, or a range without calls."""
        if isinstance(entry, int):
            return cls(Fraction(entry), Fraction(entry + 1))
        match = _CALLS.fullmatch(entry) or _SHARE.fullmatch(entry)
        if match is None:
            raise ValueError(f"must be a call or a range such as '5-9', '20-' or '0%-40%', got {got(entry)}")
        percent, (start, end) = match.re is _SHARE, match.groups()
        inside = 0 if percent else 1  # '5-9' has both its ends, '0%-40%' and '40%-100%' share no call
        span = cls(Fraction(start), None if end is None else Fraction(end) + inside, percent)
        if percent and max(span.start, span.end or 0) > 100:
            raise ValueError(f"a run ends at 100%, got {got(entry)}")
        if span.end is not None and span.end <= span.start:
            raise ValueError(f"the range ends before it starts, got {got(entry)}")
        return span

    def within(self, calls: int) -> range:
        """Those of a run of so many calls: call i is in 'a%-b%' if a <= 100 i / calls < b."""
        unit = Fraction(calls, 100) if self.percent else 1
        end = calls if self.end is None else min(calls, ceil(self.end * unit))
        return range(ceil(self.start * unit), end)


def _spans(steps: list[int | str]) -> list[int | str]:
    faults: list[tuple[Inner, str]] = []
    for index, entry in enumerate(steps):
        try:
            Span.of(entry)
        except ValueError as error:
            faults.append(((index,), str(error)))
    if faults:
        raise Misplaced(faults)
    return steps


class _Schedule(Strict):
    mode: str
    """Stands here to be the first key of a recipe that is written back."""
    first: Whole = 0
    """So many calls at the start are key steps whatever the mode says; the very first call always is."""


class _Counted(_Schedule):
    interval: Positive
    """How far apart key steps are on average: a run of T calls has ceil(T / interval) of them. 1 is every call."""


class _Law(_Counted):
    power: Annotated[float, Field(ge=1, le=10)] = 1.4
    """How uneven the steps are; 1 is evenly. Falls by 0.02 until the steps are as many as `interval` says."""


class Uniform(_Counted):
    """Every so many calls."""

    mode: Literal["uniform"]
    """Calls 0, interval, 2 interval, ..."""


class Early(_Law):
    """Dense at the start."""

    mode: Literal["early"]
    """A power law: step k of n is call T (k / n)^power."""


class Late(_Law):
    """Dense at the end."""

    mode: Literal["late"]
    """The distances of `early` in reverse."""


class Center(_Law):
    """Dense about a call inside the run."""

    mode: Literal["center"]
    """A power law to both sides of `center`."""
    center: Annotated[float, Field(ge=0)] | None = None
    """The call about which steps are densest, at most the run's end; 30% of the run if left out."""
    form: Literal["complex", "signed"] = "complex"
    """`complex`: DeepCache's, smooth, for powers below 2; `signed`: the law mirrored, densest at the centre itself."""


class Quadratic(_Counted):
    """Dense at the start, consecutive calls first."""

    mode: Literal["quadratic"]
    """Squares: step k of n is call T (k / n)^2, or the one after step k - 1 where that is later."""


class Random(_Counted):
    """A seeded draw: what a schedule that means something has to beat."""

    mode: Literal["random"]
    """Call 0 and others drawn by `seed`, the same on every machine."""
    seed: Seed = 0
    """Another seed, another draw."""


class Explicit(_Schedule):
    """A list of calls."""

    mode: Literal["explicit"]
    """The calls of `steps`, and call 0."""
    steps: Annotated[list[Whole | Text], Field(min_length=1), AfterValidator(_spans), Distinct]
    """Calls from 0 and ranges: `5-9` (with both ends), `20-` (to the run's end), `0%-40%` (of the run, without its
    end). Calls that a run does not have are left out."""


class Threshold(_Schedule):
    """Decided while a generation runs, on the change that it measures."""

    mode: Literal["threshold"]
    """A key step follows as soon as inheriting would cost more than `threshold`."""
    threshold: Annotated[float, Field(gt=0)]
    """The largest relative error that an inherited feature may be expected to have."""
    longest: Positive = 8
    """Most calls from one key step to the next."""


MODES: dict[str, type[_Schedule]] = {
    "uniform": Uniform,
    "early": Early,
    "late": Late,
    "center": Center,
    "quadratic": Quadratic,
    "random": Random,
    "explicit": Explicit,
    "threshold": Threshold,
}


CountedMode = Literal["uniform", "early", "late", "center", "quadratic", "random"]
"""The modes that need nothing but an interval."""


def _known_mode(value: Any) -> Any:
    """Tell a wrong mode at the mode; pydantic tells it of tags, at the whole schedule."""
    if isinstance(value, _Schedule):
        return value
    if not isinstance(value, dict):
        raise PydanticCustomError("model_type", "must be a mapping of keys")
    if "mode" not in value:
        raise Misplaced([(("mode",), f"must be given: {one_of(list(MODES))}")])
    mode = value["mode"]
    if not isinstance(mode, str) or mode not in MODES:
        hint = did_you_mean(mode, list(MODES)) if isinstance(mode, str) else ""
        raise Misplaced([(("mode",), f"must be {one_of(list(MODES))}, got {got(mode)}{hint}")])
    return value


def _tag(value: dict[str, Any] | _Schedule) -> str:
    """Not the mode itself: pydantic puts tags into the places of faults, and `center` is also a key."""
    return f"mode {value['mode'] if isinstance(value, dict) else value.mode}"


Schedule = Annotated[
    Annotated[Uniform, Tag("mode uniform")]
    | Annotated[Early, Tag("mode early")]
    | Annotated[Late, Tag("mode late")]
    | Annotated[Center, Tag("mode center")]
    | Annotated[Quadratic, Tag("mode quadratic")]
    | Annotated[Random, Tag("mode random")]
    | Annotated[Explicit, Tag("mode explicit")]
    | Annotated[Threshold, Tag("mode threshold")],
    Discriminator(_tag),
    BeforeValidator(_known_mode),
]
"""Told apart by `mode`."""
