"""A timeline in the terminal: a row of characters per node, one for each call."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, groupby

from rich.cells import cell_len
from rich.text import Text

from asdm_cli.report.document import Timeline

MARKS = {"c": ("█", "cyan"), "i": ("▒", "cyan"), "d": ("·", "dim")}
"""The character of each state of a node, and its style."""
COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")
"""In turn, of letters that stand for other words."""
ROWS = 40
MOST_OF_WIDTH = 0.4
GAP = 2
RULER = 10
"""Calls between two numbers above the rows."""


def draw(timeline: Timeline, width: int) -> list[Text]:
    """Rows and calls that fit, what does not, and a legend."""
    longest = max((cell_len(name) for name in timeline.rows), default=0)
    names = max(1, min(longest, int(MOST_OF_WIDTH * width)))
    calls = max(1, min(timeline.calls, width - names - GAP))
    rows = list(zip(timeline.rows, timeline.cells, strict=True))[:ROWS]
    marks = _marks(timeline)
    lines = [_line(name, names, cells[:calls], marks) for name, cells in rows]
    ruler = Text(" " * (names + GAP) + _ruler(calls), style="dim")
    left_out = _left_out(timeline, calls)
    return [ruler, *lines, *([Text(left_out, style="dim")] if left_out else []), _legend(timeline, marks)]


def _marks(timeline: Timeline) -> Mapping[str, tuple[str, str]]:
    if timeline.is_of_nodes:
        return MARKS
    return {letter: (letter, colour) for letter, colour in zip(timeline.letters, cycle(COLOURS), strict=False)}


def _line(name: str, width: int, cells: str, marks: Mapping[str, tuple[str, str]]) -> Text:
    label = Text(name)
    label.truncate(width, overflow="ellipsis", pad=True)
    runs = [(letter, len(list(group))) for letter, group in groupby(cells)]
    return Text.assemble(label, " " * GAP, *((marks[letter][0] * count, marks[letter][1]) for letter, count in runs))


def _ruler(calls: int) -> str:
    """The number of every tenth call above it, where there is room for the whole number."""
    numbers = [str(call) for call in range(0, calls, RULER) if call + len(str(call)) <= calls]
    return "".join(number.ljust(RULER) for number in numbers)[:calls]


def _left_out(timeline: Timeline, calls: int) -> str:
    counts = {"rows": len(timeline.rows) - ROWS, "calls": timeline.calls - calls}
    more = " and ".join(f"{count} more {what}" for what, count in counts.items() if count > 0)
    return f"{more}; see report.html" if more else ""


def _legend(timeline: Timeline, marks: Mapping[str, tuple[str, str]]) -> Text:
    used = set("".join(timeline.cells))
    shown = [letter for letter in timeline.letters if timeline.is_of_nodes or letter in used]
    parts = [(marks[letter], timeline.letters[letter]) for letter in shown]
    return Text("  ").join(Text.assemble(mark, f" {word}") for mark, word in parts)
