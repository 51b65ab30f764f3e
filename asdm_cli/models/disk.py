"""Trouble with a place to write to, in words, with the way out. No torch."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asdm_cli.errors import AsdmError, RunError

_GONE = "is not there any more; put it back, and give the same command again"
_NO_LOCKS = "the file system has no locks; choose a place on a local disk"
TROUBLE = {
    errno.ENOENT: _GONE,
    errno.ESTALE: _GONE,
    errno.ENOSPC: "the disk is full; make room, or choose a place on another disk",
    errno.EDQUOT: "your share of the disk is used up; make room, or choose a place on another disk",
    errno.EACCES: "no permission to write there; choose another place",
    errno.EPERM: "writing there is not permitted; choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EIO: "the disk reports an error; look after it, or choose a place on another disk",
    errno.ENOTDIR: "a part of this path is a file; choose another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOLCK: _NO_LOCKS,
    errno.ENOTSUP: _NO_LOCKS,
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
        in_words = re.search(r"\(os error (\d+)\)", str(error))  # all that libraries written in Rust tell
        number = error.errno if isinstance(error, OSError) else int(in_words[1]) if in_words else None
        if number not in TROUBLE:
            raise
        places = [getattr(error, name, None) for name in ("filename2", "filename")]
        place = next(filter(None, reversed(places) if number == errno.ENOENT else places), target)
        raise RunError(f"{place}: {TROUBLE[number]} ({os.strerror(number)})") from error
