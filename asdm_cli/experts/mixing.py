"""One kernel per example out of a bank of experts, and convolving with it: tensors in, tensors out.

CondConv [arXiv:1904.04971]: W(x) = sum_k r_k(x) W_k, then one convolution. A convolution is linear in its kernel, so
mixing kernels and mixing the outputs of K convolutions are the same; which is faster depends on sizes and device.

A bank holds K experts one after the other: kernels [K O, C, h, w], biases [K O]. Routings are [B, K] in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from threading import Barrier
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

CHUNK = 1 << 17
"""Elements of one expert that are mixed at a time: what is read as float32 stays in a core's cache."""
NOTHING = 1e-30
"""What the first few experts weigh together is at least that: it may be zero, and is divided by."""
FEW = 4
"""Stretches that are not worth other threads."""
Settings = dict[str, Any]
"""What `conv2d` is told beside kernel and bias: stride, padding, dilation."""


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """What autocast would compute in where this tensor is; None where it is off, or there is none."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None


def in_float32(tensor: Tensor) -> AbstractContextManager[Any]:
    """Without autocast, where it is on."""
    return torch.autocast(tensor.device.type, enabled=False) if autocast_dtype(tensor) else nullcontext()


def mix_kernels(routing: Tensor, bank: Tensor, anchored: bool) -> Tensor:
    """Kernels [B O, C, h, w] in the bank's dtype and memory format, mixed in float32."""
    count = routing.shape[1]
    last = not bank.is_contiguous() and bank.is_contiguous(memory_format=torch.channels_last)  # 1x1 ones are both
    plain = bank.permute(0, 2, 3, 1) if last else bank
    mixed = mix(routing, plain.reshape(count, -1), anchored).reshape(-1, *plain.shape[1:])
    return mixed.permute(0, 3, 1, 2) if last else mixed


def mix(routing: Tensor, experts: Tensor, anchored: bool) -> Tensor:
    """[B, K] x [K, N] -> [B, N] in the experts' dtype, summed in float32 (float64 in its own).

    `anchored` is for routings that sum to one: equal experts come back bit by bit. In float32 that takes going from
    expert to expert by linear interpolation; in less, rounding the sum gives them back.
    """
    precise = anchored and experts.dtype not in (torch.bfloat16, torch.float16)
    weigh = _interpolated if precise else torch.matmul
    wide = wide_dtype(experts)
    routing = routing.to(wide)
    learning = torch.is_grad_enabled() and (experts.requires_grad or routing.requires_grad)
    with in_float32(experts):
        if learning or experts.device.type != "cpu" or torch.compiler.is_compiling():
            return weigh(routing, experts.to(wide)).to(experts.dtype)
        mixed = experts.new_empty(len(routing), experts.shape[1])

        def stretch(start: int) -> None:
            part = slice(start, start + CHUNK)
            mixed[:, part] = weigh(routing, experts[:, part].to(wide))

        _each(stretch, range(0, experts.shape[1], CHUNK))
        return mixed


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """What sums over experts are made in."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _each(work: Callable[[int], None], starts: range) -> None:
    """Stretch by stretch, on as many threads as torch has, each on its own: threads that share every small operation
    wait for each other thousands of times, which on a busy machine takes longer than the work."""
    threads = torch.get_num_threads()
    if threads == 1 or len(starts) < FEW or is_in_torch_dispatch_mode():  # a mode sees its own thread only
        for start in starts:
            work(start)
        return
    inference = torch.is_inference_mode_enabled()

    def alone(start: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            work(start)

    list(_workers(threads).map(alone, starts))


@cache
def _workers(threads: int) -> ThreadPoolExecutor:
    pool, all_here = ThreadPoolExecutor(threads, "mixing"), Barrier(threads)

    def settle(_: int) -> None:
        torch.get_num_threads()  # torch gives a thread the number of the others when it first looks
        torch.set_num_threads(1)
        all_here.wait()

    list(pool.map(settle, range(threads)))
    torch.set_num_threads(threads)  # what one thread sets is what every later one begins with
    return pool


def _interpolated(routing: Tensor, experts: Tensor) -> Tensor:
    """After expert k the mixture of the first k + 1, each weighed as `routing` does among them."""
    shares = routing / routing.cumsum(1).clamp_min(NOTHING)
    mixed = experts[:1].expand(len(routing), -1)
    for k in range(1, len(experts)):
        mixed = torch.lerp(mixed, experts[k : k + 1], shares[:, k : k + 1])
    return mixed


def shared(x: Tensor, routing: Tensor, bank: Tensor, bias: Tensor | None, anchored: bool, how: Settings) -> Tensor:
    """All rows have the first row's routing: one kernel, one plain convolution."""
    return functional.conv2d(x, *one_kernel(routing, bank, bias, anchored), **how)


def one_kernel(routing: Tensor, bank: Tensor, bias: Tensor | None, anchored: bool) -> tuple[Tensor, Tensor | None]:
    """Kernel [O, C, h, w] and bias [O] of the first row."""
    return mix_kernels(routing[:1], bank, anchored), _mixed_bias(routing[:1], bias, anchored)


def grouped(x: Tensor, routing: Tensor, bank: Tensor, bias: Tensor | None, anchored: bool, how: Settings) -> Tensor:
    """A kernel per row, run as one convolution of as many groups as rows."""
    kernels, biases = mix_kernels(routing, bank, anchored), _mixed_bias(routing, bias, anchored)
    rows, _, height, width = x.shape
    y = functional.conv2d(x.reshape(1, -1, height, width), kernels, biases, groups=rows, **how)
    return y.reshape(rows, -1, *y.shape[2:])


def loop(x: Tensor, routing: Tensor, bank: Tensor, bias: Tensor | None, anchored: bool, how: Settings) -> Tensor:
    """A kernel per row, row after row."""
    rows = len(x)
    kernels = mix_kernels(routing, bank, anchored).chunk(rows)
    biases = _mixed_bias(routing, bias, anchored)
    each = biases.chunk(rows) if biases is not None else (None,) * rows
    parts = zip(x.split(1), kernels, each, strict=True)
    return torch.cat([functional.conv2d(row, kernel, own, **how) for row, kernel, own in parts])


def separate(x: Tensor, routing: Tensor, bank: Tensor, bias: Tensor | None, anchored: bool, how: Settings) -> Tensor:  # noqa: ARG001 - outputs are mixed, not kernels
    """K convolutions of every row, their outputs mixed: K times the work, and no kernel per row."""
    y = functional.conv2d(x, bank, bias, **how)
    rows, _, height, width = y.shape
    wide = wide_dtype(y)
    each = y.reshape(rows, routing.shape[1], -1, height, width).to(wide)
    with in_float32(y):
        return torch.einsum("bk,bkohw->bohw", routing.to(wide), each).to(y.dtype)


Strategy = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, Settings], Tensor]
STRATEGIES: dict[str, Strategy] = {"grouped": grouped, "loop": loop, "separate": separate}
"""Ways to convolve each row by its own routing, equal up to rounding."""


def _mixed_bias(routing: Tensor, bias: Tensor | None, anchored: bool) -> Tensor | None:
    return None if bias is None else mix(routing, bias.reshape(routing.shape[1], -1), anchored).reshape(-1)
