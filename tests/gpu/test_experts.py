"""Experts on the device: chosen there to the bit as the host chooses them, and without waiting."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from asdm_cli.experts.layer import host_timesteps
from tests.experts.test_unet import arguments, expert_unet


def test_experts_are_chosen_without_waiting(device: torch.device) -> None:
    unet = expert_unet().to(device)
    rows = torch.tensor([500, 20, 900])
    given = send_to_device(arguments(unet), device)

    def call(timestep: Any, known: Tensor | None = None) -> Tensor:
        with torch.no_grad(), host_timesteps(known):
            sample: Tensor = unet(**{**given, "timestep": timestep}).sample
        return sample

    wanted = call(500), call(rows.to(device))
    there = torch.tensor(500, device=device), rows.to(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        found = call(there[0]), call(there[1], rows)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
