"""Peak memory: what is held plus what one piece of work adds at its highest.

Accelerators' allocators keep the count. On the CPU only the operating system does, and only for a whole process, so
each set-up gets a fresh one, which no other's leftovers can blur.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, TypeVar

import psutil
import torch

from asdm_cli.errors import RunError
from asdm_cli.profiling.accelerators import ACCELERATORS, idle

Result = TypeVar("Result")
STATUS = Path("/proc/self/status")
FEW_STEPS = 3
"""UNet steps of the image whose peak is taken: enough for a sampler's history to fill; more change no peak."""
HOW = {
    "cpu": "weights, and the growth of resident memory in a fresh process over one call",
    **{kind: each.how for kind, each in ACCELERATORS.items()},
}
"""Device type -> how its peak is found."""


@dataclass(frozen=True)
class Memory:
    """Bytes: `weights` of everything that is loaded, and `peak` with the work's own on top."""

    weights: int
    peak: int


def in_fresh_process(name: str, function: Callable[..., Result], *arguments: object) -> Result:
    """What `function` returns, or raises, in a process of its own. RunError that says what it died of, for this set-up.

    The fork server imports the libraries once, and runs nothing else; its children start from there.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    here, there = context.Pipe(duplex=False)
    with NamedTemporaryFile() as stderr:
        work = pickle.dumps((function, arguments))
        child = context.Process(target=_answer, args=(there, stderr.name, work), daemon=True)
        child.start()
        there.close()
        try:
            done, result = here.recv()
        except EOFError:
            child.join()
            raise RunError(f"{name}: the process that measured it {_death(child.exitcode or 0, stderr)}") from None
        child.join()
    if done:
        return result
    raise result


def _death(code: int, stderr: IO[bytes]) -> str:
    """What it died of, and the last thing that it said."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    if code == -signal.SIGKILL:  # nobody else sends it unasked
        how += ", most likely because memory ran out; use a smaller `size` or a smaller model"
    said = stderr.read().decode(errors="replace").strip().splitlines()
    return f"{how}; its last words: {said[-1]}" if said else how


def _answer(there: Connection, stderr: str, work: bytes) -> None:
    with open(stderr, "wb") as file:  # noqa: PTH123 - libraries in C write to the descriptor
        os.dup2(file.fileno(), 2)
    try:
        function, arguments = pickle.loads(work)  # our own parent's
        answer = True, function(*arguments)
    except BaseException as error:  # Ctrl-C too
        answer = False, error
    there.send(answer)


def measure_memory(components: Iterable[torch.nn.Module], work: Callable[[], object], device: torch.device) -> Memory:
    """Of these networks, at `work`."""
    tensors = [tensor for part in components for tensor in (*part.parameters(), *part.buffers())]
    for tensor in tensors:
        tensor.detach().sum()  # what lies in a mapped file is in memory only once it was read
    weights = sum(tensor.nbytes for tensor in tensors)
    return Memory(weights, weights + growth(work, device))


def growth(work: Callable[[], object], device: torch.device) -> int:
    """Bytes in use at the highest point of `work`, over what was in use before it."""
    if own := ACCELERATORS.get(device.type):
        work()  # what libraries get for themselves at their first call, and keep, is not of the first set-up
        idle(device)
        own.forget(device)
        before: int = own.held(device)
        work()
        idle(device)
        return max(0, own.peak(device) - before)
    before = psutil.Process().memory_info().rss
    with suppress(OSError):  # where the peak so far cannot be forgotten, that of loading counts too: never too low
        Path("/proc/self/clear_refs").write_text("5")
    work()
    return max(0, _peak_resident() - before)


def _peak_resident() -> int:
    """Bytes. /proc where there is one: getrusage starts from the peak of the process that made this one."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
