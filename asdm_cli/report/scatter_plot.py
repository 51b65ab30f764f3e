"""The geometry of a scatter plot, for the template that draws it. All lengths are px of the drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import dist

from asdm_cli.report.axis import Scale, Tick, around, text_width
from asdm_cli.report.document import Point, Scatter
from asdm_cli.report.figures import short, value
from asdm_cli.report.labels import Box, Label, place

TOP, BOTTOM, RIGHT = 34, 52, 16
RADIUS = 5
SAMPLE_PX = 4


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
    width: float
    height: float
    frame: Box
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[tuple[int, str]]
    """Colour and the `points` attribute of a polyline."""
    marks: list[Mark]


def lay_out(scatter: Scatter, width: float, colours: Mapping[str, int]) -> ScatterPlot:
    """`colours` has a number for every series; a point of no series takes that of its label, if there is one.

    Points whose figures are missing or infinite have no place and are left out.
    """
    points = [point for point in scatter.points if value(point.x) is not None and value(point.y) is not None]
    height = round(min(0.62 * width, 380) + TOP)
    y_scale = around(_heights(points), height - BOTTOM, TOP)
    y_ticks = y_scale.ticks(5)
    left = round(14 + max((text_width(tick.text) for tick in y_ticks), default=0))
    frame = Box(left, TOP, width - RIGHT, height - BOTTOM)
    x_scale = around([point.x for point in points], frame.left, frame.right)
    names = dict.fromkeys(point.series for point in points if point.series)
    lines = [(colours[name], _line(points, name, x_scale, y_scale)) for name in names]
    return ScatterPlot(
        width=width,
        height=height,
        frame=frame,
        x_ticks=x_scale.ticks(max(4, round(width / 100))),
        y_ticks=y_ticks,
        lines=[line for line in lines if " " in line[1]],  # a line has two ends
        marks=_marks(points, colours, x_scale, y_scale, frame),
    )


def _heights(points: Sequence[Point]) -> list[float]:
    ends = [value(end) for point in points for end in (point.y, point.y_low, point.y_high)]
    return [end for end in ends if end is not None]


def _line(points: Sequence[Point], series: str, x_scale: Scale, y_scale: Scale) -> str:
    along = sorted((point.x, point.y) for point in points if point.series == series)
    return " ".join(f"{x_scale(x)},{y_scale(y)}" for x, y in along)


def _marks(
    points: Sequence[Point], colours: Mapping[str, int], x_scale: Scale, y_scale: Scale, frame: Box
) -> list[Mark]:
    places = [(x_scale(point.x), y_scale(point.y), point.label) for point in points]
    whiskers = [_whisker(point, y_scale) for point in points]
    dots = [Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y, _ in places]
    bars = [
        Box(x - RADIUS, whisker[1], x + RADIUS, whisker[0])
        for (x, _, _), whisker in zip(places, whiskers, strict=True)
        if whisker
    ]
    labels = place(places, [*dots, *bars, *_line_boxes(points, x_scale, y_scale)], frame)
    return [
        Mark(x, y, colours.get(point.series or point.label, 0), label, _tip(point), whisker)
        for point, (x, y, _), whisker, label in zip(points, places, whiskers, labels, strict=True)
    ]


def _line_boxes(points: Sequence[Point], x_scale: Scale, y_scale: Scale) -> list[Box]:
    """Small boxes along the lines that join points of one series, so that labels keep off them."""
    boxes = []
    for series in {point.series for point in points if point.series}:
        along = sorted((x_scale(point.x), y_scale(point.y)) for point in points if point.series == series)
        for (x0, y0), (x1, y1) in pairwise(along):
            samples = 1 + int(dist((x0, y0), (x1, y1)) / SAMPLE_PX)
            shares = [index / samples for index in range(samples)]
            centres = [(x0 + share * (x1 - x0), y0 + share * (y1 - y0)) for share in shares]
            boxes += [Box(x - 2, y - 2, x + 2, y + 2) for x, y in centres]
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
