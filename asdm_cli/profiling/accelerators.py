"""What an accelerator is asked while costs are measured on it. Nobody here had Metal: `mps` is untested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Ask = Callable[[torch.device], Any]


@dataclass(frozen=True)
class Accelerator:
    """`event` makes one whose time can be taken. Bytes in use: `held` now, and at the `peak` since `forget`."""

    event: Callable[[], Any]
    forget: Ask
    held: Ask
    peak: Ask
    how: str
    """How its peak is found, in words."""
    synchronize: Ask = torch.accelerator.synchronize


ACCELERATORS = {
    "cuda": Accelerator(
        lambda: torch.cuda.Event(enable_timing=True),
        torch.cuda.reset_peak_memory_stats,
        torch.cuda.memory_allocated,
        torch.cuda.max_memory_allocated,
        "weights, and the growth of the CUDA allocator's peak over one call",
    ),
    "mps": Accelerator(  # has no peak: its pool, emptied before, keeps all that the work ever held at once
        lambda: torch.mps.event.Event(enable_timing=True),
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
