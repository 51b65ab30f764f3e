"""The frame of a plot with two axes: where figures lie in it, and the ticks on its sides. All lengths are px."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from asdm_cli.report.axis import Scale, Tick, around, around_log, text_width
from asdm_cli.report.labels import Box

TOP, BOTTOM, RIGHT = 34, 52, 16
LOWEST, HIGHEST = 280, 380
Y_TICKS, LOG_TICKS = 5, 10
LOG_TICK_PX = 18
APART = 12


@dataclass(frozen=True)
class Frame:
    width: float
    height: float
    box: Box
    """The part of the drawing in which figures lie."""
    x: Scale
    y: Scale
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def lay_out(width: float, xs: Sequence[float], ys: Sequence[float], air: float = 0.08, log: bool = False) -> Frame:
    """A frame for these figures; `air` is the share of the breadth that stays free on either side of them.

    With `log` the heights, all above 0, are set on a logarithmic scale.
    """
    height = round(min(max(0.62 * width, LOWEST), HIGHEST) + TOP)
    bottom = height - BOTTOM
    y = around_log(ys, bottom, TOP) if log else around(ys, bottom, TOP)
    y_ticks = y.ticks(min(LOG_TICKS, int((bottom - TOP) / LOG_TICK_PX)) if log else Y_TICKS)
    left = round(14 + max((text_width(tick.text) for tick in y_ticks), default=0))
    x = around(xs, left, width - RIGHT, air)
    return Frame(width, height, Box(left, TOP, width - RIGHT, bottom), x, y, _across(x, width), y_ticks)


def _across(scale: Scale, width: float) -> list[Tick]:
    """As many ticks as the width is good for, fewer where their texts would touch."""
    for count in range(max(4, round(width / 100)), 1, -1):
        ticks = scale.ticks(count)
        if all(
            after.at - at.at >= APART + text_width(max(at.text, after.text, key=len)) for at, after in pairwise(ticks)
        ):
            return ticks
    return scale.ticks(1)
