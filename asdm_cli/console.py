"""What leaves the program: bars with time left, notes and errors on stderr, what a command is for on stdout.

Whatever models, recipes and reports hold is made harmless here, and nowhere else. That somebody has stopped reading
stops no work.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TypeVar

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.text import Text

from asdm_cli.errors import printable

Item = TypeVar("Item")
LINES = "\n\N{NO-BREAK SPACE}\N{FIGURE SPACE}\N{PUNCTUATION SPACE}"
"""Told as they are, though they have no glyph: what ends lines and sets figures under one another."""
SOON, RARELY = 30.0, 600.0
"""Seconds between the lines that stand for a bar in a log."""
BRIEF = "ASDM_BRIEF"
"""Set in the environment of a pipeline's stages: bars and notes only, since their tables are in its own report."""


class Terminal(Console):
    """A console on which only rich's own styles move or colour anything; texts are no markup."""

    def __init__(self, stderr: bool = False):
        super().__init__(stderr=stderr, soft_wrap=not stderr, markup=False, highlight=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, LINES), segment.style)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _abandon(self.file)


console = Terminal(stderr=True)


def is_first() -> bool:
    """Whether this process speaks and writes, of those that `accelerate launch` started together."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"  # job systems number lone processes too
    return alone or os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def quiet(on: bool) -> None:
    """Silence bars, notes and tables (`-q`); errors are still printed by the CLI."""
    console.quiet = on


def note(message: str) -> None:
    console.print(message, soft_wrap=True)


def say(message: str) -> None:
    """An error, on stderr; also under `-q`."""
    _write(printable(message, LINES), sys.stderr)


def hand_over(result: object) -> None:
    """On stdout, as it is: programs read it."""
    _write(str(result), sys.stdout)


def _write(text: str, stream: IO[str]) -> None:
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        _abandon(stream)


def _abandon(stream: IO[str]) -> None:
    """Nobody reads this any more; what is still in its buffer goes nowhere, when Python ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items` behind a bar with the time left; the bar disappears when it is done. In a log lines say it."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with bar(what, total) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def bar(what: str, total: int | None, start: int = 0) -> Iterator[Callable[..., None]]:
    """Such a bar for what is no loop: call what it yields, from any thread, each time that one of `total` is done, or
    with how many are done and figures to show on a line below."""
    if not console.is_terminal:  # a log would get a blank line for every change
        yield _lines(what, total, start)
        return
    from rich import progress
    from rich.live import Live

    shown = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        speed_estimate_period=300,
    )
    task = shown.add_task(what, total=total, completed=start)
    figures = Text(overflow="ellipsis", no_wrap=True, style="dim")

    def advance(done: int | None = None, words: str = "") -> None:
        if done is None:
            shown.advance(task)
        else:
            shown.update(task, completed=done)
        figures.plain = words

    def render() -> RenderableType:
        return Group(shown, figures) if figures.plain else shown

    with Live(get_renderable=render, console=console, transient=True):
        yield advance


def _lines(what: str, total: int | None, start: int) -> Callable[..., None]:
    """The same for a log: a line after half a minute, and then more and more rarely."""
    begun, done, due, wait = time.monotonic(), start, time.monotonic() + SOON, SOON

    def advance(at: int | None = None, words: str = "") -> None:
        nonlocal done, due, wait
        done, now = done + 1 if at is None else at, time.monotonic()
        if now < due:
            return
        due, wait = now + wait, min(2 * wait, RARELY)
        left = (now - begun) / max(1, done - start) * (total - done) if total else 0.0
        told = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min"
        ends = f" of {total}, about {told} left" if total else ""
        note(f"{what}: {done}{ends}{f' ({words})' if words else ''}")

    return advance
