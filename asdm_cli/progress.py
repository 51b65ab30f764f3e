"""What a person sees while a command works: bars with time left and short notes, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Item = TypeVar("Item")
console = Console(stderr=True)
BRIEF = "ASDM_BRIEF"
"""Set in the environment of a pipeline's stages: bars and notes only, since their tables are in its own report."""


def quiet(on: bool) -> None:
    """Silence bars, notes and tables (`-q`); errors are still printed by the CLI."""
    console.quiet = on


def note(message: str) -> None:
    console.print(message, highlight=False, soft_wrap=True)


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items` behind a bar with the time left; the bar disappears when it is done. In a log there is none."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with Progress(*_columns(), console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        for item in items:
            yield item
            bar.advance(task)


@contextmanager
def figures_bar(what: str, total: int, start: int = 0) -> Iterator[Callable[[int, str], None]]:
    """A bar with figures on a line below: call what it yields with how many are done, and a few words."""
    if not console.is_terminal:  # a log would get a blank line for every change
        yield lambda _done, _words: None
        return
    bar = Progress(*_columns(), speed_estimate_period=300)
    task = bar.add_task(what, total=total, completed=start)
    figures = Text(overflow="ellipsis", no_wrap=True, style="dim")

    def show(done: int, words: str) -> None:
        bar.update(task, completed=done)
        figures.plain = words

    with Live(Group(bar, figures), console=console, transient=True):
        yield show
