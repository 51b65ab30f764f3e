"""Which way to convolve is fastest for a device, dtype and shape: measured once, and kept for every later process.

The ways agree only up to rounding. So that pictures and resumed trainings stay equal bit by bit on one machine, what
was measured is written down: the first process to measure a shape decides for all.
"""

from __future__ import annotations

import json
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from asdm_cli.experts.mixing import STRATEGIES, Settings, autocast_dtype

FILE = "convolutions.json"
UNMEASURED = {"cpu": "loop", "meta": "grouped"}
"""Where nothing can be timed: without storage, while operations are counted, while a graph is traced."""
OTHERWISE = "grouped"
REPEATS = 3

_known: dict[tuple[Any, ...], str] = {}


def choose(x: Tensor, routing: Tensor, bank: Tensor, bias: Tensor | None, anchored: bool, how: Settings) -> str:
    """A key of STRATEGIES, for arguments like these."""
    fixed = UNMEASURED.get(x.device.type, OTHERWISE)
    if x.device.type == "meta" or torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return fixed
    learning = torch.is_grad_enabled() and bank.requires_grad
    last = bank.is_contiguous(memory_format=torch.channels_last)
    formats = (x.dtype, autocast_dtype(x), bank.dtype, last)
    key = (x.device, x.shape, bank.shape, routing.shape[1], *how.values(), *formats, learning, torch.get_num_threads())
    if key not in _known:
        words = f"{_device(str(x.device))}: {key[1:]}"
        _known[key] = _kept(words, lambda: _fastest(x, routing, bank, bias, anchored, how, learning), fixed)
    return _known[key]


@cache
def _device(name: str) -> str:
    """What a measurement holds for."""
    if name.startswith("cuda"):
        return f"{torch.cuda.get_device_name(name)}, torch {torch.__version__}"
    return f"{name} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, torch {torch.__version__}"


def _fastest(  # noqa: PLR0913 - those of a strategy
    x: Tensor, routing: Tensor, bank: Tensor, bias: Tensor | None, anchored: bool, how: Settings, learning: bool
) -> str:
    """By the shortest of a few runs: whatever else the machine does only adds to them."""
    seconds = {}
    with torch.inference_mode(False), torch.set_grad_enabled(learning):
        tensors = [each.detach().clone().requires_grad_(learning) for each in (x, routing, bank)]
        own_bias = None if bias is None else bias.detach().clone().requires_grad_(learning)
        for name, strategy in STRATEGIES.items():
            runs = [_seconds(strategy, (*tensors, own_bias, anchored, how), learning) for _ in range(1 + REPEATS)]
            seconds[name] = min(runs[1:])
    return min(seconds, key=seconds.__getitem__)


def _seconds(strategy: Any, arguments: tuple[Any, ...], learning: bool) -> float:
    device = arguments[0].device
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda _device: None
    synchronise(device)
    start = time.perf_counter()
    y = strategy(*arguments)
    if learning:
        y.backward(torch.ones_like(y))
    synchronise(device)
    return time.perf_counter() - start


def _kept(key: str, measure: Any, fixed: str) -> str:
    """What is written of this key, or what is measured now and then written; `fixed` where no file can be kept, as
    then two processes could choose differently."""
    file = folder() / FILE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            found = _read(file)
            if key not in found:
                found[key] = measure()
                partial = file.with_suffix(f".{os.getpid()}")
                partial.write_text(json.dumps(found, indent=1, sort_keys=True))
                partial.rename(file)
            return found[key] if found[key] in STRATEGIES else fixed
    except OSError:
        return fixed


def folder() -> Path:
    """Where measurements are kept: ASDM_CACHE, or a user's cache folder."""
    return Path(os.environ.get("ASDM_CACHE") or Path.home() / ".cache" / "asdm")


def _read(file: Path) -> dict[str, str]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {key: name for key, name in entries if isinstance(name, str)}
