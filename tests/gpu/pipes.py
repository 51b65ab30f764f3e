"""Pipelines with networks of their own on the device, so that a number format stays theirs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from asdm_cli.patches.unet_schedule import UNetSchedule
from asdm_cli.unet.flops import inputs
from tests.patches import pipes

draw = pipes.draw
CALLS = 6


def pipe(device: torch.device, dtype: torch.dtype = torch.float32, kind: str = "text", sampler: str = "ddim") -> Any:
    return own(pipes.pipe(kind, sampler)).to(device, dtype)


def own(pipe: Any) -> Any:
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and not isinstance(part, UNetSchedule):
            setattr(pipe, name, copy.deepcopy(part))
    return pipe


def arguments(unet: Any, device: torch.device, dtype: torch.dtype = torch.float32, rows: int = 2) -> dict[str, Any]:
    """What a pipeline calls its UNet with."""
    torch.manual_seed(0)
    return inputs(dict(unet.config), rows, 8, 16, device, dtype)
