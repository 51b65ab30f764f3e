"""A bank of experts, mixed by a router to one kernel per example, and the drop-in for a Conv2d that this makes.

CondConv [arXiv:1904.04971]: W(x) = sum_k r_k(x) W_k, then one convolution. A convolution is linear in its kernel, so
mixing kernels and mixing the outputs of K convolutions are the same; which is faster depends on sizes and device.

A bank holds K experts one after the other: kernels [K O, C, h, w], biases [K O]. Routings are [B, K] in float32: what
a router makes of the means of its input's channels, of the time embedding, or of both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from asdm_cli.unet.blocks import Spec

ROUTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: torch.softmax(logits, 1),
    # sigmoids over their sum, by way of logarithms: all of them may be too small for a float
    "normalised-sigmoid": lambda logits: torch.softmax(functional.logsigmoid(logits), 1),
    "sigmoid": torch.sigmoid,
}
"""Logits [B, K] -> weights [B, K]. CondConv itself has `sigmoid`, whose weights sum to anything."""
SUM_TO_ONE = ("softmax", "normalised-sigmoid")
LOOKS = ("features", "time", "both")
"""At what a router looks: the mean of every channel of the convolution's input, the time embedding, or the two."""


def in_float32(tensor: Tensor) -> AbstractContextManager[Any]:
    """Without autocast, where it is on for the tensor's device."""
    kind = tensor.device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()


@dataclass(eq=False)
class _Call:
    """One call of a UNet, as far as routers ask."""

    uniform: bool = False
    embedding: Tensor | None = None


class TimestepContext:
    """The time embedding of the call under way, told by the UNet, asked by routers.

    Threads that share a UNet have a time each. What was told where gradients are wanted is kept apart, because
    checkpointed layers are computed again in the backward pass: after calls that want none, or on another thread.
    """

    def __init__(self) -> None:
        self._here = threading.local()
        self._learning: _Call | None = None

    def __reduce__(self) -> Any:
        """A copied UNet has a context of its own, which has not been told anything."""
        return (TimestepContext, ())

    def announce(self, timestep: Tensor | float) -> None:
        """A call begins. A timestep that is one number is that of all rows."""
        self._here.latest = _Call(not isinstance(timestep, Tensor) or timestep.numel() == 1)
        if torch.is_grad_enabled():
            self._here.learning = self._learning = self._here.latest

    def hear(self, _module: nn.Module, _inputs: Any, embedding: Tensor) -> None:
        """The forward hook of a UNet's time embedding."""
        self._here.latest.embedding = embedding

    @property
    def _call(self) -> _Call:
        found = getattr(self._here, "learning" if torch.is_grad_enabled() else "latest", self._learning)
        return found or _Call()

    @property
    def uniform(self) -> bool:
        """Whether all rows of this call have one timestep."""
        return self._call.uniform

    @property
    def embedding(self) -> Tensor:
        """[B, the embedding's width], or one row for all."""
        found = self._call.embedding
        assert found is not None, "routers that look at the time stand in a UNet, which tells it"
        return found


class Router(nn.Module):  # type: ignore[misc]
    """A linear layer per thing that it looks at, their sum, and `ROUTINGS[weights]`; always in float32.

    `channels` and `time_width` are the widths of what it looks at; 0 for what it does not.
    """

    def __init__(self, channels: int, time_width: int, experts: int, weights: str):
        super().__init__()
        self.features = nn.Linear(channels, experts, bias=False) if channels else None
        self.time = nn.Linear(time_width, experts, bias=False) if time_width else None
        self.bias = nn.Parameter(torch.zeros(experts))
        self.weights = weights

    def forward(self, x: Tensor, context: TimestepContext) -> Tensor:
        """[B, C, H, W] -> [B, K]."""
        with in_float32(x):
            logits = self.bias.float()
            if self.features is not None:
                logits = logits + functional.linear(x.mean((2, 3), dtype=torch.float32), self.features.weight.float())
            if self.time is not None:
                told = functional.silu(context.embedding.float())
                logits = logits + functional.linear(told, self.time.weight.float())
            return ROUTINGS[self.weights](logits.expand(len(x), -1))


NOTHING = 1e-30
"""What the first few experts weigh together is at least that: it may be zero, and is divided by."""
Settings = dict[str, Any]
"""What `conv2d` is told beside kernel and bias: stride, padding, dilation."""


def mix(routing: Tensor, experts: Tensor, sums_to_one: bool) -> Tensor:
    """[B, K] x [K, N] -> [B, N] in the experts' dtype, summed in float32 (float64 in its own).

    Where routings sum to one, equal experts come back bit by bit. In float32 that takes going from expert to expert by
    linear interpolation; in less, rounding the sum gives them back.
    """
    wide = wide_dtype(experts)
    routing, whole = routing.to(wide), experts.to(wide)
    with in_float32(experts):
        if not sums_to_one or experts.dtype in (torch.bfloat16, torch.float16):
            return torch.matmul(routing, whole).to(experts.dtype)
        # after expert k the mixture of the first k + 1, each weighed as the routing does among them
        shares = routing / routing.cumsum(1).clamp_min(NOTHING)
        mixed = whole[:1].expand(len(routing), -1)
        for number in range(1, len(experts)):
            mixed = torch.lerp(mixed, whole[number], shares[:, number : number + 1])
        return mixed


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """What sums over experts are made in."""
    return torch.promote_types(tensor.dtype, torch.float32)


def mix_kernels(routing: Tensor, bank: Tensor, sums_to_one: bool) -> Tensor:
    """Kernels [B O, C, h, w] in the bank's dtype and memory format, mixed in float32."""
    last = not bank.is_contiguous() and bank.is_contiguous(memory_format=torch.channels_last)  # 1x1 ones are both
    plain = bank.permute(0, 2, 3, 1) if last else bank
    mixed = mix(routing, plain.reshape(routing.shape[1], -1), sums_to_one).reshape(-1, *plain.shape[1:])
    return mixed.permute(0, 3, 1, 2) if last else mixed


def mix_both(routing: Tensor, bank: Tensor, bias: Tensor | None, sums_to_one: bool) -> tuple[Tensor, Tensor | None]:
    """Kernels [B O, C, h, w] and biases [B O]."""
    kernels = mix_kernels(routing, bank, sums_to_one)
    return kernels, None if bias is None else mix_kernels(routing, bias, sums_to_one)


def grouped(x: Tensor, routing: Tensor, bank: Tensor, bias: Tensor | None, sums_to_one: bool, how: Settings) -> Tensor:
    """A kernel per row, run as one convolution of as many groups as rows."""
    rows, _, height, width = x.shape
    kernels, biases = mix_both(routing, bank, bias, sums_to_one)
    y = functional.conv2d(x.reshape(1, -1, height, width), kernels, biases, groups=rows, **how)
    return y.reshape(rows, -1, *y.shape[2:])


def loop(x: Tensor, routing: Tensor, bank: Tensor, bias: Tensor | None, sums_to_one: bool, how: Settings) -> Tensor:
    """A kernel per row, row after row."""
    kernels, biases = mix_both(routing, bank, bias, sums_to_one)
    each = biases.chunk(len(x)) if biases is not None else (None,) * len(x)
    parts = zip(x.split(1), kernels.chunk(len(x)), each, strict=True)
    return torch.cat([functional.conv2d(row, kernel, own, **how) for row, kernel, own in parts])


def separate(x: Tensor, routing: Tensor, bank: Tensor, bias: Tensor | None, sums_to_one: bool, how: Settings) -> Tensor:  # noqa: ARG001 - outputs are mixed, not kernels
    """K convolutions of every row, their outputs mixed: K times the work, and no kernel per row."""
    y = functional.conv2d(x, bank, bias, **how)
    rows, _, height, width = y.shape
    wide = wide_dtype(y)
    each = y.reshape(rows, routing.shape[1], -1, height, width).to(wide)
    with in_float32(y):
        return torch.einsum("bk,bkohw->bohw", routing.to(wide), each).to(y.dtype)


Way = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, Settings], Tensor]
WAYS: dict[str, Way] = {"grouped": grouped, "loop": loop, "separate": separate}
"""Ways to convolve each row by its own routing, equal up to rounding."""
FASTEST = {"cpu": "loop"}
"""Device -> way. Measured on a CPU: 3x3 convolutions of 4 experts, 320 to 1280 channels, 2 and 8 rows. `grouped` takes
0.7 to 1.5 times as long as `loop`, and changes a row's last bits with the rows beside it; `separate` takes twice as
long on 32 x 32 latents and half as long on 8 x 8, where there is little to gain (`scripts/experts_cost.py`)."""
OTHERWISE = "grouped"
"""One kernel launch where `loop` has one for each row."""


class ExpertConv2d(nn.Module):  # type: ignore[misc]
    """CondConv in the place of a Conv2d without groups.

    Its tensors have a Conv2d's names, with the experts' kernels one after the other in `weight` [K O, C, h, w] and
    their biases in `bias` [K O]: what expects a Conv2d's shapes refuses them.
    """

    def __init__(self, like: nn.Conv2d, spec: Spec, time_width: int, context: TimestepContext):
        super().__init__()
        assert like.groups == 1, "resnets have no others"
        self.spec, self.context = spec, context
        self.in_channels, self.out_channels, self.kernel_size = like.in_channels, like.out_channels, like.kernel_size
        self.settings: Settings = {"stride": like.stride, "padding": like.padding, "dilation": like.dilation}
        self.weight = nn.Parameter(like.weight.detach().repeat(spec.experts, 1, 1, 1))
        self.bias = None if like.bias is None else nn.Parameter(like.bias.detach().repeat(spec.experts))
        channels = like.in_channels if spec.router in ("features", "both") else 0
        self.router = Router(channels, time_width if spec.router in ("time", "both") else 0, spec.experts, spec.weights)
        self.sums_to_one = spec.weights in SUM_TO_ONE

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, O, H', W']; a row's answer does not depend on the other rows."""
        routing = self.router(x, self.context)
        one_time = self.spec.router == "time" and self.context.uniform
        if len(x) == 1 or one_time or (self.sums_to_one and self.spec.experts == 1):
            return functional.conv2d(x, *self.kernel(routing[0]), **self.settings)
        way = WAYS[FASTEST.get(x.device.type, OTHERWISE)]
        return way(x, routing, self.weight, self.bias, self.sums_to_one, self.settings)

    def kernel(self, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """What it convolves with where experts weigh [K] as given: kernel [O, C, h, w] and bias [O]."""
        return mix_both(weights[None], self.weight, self.bias, self.sums_to_one)

    def extra_repr(self) -> str:
        """As Conv2d, and its experts."""
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, {self.spec}"
