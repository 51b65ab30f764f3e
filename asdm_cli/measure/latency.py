"""Fair timing: contestants take turns, and speed-ups are ratios taken within one round.

A busy or throttled machine slows every contestant of a round alike, so a ratio of times from the same
round is steadier than a ratio of two medians.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from asdm_cli.console import track
from asdm_cli.measure.contestants import blame
from asdm_cli.report.document import Interval

Work = Callable[[], object]
Stopwatch = Callable[[Work], float]

ORDER_RULE = "round r starts with contestant r modulo their number and goes round the list once"


def stopwatch(device: torch.device) -> Stopwatch:
    """Seconds of wall time from an idle device to an idle device, launch overhead included."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def seconds(work: Work) -> float:
        synchronise()
        start = time.perf_counter()
        work()
        synchronise()
        return time.perf_counter() - start

    return seconds


def turns(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Every name once a round, by `ORDER_RULE`: nobody always runs first, or always after the same one."""
    for start in range(rounds):
        offset = start % len(names)
        yield from (*names[offset:], *names[:offset])


def take_turns(
    works: Mapping[str, Work], *, warmups: int, rounds: int, seconds: Stopwatch, doing: str
) -> dict[str, list[float]]:
    """Seconds of each contestant in each timed round; warm-up rounds are run and forgotten.

    Raises RunError naming the contestant whose work failed, and what it was `doing`.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for name in track(turns(list(works), warmups + rounds), doing, len(works) * (warmups + rounds)):
        with blame(name, doing):
            times[name].append(seconds(works[name]))
    return {name: taken[warmups:] for name, taken in times.items()}


def quartiles(samples: Sequence[float], scale: float = 1.0) -> Interval:
    """The median between the quartiles, multiplied by `scale` (1000: seconds to milliseconds)."""
    low, median, high = (float(figure) * scale for figure in np.percentile(samples, [25, 50, 75]))
    return Interval(median, low, high, "quartiles")


def speedup(first: Sequence[float], this: Sequence[float], resamples: int = 2000, seed: int = 0) -> Interval:
    """Median over rounds of first/this (above 1: faster than the first), with its 95 % bootstrap interval."""
    ratios = np.asarray(first) / np.asarray(this)
    picks = np.random.default_rng(seed).integers(0, len(ratios), size=(resamples, len(ratios)))
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    return Interval(float(np.median(ratios)), float(low), float(high), "95 % bootstrap")


def latency_cut(ratio: float) -> float:
    """Per cent of the first contestant's time that is saved, from a speed-up of first/this."""
    return 100.0 * (1.0 - 1.0 / ratio)


def throughput_gain(ratio: float) -> float:
    """Per cent more work done in the same time, from a speed-up of first/this."""
    return 100.0 * (ratio - 1.0)
