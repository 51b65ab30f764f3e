"""Labels beside their points: each at the free place that covers least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asdm_cli.report.axis import FONT_PX, text_width

GAP = 9
PLACES = (
    (GAP, 0.0, "start"),
    (0.0, -1.25 * FONT_PX, "middle"),
    (0.0, 1.25 * FONT_PX, "middle"),
    (-GAP, 0.0, "end"),
    (GAP, -0.95 * FONT_PX, "start"),
    (GAP, 0.95 * FONT_PX, "start"),
    (-GAP, -0.95 * FONT_PX, "end"),
    (-GAP, 0.95 * FONT_PX, "end"),
)
"""Offset of the text's anchor from the point in px, and the anchor; the first is the most welcome."""
SHARE_BEFORE_ANCHOR = {"start": 0.0, "middle": 0.5, "end": 1.0}


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: Box) -> float:
        """Area in common, px²."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)


@dataclass(frozen=True)
class Label:
    text: str
    x: float
    y: float
    anchor: str
    box: Box


def place(points: Sequence[tuple[float, float, str]], obstacles: Sequence[Box], frame: Box) -> list[Label]:
    """A label for each (x, y, text) in turn, clear of obstacles and of the labels before it where that can be."""
    labels: list[Label] = []
    for x, y, text in points:
        taken = [*obstacles, *(label.box for label in labels)]
        options = [_label(x + dx, y + dy, text, anchor) for dx, dy, anchor in PLACES]
        labels.append(min(options, key=lambda option: _cost(option.box, taken, frame)))
    return labels


def _label(x: float, y: float, text: str, anchor: str) -> Label:
    width = text_width(text)
    left = x - SHARE_BEFORE_ANCHOR[anchor] * width
    box = Box(left, y - 0.5 * FONT_PX, left + width, y + 0.5 * FONT_PX)
    return Label(text, round(x, 1), round(y + 0.35 * FONT_PX, 1), anchor, box)


def _cost(box: Box, taken: Sequence[Box], frame: Box) -> float:
    outside = box.area - box.shared(frame)
    return sum(box.shared(other) for other in taken) + 10 * outside
