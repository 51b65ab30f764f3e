"""Peak memory: what a model holds plus what one piece of work adds at its highest.

On CUDA the allocator keeps the count. On the CPU only the operating system does, and only for a whole process,
so each contestant gets a fresh one, which no other contestant's leftovers can blur.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from asdm_cli.errors import RunError
from asdm_cli.measure.contestants import Contestant, Entrant, Protocol, blame, build

STATUS = Path("/proc/self/status")
FEW_STEPS = 3
"""UNet steps of the image whose peak is taken: enough for a sampler's history to fill; more change no peak."""


@dataclass(frozen=True)
class Memory:
    """Bytes: `weights` of everything that is loaded, and `peak` with the work's own on top."""

    weights: int
    peak: int


HOW = {
    "cpu": "weights, and the growth of resident memory in a fresh process over one call",
    "cuda": "weights, and the growth of the CUDA allocator's peak over one call",
}
"""Device type -> how its peak is found."""


def measure_in_fresh_process(entrant: Entrant, protocol: Protocol) -> Memory:
    """For the CPU: build one contestant in a process of its own and measure there.

    The fork server imports the libraries once, and runs nothing else; its children start from there.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(build_and_measure, entrant, protocol).result()
        except BrokenProcessPool:
            raise RunError(
                f"contestant {entrant.name!r}: its process was killed while its memory was measured, most likely "
                "because memory ran out; use a smaller `size` or a smaller model"
            ) from None


def build_and_measure(entrant: Entrant, protocol: Protocol) -> Memory:
    return measure(build(entrant, protocol))


def measure(contestant: Contestant) -> Memory:
    """One whole image of few steps where the contestant draws, else one UNet call of one image."""
    entrant, protocol = contestant.entrant, contestant.protocol
    few = min(entrant.steps, FEW_STEPS)
    work = contestant.image_call(1, steps=few) if entrant.draws else contestant.unet_call(1)
    weights = weight_bytes(contestant)
    with blame(entrant.name, "running once to measure its memory"):
        return Memory(weights, weights + growth(work, protocol.device))


def weight_bytes(contestant: Contestant) -> int:
    """Also reads every weight, so that those that lie in a mapped file are in memory afterwards."""
    tensors = [tensor for part in contestant.components.values() for tensor in (*part.parameters(), *part.buffers())]
    for tensor in tensors:
        tensor.detach().sum()
    return sum(tensor.nbytes for tensor in tensors)


def growth(work: Callable[[], object], device: torch.device) -> int:
    """Bytes in use at the highest point of `work`, over what was in use before it."""
    if device.type == "cuda":
        return _cuda_growth(work, device)
    before = psutil.Process().memory_info().rss
    _reset_peak()
    work()
    return max(0, _peak_resident() - before)


def _cuda_growth(work: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _reset_peak() -> None:
    """Forget the peak so far (Linux). Where that is refused the peak of loading counts too: never too low."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_resident() -> int:
    """Bytes. /proc where there is one: getrusage starts from the peak of the process that made this one."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
