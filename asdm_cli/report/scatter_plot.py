"""The geometry of a scatter plot, for the template that draws it. All lengths are px of the drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import dist

from asdm_cli.report import frame as frames
from asdm_cli.report.axis import Scale
from asdm_cli.report.document import Point, Scatter
from asdm_cli.report.figures import short, value
from asdm_cli.report.frame import Frame
from asdm_cli.report.labels import Box, Label, place

RADIUS = 5
SAMPLE_PX = 6


@dataclass(frozen=True)
class Mark:
    x: float
    y: float
    colour: int
    label: Label
    tip: str
    whisker: tuple[float, float] | None


@dataclass(frozen=True)
class ScatterPlot:
    frame: Frame
    lines: list[tuple[int, str]]
    """Colour and the `points` attribute of a polyline."""
    marks: list[Mark]


def lay_out(scatter: Scatter, width: float, colours: Mapping[str, int]) -> ScatterPlot:
    """`colours` has a number for every series; a point of no series takes that of its label, if there is one.

    Points whose figures are missing or infinite have no place and are left out.
    """
    points = [point for point in scatter.points if value(point.x) is not None and value(point.y) is not None]
    frame = frames.lay_out(width, [point.x for point in points], _heights(points))
    names = dict.fromkeys(point.series for point in points if point.series)
    lines = [(colours[name], _line(points, name, frame)) for name in names]
    return ScatterPlot(
        frame=frame,
        lines=[line for line in lines if " " in line[1]],  # a line has two ends
        marks=_marks(points, colours, frame),
    )


def _heights(points: Sequence[Point]) -> list[float]:
    ends = [value(end) for point in points for end in (point.y, point.y_low, point.y_high)]
    return [end for end in ends if end is not None]


def _line(points: Sequence[Point], series: str, frame: Frame) -> str:
    along = sorted((point.x, point.y) for point in points if point.series == series)
    return " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in along)


def _marks(points: Sequence[Point], colours: Mapping[str, int], frame: Frame) -> list[Mark]:
    places = [(frame.x(point.x), frame.y(point.y), point.label) for point in points]
    # one thing may be a point of several series: it is named once
    named = [(x, y, "" if (x, y, text) in places[:index] else text) for index, (x, y, text) in enumerate(places)]
    whiskers = [_whisker(point, frame.y) for point in points]
    dots = [Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y, _ in places]
    bars = [
        Box(x - RADIUS, whisker[1], x + RADIUS, whisker[0])
        for (x, _, _), whisker in zip(places, whiskers, strict=True)
        if whisker
    ]
    labels = place(named, [*dots, *bars, *_line_boxes(points, frame)], frame.box)
    return [
        Mark(x, y, colours.get(point.series or point.label, 0), label, _tip(point), whisker)
        for point, (x, y, _), whisker, label in zip(points, places, whiskers, labels, strict=True)
    ]


def _line_boxes(points: Sequence[Point], frame: Frame) -> list[Box]:
    """Small boxes along the lines that join points of one series, so that labels keep off them."""
    boxes = []
    for series in {point.series for point in points if point.series}:
        along = sorted((frame.x(point.x), frame.y(point.y)) for point in points if point.series == series)
        for (x0, y0), (x1, y1) in pairwise(along):
            samples = 1 + int(dist((x0, y0), (x1, y1)) / SAMPLE_PX)
            shares = [index / samples for index in range(samples)]
            centres = [(x0 + share * (x1 - x0), y0 + share * (y1 - y0)) for share in shares]
            boxes += [Box(x - 3, y - 3, x + 3, y + 3) for x, y in centres]
    return boxes


def _whisker(point: Point, y_scale: Scale) -> tuple[float, float] | None:
    """Where the error bar begins and ends: low, high."""
    if point.y_low is None or point.y_high is None or value(point.y_low) is None or value(point.y_high) is None:
        return None
    return y_scale(point.y_low), y_scale(point.y_high)


def _tip(point: Point) -> str:
    between = ""
    if point.y_low is not None and point.y_high is not None:
        between = f" ({short(point.y_low)} to {short(point.y_high)})"
    return f"{point.label}: {short(point.x)}, {short(point.y)}{between}"
