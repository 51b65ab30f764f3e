"""Several processes of a run, and several runs, that make what lies in one folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import PartialState
from filelock import FileLock, Timeout

from asdm_cli.console import note
from asdm_cli.errors import RunError

LOCK, MARK = ".lock", ".process-"
"""Files by which runs, and processes of one, know of each other."""
QUIET, SEEN, POLL = 3600.0, 60.0, 1.0
"""Seconds after which processes that write nothing are no longer waited for; in which one that has written is seen by
all; and between two looks."""


@contextmanager
def only_builder(folder: Path) -> Iterator[None]:
    """Where another run is making the same, wait until it has. The kernel lets go of a killed one's lock."""
    lock = FileLock(folder / LOCK)
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        note(f"{folder}: another run is making this cache; waiting until it is done")
        held = lock.acquire()
    with held:
        yield


def wait_until(done: Callable[[], bool], folder: Path) -> None:
    """However long it takes others, as long as they write: processes that meet give up after a time."""
    last, since = set[tuple[str, int]](), time.monotonic()
    while not done():
        written = set()
        for file in folder.glob("[!.]*"):
            with suppress(FileNotFoundError):  # a machine may be late to see that it is gone
                written.add((file.name, file.stat().st_mtime_ns))
        if written != last:
            last, since = written, time.monotonic()
        elif time.monotonic() - since > QUIET:
            what = f"other processes have written nothing for {QUIET / 60:.0f} minutes"
            raise RunError(f"{folder}: {what}; see what they do, and give the same command again")
        time.sleep(POLL)


def is_there(done: Path, processes: PartialState) -> bool:
    """Whether the file is, which says that nothing is to be made. All processes come here together: RunError for those
    that do not see the folder, which the first one made, and, where there is something to be made, all others in it."""
    folder = done.parent
    first, names = processes.is_main_process, {f"{MARK}{number}" for number in range(processes.num_processes)}
    own = folder / f"{MARK}{processes.process_index}"
    way = "all must see one and the same folder: choose a `cache_folder` that the machines share"
    if first and not done.is_file():
        for mark in folder.glob(f"{MARK}*"):
            mark.unlink(missing_ok=True)
    processes.wait_for_everyone()
    if not folder.is_dir():
        raise RunError(f"{folder}: the first process made this folder, and this process does not see it; {way}")
    complete = done.is_file()
    with suppress(OSError):  # a complete one may be on a disk that is only read
        own.touch()
    processes.wait_for_everyone()
    seen, until = complete, time.monotonic() + SEEN
    while not (seen := seen or names <= {file.name for file in folder.iterdir()}) and time.monotonic() < until:
        time.sleep(POLL)  # over a network, what others wrote is seen some time later
    processes.wait_for_everyone()
    with suppress(OSError):
        own.unlink()
    if not seen:
        raise RunError(f"{folder}: other processes are not seen there; {way}")
    return complete
