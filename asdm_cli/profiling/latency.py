"""Fair timing: set-ups take turns, and speed-ups are ratios taken within one round.

A busy or throttled machine slows every set-up of a round alike, so a ratio of times from the same round is steadier
than a ratio of two medians.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from asdm_cli.console import track
from asdm_cli.errors import blame
from asdm_cli.profiling.accelerators import ACCELERATORS, idle
from asdm_cli.records import Card, Interval
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.flops import OUTSIDE

Work = Callable[[], object]
Stopwatch = Callable[[Work], float]

ORDER_RULE = "round r starts with contestant r modulo their number and goes round the list once"
PASSES = 5
"""Calls of a UNet of which each block's time is the median."""
PACKAGES = ("asdm-cli", "torch", "diffusers", "transformers", "torchmetrics")
CPU_INFO = Path("/proc/cpuinfo")


def stopwatch(device: torch.device) -> Stopwatch:
    """Seconds of wall time from an idle device to an idle device, launch overhead included."""

    def seconds(work: Work) -> float:
        idle(device)
        start = time.perf_counter()
        work()
        idle(device)
        return time.perf_counter() - start

    return seconds


def round_robin(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Every name once a round, by `ORDER_RULE`: nobody always runs first, or always after the same one."""
    for start in range(rounds):
        offset = start % len(names)
        yield from (*names[offset:], *names[:offset])


def time_interleaved(
    works: Mapping[str, Work],
    *,
    warmups: int,
    rounds: int,
    seconds: Stopwatch,
    doing: str,
    around: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> dict[str, list[float]]:
    """Seconds of each work in each timed round; warm-up rounds are run and forgotten. What is `around` a work takes no
    part in its time.

    Raises RunError naming the one that failed, and what it was `doing`.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for name in track(round_robin(list(works), warmups + rounds), doing, len(works) * (warmups + rounds)):
        with blame(name, doing), around(name):
            times[name].append(seconds(works[name]))
    return {name: taken[warmups:] for name, taken in times.items()}


def quartiles(samples: Sequence[float], scale: float = 1.0) -> Interval:
    """The median between the quartiles, multiplied by `scale` (1000: seconds to milliseconds); one sample has none."""
    if len(samples) == 1:
        return Interval(samples[0] * scale, None, None, "")
    low, middle, high = (float(figure) * scale for figure in np.percentile(samples, [25, 50, 75]))
    return Interval(middle, low, high, "quartiles")


def speedup(first: Sequence[float], this: Sequence[float], resamples: int = 2000, seed: int = 0) -> Interval:
    """Median over rounds of first/this (above 1: faster than the first), with its 95 % bootstrap interval; of one round
    there is none."""
    ratios = np.asarray(first) / np.asarray(this)
    if len(ratios) == 1:
        return Interval(float(ratios[0]), None, None, "")
    picks = np.random.default_rng(seed).integers(0, len(ratios), size=(resamples, len(ratios)))
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    return Interval(float(np.median(ratios)), float(low), float(high), "95 % bootstrap")


@contextmanager
def clocked(modules: Mapping[str, nn.Module], device: torch.device) -> Iterator[Callable[[], dict[str, list[float]]]]:
    """Yields a function that gives, by name, the seconds of each call of a module so far, its hooks included. The
    device is never waited for: on an accelerator, events stand before and after each call."""
    marks: dict[str, list[Any]] = {name: [] for name in modules}
    with ExitStack() as hooks:
        for name, module in modules.items():
            for register in (module.register_forward_pre_hook, module.register_forward_hook):
                hooks.callback(register(lambda *_, own=marks[name]: own.append(_now(device))).remove)
        yield lambda: {
            name: [_between(*pair) for pair in zip(own[::2], own[1::2], strict=True)] for name, own in marks.items()
        }


def block_seconds(
    unet: nn.Module, config: dict[str, object], call: Work, device: torch.device, passes: int = PASSES
) -> dict[str, float]:
    """Median seconds of every block, by address in forward order, and of what lies outside the blocks.

    From passes of their own: hooks slow a call down a little.
    """
    blocks = {
        node.address: unet.get_submodule(node.modules[0]) for node in Anatomy.of(config).nodes if node.kind == "block"
    }
    with clocked({OUTSIDE: unet, **blocks}, device) as seconds:
        for _ in range(passes):
            call()
    taken = seconds()
    outside = [whole - sum(each) for whole, *each in zip(taken.pop(OUTSIDE), *taken.values(), strict=True)]
    return {address: median(each) for address, each in {**taken, OUTSIDE: outside}.items()}


def _now(device: torch.device) -> Any:
    return ACCELERATORS[device.type].mark(device) if device.type in ACCELERATORS else time.perf_counter()


def _between(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def measured_on(device: torch.device) -> Card:
    """The machine, and when."""
    return machine(device) | {"date": datetime.now().astimezone().isoformat(timespec="seconds")}


def machine(device: torch.device) -> Card:
    """All that times depend on."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:  # as the maker calls it, where the system tells
        lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else platform.processor() or platform.machine()
    return {
        "device": f"{device}: {name}",
        "cpu_cores": os.cpu_count() or 1,
        "torch_threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "versions": versions(),
    }


def versions() -> list[str]:
    """`name version` of the packages that figures depend on."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # run from a checkout that was not installed
            found.append(f"{package} (not installed)")
    return found
