"""The geometry of a timeline, for the template that draws it. All lengths are px of the drawing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from asdm_cli.report.axis import Scale, Tick, cut, text_width
from asdm_cli.report.document import Timeline

ROW, GAP = 13, 3
AXIS, RIGHT = 44, 10
MOST_OF_WIDTH = 0.4
"""Long row names get at most this share of the width, and are cut there."""
WIDEST, SEAMED = 24, 5
"""Cells are no wider than the first, however few they are, and have seams between them from the second on."""
STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
LEGEND = {
    "computed": "computed",
    "inherited from an earlier call": "inherited",
    "dead: not computed, for nobody reads it": "dead",
}
"""What a reader is told of nodes -> the class of what is drawn."""


@dataclass(frozen=True)
class Span:
    """Calls in a row at which the same happens, as one rectangle. `state` is the class that it is drawn in."""

    x: float
    width: float
    state: str
    tip: str


@dataclass(frozen=True)
class Row:
    name: str
    y: float
    spans: list[Span]
    summary: str

    @property
    def outlines(self) -> dict[str, str]:
        """State -> the `d` attribute of one path around all its spans."""
        states = dict.fromkeys(span.state for span in self.spans)
        return {
            state: "".join(
                f"M{span.x},{self.y}h{span.width}v{ROW}h-{span.width}z" for span in self.spans if span.state == state
            )
            for state in states
        }


@dataclass(frozen=True)
class TimelinePlot:
    width: float
    height: float
    left: float
    right: float
    bottom: float
    """The cells lie between left and right, and end at the bottom."""
    rows: list[Row]
    ticks: list[Tick]
    seams: list[float]
    """Where one call ends and the next begins; none where cells are too narrow for that."""


def legend(timeline: Timeline, colours: Mapping[str, int]) -> list[tuple[str, str]]:
    """What a reader is told, and the class of what is drawn; words that do not occur are left out."""
    if timeline.is_of_nodes:
        return list(LEGEND.items())
    used = set("".join(timeline.cells))
    classes = _classes(timeline, colours)
    return [(word, classes[letter]) for letter, word in timeline.letters.items() if letter in used]


def lay_out(timeline: Timeline, width: float, colours: Mapping[str, int]) -> TimelinePlot:
    """`colours` by word, of a timeline whose letters are not those of nodes."""
    names_px = max((text_width(name) for name in timeline.rows), default=0)
    left = round(min(names_px + 8, MOST_OF_WIDTH * width), 1)
    calls = max(1, timeline.calls)
    right = round(min(width - RIGHT, left + calls * WIDEST), 1)
    scale = Scale(0, calls, left, right)
    bottom = max(0, len(timeline.rows) * (ROW + GAP) - GAP)
    classes = _classes(timeline, colours)
    return TimelinePlot(
        width=width,
        height=bottom + AXIS,
        left=left,
        right=right,
        bottom=bottom,
        rows=[
            _row(name, index * (ROW + GAP), cells, scale, timeline.letters, classes)
            for index, (name, cells) in enumerate(zip(timeline.rows, timeline.cells, strict=True))
        ],
        ticks=_ticks(timeline.calls, scale),
        seams=[scale(call) for call in range(1, calls)] if right - left >= SEAMED * calls else [],
    )


def _classes(timeline: Timeline, colours: Mapping[str, int]) -> dict[str, str]:
    """Of each letter."""
    if timeline.is_of_nodes:
        return timeline.letters
    return {letter: f"c{colours[word]}" for letter, word in timeline.letters.items()}


def _row(name: str, y: float, cells: str, scale: Scale, letters: Mapping[str, str], classes: Mapping[str, str]) -> Row:
    spans, first = [], 0
    for letter, group in groupby(cells):
        end = first + len(list(group))
        tip = f"{name}, {_calls(first, end - 1)}: {letters[letter]}"
        spans.append(Span(scale(first), round(scale(end) - scale(first), 1), classes[letter], tip))
        first = end
    counts = Counter(cells)
    summary = ", ".join(f"{counts[letter]} {word}" for letter, word in letters.items() if counts[letter])
    return Row(cut(name, scale.start - 8), y, spans, f"{name}: {summary}")


def _calls(first: int, last: int) -> str:
    return f"call {first}" if first == last else f"calls {first}–{last}"


def _ticks(calls: int, scale: Scale) -> list[Tick]:
    """Below the middle of their cells, at a round distance that leaves the numbers apart."""
    cell = scale(1) - scale(0)
    needed = text_width(str(calls)) + 12
    step = next((step for step in STEPS if step * cell >= needed), STEPS[-1])
    return [Tick(scale(call + 0.5), str(call)) for call in range(0, calls, step)]
