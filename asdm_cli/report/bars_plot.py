"""The geometry of grouped horizontal bars, for the template that draws them. All lengths are px of the drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from asdm_cli.report.axis import Scale, cut, text_width
from asdm_cli.report.document import Bars
from asdm_cli.report.figures import digits_for, text, value

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
    """`colours` has a number for every series.

    Bars start at zero; a figure that is negative or missing has a text and no bar.
    """
    names_px = max((text_width(name) for name in bars.categories), default=0)
    left = min(names_px + 12, MOST_OF_WIDTH * width)
    texts_px = max((text_width(item) for row in _texts(bars).values() for item in row), default=0)
    longest = max((value(figure) or 0.0 for row in bars.values.values() for figure in row), default=0.0)
    scale = Scale(0.0, longest if longest > 0 else 1.0, left, width - texts_px - 12)
    step = len(bars.values) * (BAR + GAP) - GAP + GROUP_GAP
    groups = [_group(bars, index, index * step, scale, colours) for index in range(len(bars.categories))]
    return BarsPlot(width, len(groups) * step, left, groups)


def _group(bars: Bars, index: int, top: float, scale: Scale, colours: Mapping[str, int]) -> Group:
    name, texts, drawn = bars.categories[index], _texts(bars), []
    for place, (series, row) in enumerate(bars.values.items()):
        y = top + GROUP_GAP / 2 + place * (BAR + GAP)
        length = max(0.0, round(scale(value(row[index]) or 0.0) - scale.start, 1))
        tip = f"{name}, {series}: {texts[series][index]} {bars.unit}"
        drawn.append(Bar(y, length, colours[series], texts[series][index], tip))
    middle = top + GROUP_GAP / 2 + (len(drawn) * (BAR + GAP) - GAP) / 2
    return Group(cut(name, scale.start - 12), middle, drawn)


def _texts(bars: Bars) -> dict[str, list[str]]:
    """Every figure with as many digits as the largest needs; a plain 0 stands out among them."""
    digits = digits_for(figure for row in bars.values.values() for figure in row)
    return {
        series: ["0" if figure == 0 else text(figure, digits) for figure in row] for series, row in bars.values.items()
    }
