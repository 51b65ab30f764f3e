"""Those that `accelerate launch` or `torchrun` started together, on GPUs or not."""

from __future__ import annotations

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """This process among all. accelerate takes processes of a machine without a GPU for lone ones unless it is told."""
    return PartialState(cpu=not torch.cuda.is_available())
