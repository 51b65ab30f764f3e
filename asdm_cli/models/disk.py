"""Trouble with a place to write to, in words, with the way out. No torch."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asdm_cli.errors import AsdmError, RunError

TROUBLE = {
    errno.ENOENT: "is not there any more; put it back, and give the same command again",
    errno.ESTALE: "is not there any more; put it back, and give the same command again",
    errno.ENOSPC: "the disk is full; make room, or choose a place on another disk",
    errno.EDQUOT: "your share of the disk is used up; make room, or choose a place on another disk",
    errno.EACCES: "no permission to write there; choose another place",
    errno.EPERM: "writing there is not permitted; choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EIO: "the disk reports an error; look after it, or choose a place on another disk",
    errno.ENOTDIR: "a part of this path is a file; choose another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOLCK: "the file system has no locks; choose a place on a local disk",
    errno.ENOTSUP: "the file system has no locks; choose a place on a local disk",
}
"""What the operating system calls it, and the way out."""


@contextmanager
def explained(target: Path) -> Iterator[None]:
    """Such trouble while the body writes to `target` becomes a RunError that says what to do."""
    try:
        yield
    except AsdmError:
        raise
    except Exception as error:
        number = _number(error)
        if number not in TROUBLE:
            raise
        places = [getattr(error, name, None) for name in ("filename2", "filename")]
        place = next(filter(None, reversed(places) if number == errno.ENOENT else places), target)
        raise RunError(f"{place}: {TROUBLE[number]} ({os.strerror(number)})") from error


def _number(error: Exception) -> int:
    """The system's number of the trouble; libraries that are written in Rust tell it in words only."""
    if isinstance(error, OSError):
        return error.errno or 0
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else 0
