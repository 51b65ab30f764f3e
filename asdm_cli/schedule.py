"""Which calls of a generation are key steps, computed in full; on the others something is inherited or switched.

Calls are counted inside one generation. A timestep's value says nothing: PNDM calls the UNet twice with one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from asdm_cli.recipe.patches import (
    Center,
    Early,
    Explicit,
    Late,
    Quadratic,
    Random,
    Schedule,
    Span,
    Threshold,
    Uniform,
)

CENTER = 0.3
"""Of the run: where `center` has its centre if the recipe names none; 15 of 50 calls, DeepCache's."""
FALL = 0.02
"""What a power loses at a time until the steps are as many as they should be."""
LISTED = 6
"""How many entries of `steps` a table shows."""
ROUNDING = 1e-9
"""A number this close below a whole one is that one, so that no machine's rounding moves a key step."""


def key_steps(schedule: Schedule, calls: int) -> tuple[int, ...] | None:
    """The key steps among 0..calls-1, in order, 0 always; None where they are decided while it runs (`threshold`)."""
    assert calls >= 1, "a generation calls the UNet"
    if isinstance(schedule, Threshold):
        return None
    return tuple(sorted({0, *range(min(schedule.first, calls)), *_STEPS[type(schedule)](schedule, calls)}))


def next_distance(error: float, distance: int, order: int, threshold: float, longest: int) -> int:
    """The largest distance from a key step, 1..longest, whose expected error is at most `threshold`.

    `error` is the relative error of a forecast of `order` (0: plain reuse) at `distance` calls after its key step;
    errors grow like distance^(order + 1). At 1 nothing is inherited: where nothing may be, and after a nan or inf.
    """
    assert distance >= 1, "there is no error at the key step itself"
    if not math.isfinite(error):
        return 1
    if error <= 0:
        return longest
    reach = distance * (threshold / error) ** (1 / (order + 1))
    return max(1, _whole(min(reach, longest)))


def describe(schedule: Schedule) -> str:
    """A few words for tables."""
    words = list(_WORDS[type(schedule)](schedule))
    return ", ".join([*words, f"first {schedule.first}"] if schedule.first else words)


def _uniform(schedule: Uniform, calls: int) -> Iterable[int]:
    return range(0, calls, schedule.interval)


def _early(schedule: Early | Late, calls: int) -> set[int]:
    count = _count(schedule.interval, calls)
    return _falling(schedule.power, calls, count, lambda power, share: _whole(calls * share**power))


def _late(schedule: Late, calls: int) -> set[int]:
    return {calls - step if step else 0 for step in _early(schedule, calls)}


def _center(schedule: Center, calls: int) -> set[int]:
    """Even steps between the roots of -center and calls - center, raised again.

    With `complex` the first root leaves the real line (Python's principal one), and what counts is the real part of
    a straight way back to it: DeepCache's schedule, but for calls that there depend on the rounding of whole numbers.
    Towards zero, as there, so the call of the centre itself is as wide as two.
    """
    center = min(calls * CENTER if schedule.center is None else schedule.center, calls)
    raised = _FORMS[schedule.form]

    def place(power: float, share: float) -> int:
        low, high = raised(-center, 1 / power), raised(calls - center, 1 / power)
        return math.floor(center + ROUNDING) + _whole(raised(low + (high - low) * share, power).real)

    return _falling(schedule.power, calls, _count(schedule.interval, calls), place)


def _quadratic(schedule: Quadratic, calls: int) -> set[int]:
    """Always as many as they should be: a square is no further than its step's share of the run."""
    count = _count(schedule.interval, calls)
    steps = [0]
    for k in range(1, count):
        steps.append(max(calls * k * k // count**2, steps[-1] + 1))
    return set(steps)


def _random(schedule: Random, calls: int) -> set[int]:
    """Sorted by draws of random(), the one method whose sequence Python promises for all versions."""
    draw = random.Random(schedule.seed).random
    others = sorted(range(1, calls), key=lambda _: draw())
    return {0, *others[: _count(schedule.interval, calls) - 1]}


def _explicit(schedule: Explicit, calls: int) -> Iterable[int]:
    return (call for entry in schedule.steps for call in Span.of(entry).within(calls))


_STEPS: dict[type[Any], Callable[[Any, int], Iterable[int]]] = {
    Uniform: _uniform,
    Early: _early,
    Late: _late,
    Center: _center,
    Quadratic: _quadratic,
    Random: _random,
    Explicit: _explicit,
}


def _signed(value: complex, exponent: float) -> float:
    return math.copysign(abs(value) ** exponent, value.real)


def _complex(value: complex, exponent: float) -> complex:
    return complex(value) ** exponent


_FORMS: dict[str, Callable[[complex, float], complex]] = {"complex": _complex, "signed": _signed}


def _count(interval: int, calls: int) -> int:
    return -(-calls // interval)


def _whole(value: float) -> int:
    return math.trunc(value + math.copysign(ROUNDING, value))


def _falling(power: float, calls: int, count: int, place: Callable[[float, float], int]) -> set[int]:
    """Call 0 and `place(power, share of the run)`, at the largest power that gives `count` calls of the run.

    Dense steps fall together, so a lower power has more of them. The limit, 1, is an even spread, which has them all.
    """
    while power > 1 + ROUNDING:
        steps = {0, *(place(power, k / count) for k in range(1, count))}
        if len(steps) == count and min(steps) >= 0 and max(steps) < calls:
            return steps
        power -= FALL
    return {k * calls // count for k in range(count)}


def _apart(schedule: Early | Late | Center | Quadratic | Random) -> str:
    return f"{schedule.interval} apart"


def _law_words(schedule: Early | Late) -> Iterator[str]:
    yield from (schedule.mode, _apart(schedule), f"power {schedule.power:g}")


def _center_words(schedule: Center) -> Iterator[str]:
    yield f"center {CENTER:.0%}" if schedule.center is None else f"center {schedule.center:g}"
    yield from (_apart(schedule), f"power {schedule.power:g}")
    yield from () if schedule.form == "complex" else (schedule.form,)


def _threshold_words(schedule: Threshold) -> Iterator[str]:
    yield f"threshold {schedule.threshold:g}"
    if schedule.longest != Threshold.model_fields["longest"].default:
        yield f"at most {schedule.longest} apart"


def _explicit_words(schedule: Explicit) -> Iterator[str]:
    yield "steps " + " ".join(str(entry) for entry in schedule.steps[:LISTED])
    if len(schedule.steps) > LISTED:
        yield f"and {len(schedule.steps) - LISTED} more"


def _every(schedule: Uniform) -> str:
    interval = schedule.interval
    ending = "th" if interval // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(interval % 10, "th")
    return "every call" if interval == 1 else f"every {interval}{ending}"


_WORDS: dict[type[Any], Callable[[Any], Iterable[str]]] = {
    Uniform: lambda schedule: [_every(schedule)],
    Early: _law_words,
    Late: _law_words,
    Center: _center_words,
    Quadratic: lambda schedule: ["quadratic", _apart(schedule)],
    Random: lambda schedule: ["random", _apart(schedule), f"seed {schedule.seed}"],
    Explicit: _explicit_words,
    Threshold: _threshold_words,
}
