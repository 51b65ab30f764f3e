"""A bank of experts in the place of a Conv2d: each serves a stretch of the timesteps, and the call costs one of them.

CondConv [arXiv:1904.04971] mixes a kernel for each example; here the routing looks at the timestep alone and chooses
one expert of the bank whole. All rows of a call that draws have one timestep, so they share a kernel that lies ready
in the bank. What mixing would cost instead is in docs/experts.md.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from asdm_cli.unet.blocks import Spec

_HOST = threading.local()
"""Timesteps of calls as the host knows them, of each thread."""


@contextmanager
def host_timesteps(timesteps: Tensor | None) -> Iterator[None]:
    """Calls inside have these timesteps, [B] on the CPU, so that nobody waits to read them from where the UNet is."""
    before, _HOST.timesteps = getattr(_HOST, "timesteps", None), timesteps
    try:
        yield
    finally:
        _HOST.timesteps = before


def readable(timestep: Tensor) -> bool:
    """Whether a value is read without waiting for a device."""
    return bool(timestep.device.type == "cpu")


def serving(spec: Spec, timestep: Tensor) -> Tensor:
    """[1]: as `Spec.serving` has it, where the timestep is."""
    exact = timestep.double() if timestep.is_floating_point() and timestep.device.type != "mps" else timestep
    chosen = torch.div(exact * spec.experts, spec.timesteps, rounding_mode="floor").clamp(0, spec.experts - 1)
    return chosen.long().reshape(1)


@dataclass(frozen=True)
class Share:
    """Who serves which rows of a call. Of several experts, `rows` are those of each, and `order` puts their answers,
    one after the other, back in the order of the rows. `index` [1] is the one expert of all rows where only the device
    knows it."""

    experts: tuple[int, ...]
    rows: tuple[Tensor, ...] = ()
    order: Tensor | None = None
    index: Tensor | None = None

    @classmethod
    def of(cls, chosen: list[int], device: torch.device) -> Share:
        experts = tuple(sorted(set(chosen)))
        if len(experts) == 1:
            return cls(experts)
        rows = [[row for row, expert in enumerate(chosen) if expert == each] for each in experts]
        order = torch.tensor([row for each in rows for row in each]).argsort()
        there = [torch.tensor(each).to(device, non_blocking=True) for each in rows]
        return cls(experts, tuple(there), order.to(device, non_blocking=True))


@dataclass(eq=False)
class _Call:
    """One call of a UNet: its timesteps, one or one a row, or the one of all rows where only the device knows it; and
    how they are shared out among banks."""

    timesteps: list[float] | Tensor
    shares: dict[tuple[Spec, torch.device], Share] = field(default_factory=dict)


class TimestepContext:
    """The timesteps of the call under way, told by the UNet, asked by its convolutions.

    Threads that share a UNet have a call each. What was told where gradients are wanted is kept apart, because
    checkpointed layers are computed again in the backward pass: after calls that want none, or on another thread.
    """

    def __init__(self) -> None:
        self._here = threading.local()
        self._learning: _Call | None = None

    def __reduce__(self) -> Any:
        """A copied UNet has a context of its own, which has not been told anything."""
        return (TimestepContext, ())

    def announce(self, timestep: Tensor | float) -> None:
        """A call begins. A timestep that is one number is that of all rows. Nothing waits for a device but for rows
        that have a timestep each where only the device knows them: whoever calls so says `host_timesteps`."""
        known = getattr(_HOST, "timesteps", None)
        self._here.latest = _Call(_told(timestep if known is None else known))
        if torch.is_grad_enabled():
            self._here.learning = self._learning = self._here.latest

    def share(self, spec: Spec, device: torch.device) -> Share:
        """How the rows of this call are shared out among the experts of such a bank."""
        call = getattr(self._here, "learning" if torch.is_grad_enabled() else "latest", self._learning)
        assert call is not None, "experts stand in a UNet, which tells them the time"
        if (spec, device) not in call.shares:
            told = call.timesteps
            call.shares[spec, device] = (
                Share((), index=serving(spec, told).to(device))
                if isinstance(told, Tensor)
                else Share.of([spec.serving(each) for each in told], device)
            )
        return call.shares[spec, device]


def _told(timestep: Tensor | float) -> list[float] | Tensor:
    if not isinstance(timestep, Tensor):
        return [timestep]
    one = timestep[(0,) * timestep.dim()] if timestep.numel() == 1 or not any(timestep.stride()) else None
    if one is not None and not readable(one):
        return one
    numbers: list[float] = (timestep.reshape(-1) if one is None else one.reshape(1)).tolist()
    return numbers


class _Together(torch.autograd.Function):  # type: ignore[misc]
    """A bank as it is; backwards each expert gets the gradients of all besides its own.

    As if experts were a kernel that they share and a difference each: most of what one has to learn the others must
    as well, and of a small batch it alone sees few rows. Where all its gradients are none, theirs are, and only there.
    """

    @staticmethod
    def forward(ctx: Any, bank: Tensor, experts: int) -> Tensor:
        ctx.experts = experts
        return bank.view_as(bank)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        each = gradient.unflatten(0, (ctx.experts, -1))
        return (each + each.sum(0)).flatten(0, 1), None


class ExpertConv2d(nn.Module):  # type: ignore[misc]
    """A Conv2d without groups whose kernel depends on the timestep.

    Its tensors have a Conv2d's names, with the experts' kernels one after the other in `weight` [K O, C, h, w] and
    their biases in `bias` [K O]: what expects a Conv2d's shapes refuses them. All begin as copies of `like`, and learn
    `_Together`.
    """

    def __init__(self, like: nn.Conv2d, spec: Spec, context: TimestepContext):
        super().__init__()
        assert like.groups == 1, "resnets have no others"
        self.spec, self.context = spec, context
        self.in_channels, self.out_channels, self.kernel_size = like.in_channels, like.out_channels, like.kernel_size
        self.settings = {"stride": like.stride, "padding": like.padding, "dilation": like.dilation}
        self.weight = nn.Parameter(like.weight.detach().repeat(spec.experts, 1, 1, 1))
        self.bias = None if like.bias is None else nn.Parameter(like.bias.detach().repeat(spec.experts))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, O, H', W']; rows of one expert are convolved together."""
        share = self.context.share(self.spec, x.device)
        kernels, biases = self.kernels(share.experts, share.index)
        if len(kernels) == 1:
            return functional.conv2d(x, kernels[0], biases[0], **self.settings)
        parts = zip(share.rows, kernels, biases, strict=True)
        answers = [functional.conv2d(x[rows], kernel, bias, **self.settings) for rows, kernel, bias in parts]
        return torch.cat(answers)[share.order]

    def kernels(
        self, experts: tuple[int, ...], index: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Kernels [O, C, h, w] and biases [O] of these, counted from 0, or copies of those of the one at `index`."""
        found: list[list[Any]] = []
        for bank in (self.weight, self.bias):
            if bank is None:
                found.append([None] * (len(experts) or 1))
                continue
            learns = torch.is_grad_enabled() and bank.requires_grad
            whole = _Together.apply(bank, self.spec.experts) if learns else bank
            if index is not None:
                one = whole.unflatten(0, (self.spec.experts, -1)).index_select(0, index)[0]
                last = bank.dim() == 4 and bank.is_contiguous(memory_format=torch.channels_last)
                found.append([one.contiguous(memory_format=torch.channels_last) if last else one])
            elif learns:
                each = whole.unflatten(0, (self.spec.experts, -1)).unbind()
                found.append([each[expert] for expert in experts])
            else:
                found.append([bank.narrow(0, at * self.out_channels, self.out_channels) for at in experts])
        return found[0], found[1]

    def extra_repr(self) -> str:
        """As Conv2d, and its experts."""
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, {self.spec}"
