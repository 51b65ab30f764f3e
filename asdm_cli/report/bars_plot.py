"""The geometry of grouped horizontal bars, for the template that draws them. All lengths are px of the drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from asdm_cli.report.axis import Scale, text_width
from asdm_cli.report.document import Bars
from asdm_cli.report.figures import short, text, value

BAR, GAP, GROUP_GAP = 13, 3, 14
MOST_OF_WIDTH = 0.4
"""Long category names get at most this share of the width, and are cut there."""


@dataclass(frozen=True)
class Bar:
    y: float
    length: float
    colour: int
    text: str
    tip: str


@dataclass(frozen=True)
class Group:
    name: str
    middle: float
    bars: list[Bar]


@dataclass(frozen=True)
class BarsPlot:
    width: float
    height: float
    left: float
    """Where the bars begin."""
    groups: list[Group]


def lay_out(bars: Bars, width: float, colours: Mapping[str, int]) -> BarsPlot:
    """`colours` has a number for every series. Bars start at zero; negative and missing figures have a text and no bar."""
    names_px = max((text_width(name) for name in bars.categories), default=0)
    left = min(names_px + 12, MOST_OF_WIDTH * width)
    figures = [value(figure) or 0.0 for row in bars.values.values() for figure in row]
    texts_px = max((text_width(short(figure)) for row in bars.values.values() for figure in row), default=0)
    scale = Scale(0.0, max([*figures, 0.0]) or 1.0, 0.0, width - left - texts_px - 12)
    step = len(bars.values) * (BAR + GAP) - GAP + GROUP_GAP
    groups = [_group(bars, index, index * step, scale, left, colours) for index in range(len(bars.categories))]
    return BarsPlot(width, len(groups) * step, left, groups)


def _group(bars: Bars, index: int, top: float, scale: Scale, left: float, colours: Mapping[str, int]) -> Group:
    name = bars.categories[index]
    drawn = []
    for place, (series, row) in enumerate(bars.values.items()):
        figure = row[index]
        y = top + GROUP_GAP / 2 + place * (BAR + GAP)
        length = max(0.0, scale(value(figure) or 0.0))
        tip = f"{name}, {series}: {text(figure, 2)} {bars.unit}"
        drawn.append(Bar(y, length, colours[series], short(figure), tip))
    middle = top + GROUP_GAP / 2 + (len(drawn) * (BAR + GAP) - GAP) / 2
    return Group(_cut(name, left - 12), middle, drawn)


def _cut(name: str, width: float) -> str:
    if text_width(name) <= width + 1:
        return name
    letters = int(width / (text_width("x")))
    return name[: max(1, letters - 1)] + "…"
