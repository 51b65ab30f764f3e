"""Those that `accelerate launch` or `torchrun` started together, on GPUs or not."""

from __future__ import annotations

import torch
from accelerate import PartialState

from asdm_cli.models.load import device_and_dtype


def processes() -> PartialState:
    """This process among all. accelerate takes processes of a machine without a GPU for lone ones unless it is told."""
    return PartialState(cpu=not torch.cuda.is_available())


def place(device: str, dtype: str, state: PartialState) -> tuple[torch.device, torch.dtype]:
    """Where a process works, and in what format: of several on GPUs each has one of its own. Raises ModelError."""
    own, format_ = device_and_dtype(device, dtype)
    return (state.device if own.type == "cuda" and state.num_processes > 1 else own), format_
