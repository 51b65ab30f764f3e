"""Those that `accelerate launch` or `torchrun` started together, on GPUs or not."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState

from asdm_cli.models.load import device_and_dtype

PATIENCE = timedelta(hours=1)
"""How long processes wait for each other: while the first one measures 30,000 pictures the others have nothing to do,
and torch's own patience on GPUs is 10 minutes. A machine that falls silent without ending is noticed only then."""


def processes() -> PartialState:
    """This process among all. accelerate takes processes of a machine without a GPU for lone ones unless it is told."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def place(device: str, dtype: str, state: PartialState) -> tuple[torch.device, torch.dtype]:
    """Where a process works, and in what format: of several on GPUs each has one of its own. Raises ModelError."""
    own, format_ = device_and_dtype(device, dtype)
    return (state.device if own.type == "cuda" and state.num_processes > 1 else own), format_
