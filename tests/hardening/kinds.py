"""What a directory that came from elsewhere may hold, by kind: any text hostile, any number huge, any file no file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ESCAPES = "\x1b[31m\x1b]0;title\x07\x9b5m\u202e\r"
MARKUP = "[bold red]a[/] [/nothing]"
HOSTILE = f"{ESCAPES}{MARKUP}\udcff"
HUGE: tuple[Any, ...] = (2**31, 2**63, 10**30, -(10**30), 1e308, float("nan"), float("inf"), 0, -1)
OTHERS: tuple[Any, ...] = (None, [], {}, [[]], "1", True)
"""What stands in the place of another kind of value."""
SPARSE = 3 << 30
Path_ = tuple[str | int, ...]


def leaves(value: Any, way: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every text and number of a JSON value, and the way there; of long lists the first."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*way, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:1]):
            yield from leaves(inner, (*way, index))
    elif value is not None:
        yield way, value


def replaced(value: Any, way: Path_, by: Any) -> Any:
    if not way:
        return by
    copied = list(value) if isinstance(value, list) else dict(value)
    copied[way[0]] = replaced(copied[way[0]], way[1:], by)  # type: ignore[index]
    return copied


def renamed(value: Any, way: Path_, by: str) -> Any:
    """Like `replaced`, of the key itself."""
    if len(way) == 1:
        return {by if each == way[0] else each: inner for each, inner in value.items()}
    inner: Any = renamed(value[way[0]], way[1:], by)  # type: ignore[index]
    return replaced(value, way[:1], inner)


def _fifo(file: Path) -> None:
    os.mkfifo(file)


def _sparse(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(SPARSE)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": _fifo,
    "3 GiB of nothing": _sparse,
    "a directory": lambda file: file.mkdir(),
    "a link to nowhere": lambda file: file.symlink_to("nowhere"),
    "a link to a device": lambda file: file.symlink_to("/dev/zero"),
    "a link to itself": lambda file: file.symlink_to(file.name),
}


def copied(model: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(model, target, copy_function=os.link))


def rewritten(file: Path, value: Any) -> None:
    file.unlink()
    file.write_text(json.dumps(value), encoding="utf-8", errors="surrogateescape")
