"""How long a verb will take: one UNet call timed on this machine, times the multiply-accumulates of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch

from asdm_cli.models.load import device_and_dtype
from asdm_cli.profiling.latency import stopwatch
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.flops import inputs, macs, meta_unet

QUICK = 2e10
"""Multiply-accumulates of a call that is timed: a second of a core, nothing of a GPU."""
BATCH, SMALLEST = 8, 8
"""Latents of that call, and their side at least: larger calls are told from it by their multiply-accumulates."""
CALLS = 3
UNITS = ((86400.0, 2, "days"), (3600.0, 2, "h"), (60.0, 2, "min"), (1.0, 0, "s"))
"""Seconds of a unit, from how many of it on it is told in it, and its name."""


@dataclass(frozen=True)
class Work:
    """`macs` of all UNet calls together; a call of `config` on a latent and a text of so many tokens is timed. `device`
    and `dtype` are as recipes have them."""

    macs: float
    config: Config
    latent: tuple[int, int]
    tokens: int
    device: str
    dtype: str
    at_most: bool = False
    """Whether some of that may be left out."""


def expected(work: Work) -> str:
    """In words. Raises what torch raises where this machine cannot make such a call."""
    device, dtype = device_and_dtype(work.device, work.dtype)
    whole = macs(work.config, 1, work.latent, work.tokens).total
    batch, latent = max(1, min(BATCH, int(QUICK / whole))), work.latent
    while whole * prod(latent) > QUICK * prod(work.latent) and min(latent) >= 2 * SMALLEST:
        latent = latent[0] // 2, latent[1] // 2
    unet = hollow_unet(work.config, device, dtype)
    arguments = inputs(work.config, batch, latent, work.tokens, device, dtype)

    @torch.inference_mode()
    def call() -> None:
        unet(**arguments, return_dict=False)

    seconds = stopwatch(device)
    seconds(call)  # libraries choose their ways at the first
    quickest = min(seconds(call) for _ in range(CALLS))  # what else runs only makes one slower
    speed = batch * macs(work.config, 1, latent, work.tokens).total / quickest
    one = f"one of one picture takes {duration(whole / speed)}"
    about = "at most" if work.at_most else "about"
    return f"{about} {duration(work.macs / speed)} on this machine for UNet calls ({one})"


def hollow_unet(config: Config, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """A UNet that takes as long as one with weights: all its tensors lie in the memory of the largest."""
    unet = meta_unet(config).eval()
    tensors: Mapping[str, torch.Tensor] = unet.state_dict()
    memory = torch.zeros(max(each.numel() for each in tensors.values()), device=device, dtype=dtype)
    unet.load_state_dict({name: memory[: each.numel()].view(each.shape) for name, each in tensors.items()}, assign=True)
    return unet


def duration(seconds: float) -> str:
    """With two digits at most, as an estimate supports."""
    size, _, name = next(unit for unit in UNITS if seconds >= unit[0] * unit[1])
    return f"{float(f'{seconds / size:.2g}'):g} {name}"
