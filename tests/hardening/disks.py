"""Disks that fail at the n-th thing written, and people who press Ctrl-C there."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WRITING = ("mkdir", "link", "fsync", "write", "copy_file_range")
"""Functions of `os` that a full disk refuses."""
MOVING = ("rename", "replace")


class Disk:
    """Counts what is written below `place`; from the n-th time on (or then only) it raises."""

    def __init__(self, place: Path, failure: Callable[[], BaseException], at: int, lasting: bool = True):
        self.place, self.failure, self.at, self.lasting, self.count = str(place), failure, at, lasting, 0

    def touch(self) -> None:
        self.count += 1
        if self.count == self.at or (self.lasting and self.count > self.at):
            raise self.failure()

    @property
    def failed(self) -> bool:
        return self.count >= self.at

    @contextmanager
    def mounted(self) -> Iterator[Disk]:
        with pytest.MonkeyPatch.context() as patch:
            for name in (*WRITING, *(() if self.lasting else MOVING)):
                patch.setattr(os, name, self._counted(getattr(os, name)))
            opened = self._opened(io.open)
            patch.setattr(io, "open", opened)
            patch.setattr(builtins, "open", opened)
            yield self

    def _counted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            places = [str(each) for each in arguments if isinstance(each, str | os.PathLike)]
            if not places or any(each.startswith(self.place) for each in places):
                self.touch()
            return original(*arguments, **options)

        return call

    def _opened(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if set(mode) & set("wxa+") and str(file).startswith(self.place):
                self.touch()
            return original(file, mode, *arguments, **options)

        return call


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only() -> OSError:
    return OSError(errno.EROFS, os.strerror(errno.EROFS))
