"""What an accelerator is asked while costs are measured on it. Nobody here had Metal: `mps` is untested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Ask = Callable[[torch.device], Any]


@dataclass(frozen=True)
class Accelerator:
    """`mark` is an event, whose time can be taken, behind what the device was given so far. Bytes in use: `held` now,
    and at the `peak` since `forget`."""

    mark: Ask
    forget: Ask
    held: Ask
    peak: Ask
    how: str
    """How its peak is found, in words."""
    synchronize: Ask = torch.accelerator.synchronize


def _on_cuda(device: torch.device) -> torch.cuda.Event:
    """By itself an event stands in the stream of the current GPU, which need not be this one."""
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _on_metal(_: torch.device) -> torch.mps.event.Event:
    event = torch.mps.event.Event(enable_timing=True)
    event.record()
    return event


ACCELERATORS = {
    "cuda": Accelerator(
        _on_cuda,
        torch.cuda.reset_peak_memory_stats,
        torch.cuda.memory_allocated,
        torch.cuda.max_memory_allocated,
        "weights, and the growth of the CUDA allocator's peak over one call",
    ),
    "mps": Accelerator(  # has no peak: its pool, emptied before, keeps all that the work ever held at once
        _on_metal,
        lambda _: torch.mps.empty_cache(),
        lambda _: torch.mps.driver_allocated_memory(),
        lambda _: torch.mps.driver_allocated_memory(),
        "weights, and the growth of what Metal's driver gave over one call",
    ),
}
"""Device type -> how it is asked. The CPU is asked nothing: it is idle when a call returns."""


def idle(device: torch.device) -> None:
    """Return when it has done all that it was given."""
    if device.type in ACCELERATORS:
        ACCELERATORS[device.type].synchronize(device)
