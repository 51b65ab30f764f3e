"""Fronts of time and quality, and what one gains over another. Plain numbers in and out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

FEWER, ALONE, DEEPCACHE = PEERS = ("fewer steps", "output alone", "DeepCache")
"""Series of what a user would do instead; the others are held against them."""


class ParetoPoint(NamedTuple):
    """One way of drawing: its time as a share of the first set-up's, and a quality of which more is better."""

    time: float
    quality: float


ParetoFront = tuple[ParetoPoint, ...]


def front(shots: Iterable[ParetoPoint]) -> ParetoFront:
    """Those that nothing faster equals, from fast to slow; quality rises along it."""
    best: list[ParetoPoint] = []
    for shot in sorted(shots, key=lambda each: (each.time, -each.quality)):
        if not best or shot.quality > best[-1].quality:
            best.append(shot)
    return tuple(best)


def time_at(line: ParetoFront, quality: float) -> float | None:
    """The time in which a front reaches a quality, between its shots by a straight line; its fastest shot's, where that
    is better. None beyond its last."""
    if line and quality <= line[0].quality:
        return line[0].time
    return _between([(shot.quality, shot.time) for shot in line], quality)


def quality_at(line: ParetoFront, time: float) -> float | None:
    """The quality that a front reaches in a time; beyond its last shot that shot's, None before its first."""
    if line and time >= line[-1].time:
        return line[-1].quality
    return _between([(shot.time, shot.quality) for shot in line], time)


def _between(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """Linear in rising x."""
    if not points or x < points[0][0]:
        return None
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (x - x0) / (x1 - x0) * (y1 - y0)
    return points[-1][1] if x == points[-1][0] else None
