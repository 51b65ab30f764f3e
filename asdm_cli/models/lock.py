"""One writer per directory: two runs that were given the same target must not mix their files."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from asdm_cli.errors import ModelError, RunError

MARK = b"asdm writes the directory beside this file at this moment: process "
"""What a lock of ours begins with."""


class BusyError(RunError):
    """Another process is writing there, which may end."""


@contextmanager
def only_writer(target: Path) -> Iterator[None]:
    """Hold `.NAME.lock` beside `target` while the body runs; BusyError if another process holds it.

    The kernel lets go of the lock when its holder dies, however it dies, so a file that a killed run left
    behind stops nobody. ModelError for anything of that name that is not ours; an empty file is locked and left.
    """
    file = target.parent / f".{target.name}.lock"
    descriptor, ours = _acquire(file, target)
    try:
        if ours:
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, MARK + str(os.getpid()).encode(), 0)
        yield
    finally:
        if ours:
            file.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(file: Path, target: Path) -> tuple[int, bool]:
    """An open, locked descriptor of the file that has this name now, and whether it is ours to write and remove."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise RunError(f"{file.parent}: is a file; choose another place than {target}") from None
    while True:
        descriptor, new = _opened(file)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.pread(descriptor, len(MARK), 0)
            if held not in (b"", MARK):
                raise _foreign(file)
            if _is_still(file, descriptor):
                return descriptor, new or held == MARK
        except BlockingIOError:
            writer = os.pread(descriptor, 20, len(MARK)).decode(errors="replace")
            os.close(descriptor)
            raise BusyError(
                f"{target}: process {writer or '(starting)'} is writing it at this moment; "
                "wait until it is done, or choose another place"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it between our opening and our locking


def _opened(file: Path) -> tuple[int, bool]:
    """A descriptor of this very file, never of what a link leads to, and whether it is new."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        with suppress(FileExistsError):
            return os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o644), True
        try:
            descriptor = os.open(file, flags)
        except FileNotFoundError:  # its holder removed it just now
            continue
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise _foreign(file) from None
            raise
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor, False
        os.close(descriptor)
        raise _foreign(file)


def _foreign(file: Path) -> ModelError:
    return ModelError(
        f"{file}: is not from asdm, which needs that name as a lock while it writes; rename it, or choose another place"
    )


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
