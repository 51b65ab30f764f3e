"""Where a UNet call's time goes, block by block, from passes of their own: hooks slow a call down a little."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

import torch

from asdm_cli.measure.contestants import Contestant, blame
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.flops import OUTSIDE

PASSES = 5


def block_modules(config: dict[str, object]) -> dict[str, str]:
    """Block address -> diffusers' module name, in forward order."""
    return {node.address: node.modules[0] for node in Anatomy.of(config).nodes if node.kind == "block"}


def block_seconds(contestant: Contestant, passes: int = PASSES) -> dict[str, float]:
    """Median seconds per block of the UNet call of one image, and of what lies outside the blocks."""
    call = contestant.unet_call(1)
    taken: dict[str, list[float]] = defaultdict(list)
    with blame(contestant.name, "profiling its blocks"):
        for _ in range(passes):
            for address, seconds in _one_pass(contestant, call).items():
                taken[address].append(seconds)
    return {address: median(times) for address, times in taken.items()}


def _one_pass(contestant: Contestant, call: Callable[[], None]) -> dict[str, float]:
    now = _clock(contestant.protocol.device)
    spent: dict[str, float] = {}
    with ExitStack() as hooks:
        for address, module in block_modules(contestant.entrant.config).items():
            before, after = _stopwatch(now, spent, address)
            block = contestant.unet.get_submodule(module)
            hooks.callback(block.register_forward_pre_hook(before).remove)
            hooks.callback(block.register_forward_hook(after).remove)
        start = now()
        call()
        whole = now() - start
    return {**spent, OUTSIDE: whole - sum(spent.values())}


def _stopwatch(
    now: Callable[[], float], spent: dict[str, float], address: str
) -> tuple[Callable[..., None], Callable[..., None]]:
    start = 0.0

    def before(*_: object) -> None:
        nonlocal start
        start = now()

    def after(*_: object) -> None:
        spent[address] = spent.get(address, 0.0) + now() - start

    return before, after


def _clock(device: torch.device) -> Callable[[], float]:
    """Seconds at which everything launched so far is done."""
    if device.type != "cuda":
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now
