"""The geometry of curves, for the template that draws them. All lengths are px of the drawing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from statistics import fmean

from asdm_cli.report import frame as frames
from asdm_cli.report.document import Curves
from asdm_cli.report.figures import Course, course, short, text, value
from asdm_cli.report.frame import Frame

MOST = 300
PX_EACH = 2
"""A line has at most so many points, and none closer than this to the next."""
EXTREME = 1e200
"""Figures beyond this are as good as infinite; on a logarithmic scale, those below its inverse are as good as 0."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Stretch:
    """Neighbouring points of a line as one: the mean of their heights, and the lowest and highest."""

    x: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    colour: int
    points: str
    """The `points` attribute of a polyline."""
    band: str
    """The `d` attribute of the area between the lowest and highest of each stretch; empty for a line not thinned."""
    alone: tuple[float, float] | None
    """Where the only point is, if there is one only."""
    tip: str


@dataclass(frozen=True)
class CurvesPlot:
    frame: Frame
    lines: list[Line]
    left_out: list[str]
    """What is not drawn, in words."""


def lay_out(curves: Curves, width: float, colours: Mapping[str, int]) -> CurvesPlot:
    """`colours` has a number for every line.

    Figures that have no place (missing, infinite, or not above 0 where the scale is logarithmic) are left out, and
    the line goes straight over the gap. A line of more points than can be told apart is thinned to the arithmetic
    means of equal stretches, and the whole reach of each stretch is drawn behind it: noise stays to be seen.
    """
    drawn = {name: [point for point in line if _has_place(point, curves.log)] for name, line in curves.lines.items()}
    every = [point for line in drawn.values() for point in line]
    frame = frames.lay_out(width, [x for x, _ in every], [y for _, y in every], air=0, log=curves.log)
    most = min(MOST, int((frame.box.right - frame.box.left) / PX_EACH))
    lines = [
        _line(points, frame, most, colours[name], tip(name, course(curves.lines[name])))
        for name, points in drawn.items()
        if points
    ]
    counts = {name: (len(line) - len(drawn[name]), len(line)) for name, line in curves.lines.items()}
    what = "not finite, or not above 0" if curves.log else "not finite"
    left_out = [f"{name}: {fewer:,} of {all_:,} ({what})" for name, (fewer, all_) in counts.items() if fewer]
    return CurvesPlot(frame, lines, left_out)


def thinned(points: Points, most: int) -> list[Stretch]:
    """At most `most` stretches of as many points each, give or take one.

    The first and the last reach to the ends of the line; the others lie in the middle of their points.
    """
    count = min(most, len(points))
    cuts = [index * len(points) // count for index in range(count + 1)]
    stretches = [_stretch(points[begin:end]) for begin, end in pairwise(cuts)]
    ends = {0: points[0][0], count - 1: points[-1][0]}
    return [
        Stretch(ends.get(index, stretch.x) if count > 1 else stretch.x, stretch.mean, stretch.low, stretch.high)
        for index, stretch in enumerate(stretches)
    ]


def tip(name: str, line: Course) -> str:
    """What a line does, in words."""
    if line.first is None or line.last is None:
        return f"{name}: no figures"
    lowest = "" if line.lowest is None else f", lowest {short(line.lowest)}"
    return f"{name}: from {_said(line.first)} to {_said(line.last)}{lowest}"


def _said(figure: float) -> str:
    return text(figure) if value(figure) is None else short(figure)


def _has_place(point: tuple[float, float], log: bool) -> bool:
    x, y = point
    return abs(x) < EXTREME and (1 / EXTREME < y < EXTREME if log else abs(y) < EXTREME)  # false for NaN


def _stretch(points: Points) -> Stretch:
    heights = [y for _, y in points]
    return Stretch(fmean(x for x, _ in points), fmean(heights), min(heights), max(heights))


def _line(points: Points, frame: Frame, most: int, colour: int, said: str) -> Line:
    stretches = thinned(points, most)
    means = [(frame.x(stretch.x), frame.y(stretch.mean)) for stretch in stretches]
    return Line(
        colour=colour,
        points=_path(means),
        band=_band(stretches, frame) if len(points) > len(stretches) else "",
        alone=means[0] if len(means) == 1 else None,
        tip=said,
    )


def _band(stretches: Sequence[Stretch], frame: Frame) -> str:
    upper = [(frame.x(stretch.x), frame.y(stretch.high)) for stretch in stretches]
    lower = [(frame.x(stretch.x), frame.y(stretch.low)) for stretch in reversed(stretches)]
    return f"M{_path(chain(upper, lower))}z"


def _path(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)
