"""Labels beside their points: each at the free place that covers least, none on top of another."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from math import dist, hypot

from asdm_cli.report.axis import FONT_PX, text_width

GAP = 9
NEAR = (
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
FAR = tuple(
    (side * (GAP + 9 * ring), lines * 1.15 * FONT_PX, anchor)
    for ring in (1, 3)
    for lines in (-1, 1, -2, 2, -3, 3)
    for side, anchor in ((1, "start"), (-1, "end"))
)
"""Places that a thin line joins with their point."""
SHARE_BEFORE_ANCHOR = {"start": 0.0, "middle": 0.5, "end": 1.0}
PASSES = 3
"""How often each label is placed, from the second time on among all others."""
ON_TEXT, OUTSIDE, FAR_OFF, ASTRAY = 4.0, 10.0, 3.0, 400.0
"""What a px² on another label or outside of the frame costs beside one on a mark; what a px of a thin line does, and
to lie nearer to another point."""
READABLE = 0.1
"""A label that shares more of its area with others is left out."""


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: Box) -> float:
        """Area in common, px²."""
        width = min(self.right, other.right) - max(self.left, other.left)
        if width <= 0:
            return 0.0
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width * height if height > 0 else 0.0

    def distance(self, point: tuple[float, float]) -> float:
        x, y = point
        return hypot(max(self.left - x, 0.0, x - self.right), max(self.top - y, 0.0, y - self.bottom))

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)


@dataclass(frozen=True)
class Label:
    """`text` is empty where a label would have hidden another. `leader` is where a thin line to its point ends."""

    text: str
    x: float
    y: float
    anchor: str
    box: Box
    leader: tuple[float, float] | None = None


def place(points: Sequence[tuple[float, float, str]], obstacles: Sequence[Box], frame: Box) -> list[Label]:
    """A label for each (x, y, text), clear of obstacles and of other labels where that can be."""
    dots = {(x, y) for x, y, _ in points}
    choices = [_choices(x, y, text, obstacles, frame, dots - {(x, y)}) for x, y, text in points]
    labels: list[Label] = []
    for turn in range(PASSES):
        for index, options in enumerate(choices):
            others = [label.box for place, label in enumerate(labels) if place != index and label.text]
            best = min(options, key=lambda option: option[0] + ON_TEXT * _covered(option[1].box, others))[1]
            labels[index : index + (turn > 0)] = [best]
    return _readable(labels)


def _choices(
    x: float, y: float, text: str, obstacles: Sequence[Box], frame: Box, others: Set[tuple[float, float]]
) -> list[tuple[float, Label]]:
    """Every place of a label with its cost before other labels are thought of."""
    near = [_label(x, y, place, text, joined=False) for place in NEAR]
    far = [_label(x, y, place, text, joined=True) for place in FAR] if text else []
    return [
        (_cost(label, (x, y), obstacles, frame) + ASTRAY * _is_nearer(label.box, others, (x, y)), label)
        for label in (*near, *far)
    ]


def _label(x: float, y: float, place: tuple[float, float, str], text: str, joined: bool) -> Label:
    (dx, dy, anchor), width = place, text_width(text)
    left = x + dx - SHARE_BEFORE_ANCHOR[anchor] * width
    box = Box(left, y + dy - 0.5 * FONT_PX, left + width, y + dy + 0.5 * FONT_PX)
    leader = (round(x + dx + (-2 if dx > 0 else 2), 1), round(y + dy, 1)) if joined else None
    return Label(text, round(x + dx, 1), round(y + dy + 0.35 * FONT_PX, 1), anchor, box, leader)


def _cost(label: Label, point: tuple[float, float], obstacles: Sequence[Box], frame: Box) -> float:
    outside = label.box.area - label.box.shared(frame)
    far = dist(point, label.leader) if label.leader else 0.0
    return _covered(label.box, obstacles) + OUTSIDE * outside + FAR_OFF * far


def _is_nearer(box: Box, others: Set[tuple[float, float]], own: tuple[float, float]) -> bool:
    return any(box.distance(other) < box.distance(own) for other in others)


def _covered(box: Box, others: Sequence[Box]) -> float:
    return sum(box.shared(other) for other in others)


def _readable(labels: Sequence[Label]) -> list[Label]:
    """The labels in turn, without the text of those that would lie on earlier ones."""
    shown: list[Label] = []
    for label in labels:
        covered = _covered(label.box, [other.box for other in shown if other.text])
        shown.append(replace(label, text="", leader=None) if covered > READABLE * label.box.area else label)
    return shown
