"""One writer per directory: two runs that were given the same target must not mix their files."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asdm_cli.errors import RunError


class BusyError(RunError):
    """Another process is writing there, which may end."""


@contextmanager
def only_writer(target: Path) -> Iterator[None]:
    """Hold `.NAME.lock` beside `target` while the body runs; BusyError if another process holds it.

    The kernel lets go of the lock when its holder dies, however it dies, so a file that a killed run left
    behind stops nobody. It holds the writer's process id, for the message only.
    """
    file = target.parent / f".{target.name}.lock"
    descriptor = _acquire(file, target)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(file: Path, target: Path) -> int:
    """An open, locked descriptor of the file that has this name now."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise RunError(f"{file.parent}: is a file; choose another place than {target}") from None
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            writer = os.read(descriptor, 20).decode(errors="replace")
            os.close(descriptor)
            raise BusyError(
                f"{target}: process {writer or '(starting)'} is writing it at this moment; "
                "wait until it is done, or choose another place"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        if _is_still(file, descriptor):
            return descriptor
        os.close(descriptor)  # its holder removed it between our opening and our locking


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
