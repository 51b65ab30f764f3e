"""A bank of experts in the place of a Conv2d: each serves a stretch of the timesteps, and the call costs one of them.

CondConv [arXiv:1904.04971] mixes a kernel for each example; here the routing looks at the timestep alone and chooses
one expert of the bank whole. All rows of a call that draws have one timestep, so they share a kernel that lies ready
in the bank. What mixing would cost instead is in docs/experts.md.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from asdm_cli.unet.blocks import Spec


@dataclass(frozen=True)
class Share:
    """Who serves which rows of a call. Of several experts, `rows` are those of each, and `order` puts their answers,
    one after the other, back in the order of the rows."""

    experts: tuple[int, ...]
    rows: tuple[Tensor, ...] = ()
    order: Tensor | None = None

    @classmethod
    def of(cls, chosen: list[int], device: torch.device) -> Share:
        experts = tuple(sorted(set(chosen)))
        if len(experts) == 1:
            return cls(experts)
        rows = [[row for row, expert in enumerate(chosen) if expert == each] for each in experts]
        order = torch.tensor([row for each in rows for row in each]).argsort()
        return cls(experts, tuple(torch.tensor(each, device=device) for each in rows), order.to(device))


@dataclass(eq=False)
class _Call:
    """One call of a UNet: its timesteps, one or one a row, and how they are shared out among banks."""

    timesteps: list[float]
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
        """A call begins. A timestep that is one number is that of all rows."""
        told = timestep.reshape(-1).tolist() if isinstance(timestep, Tensor) else [timestep]
        self._here.latest = _Call(told)
        if torch.is_grad_enabled():
            self._here.learning = self._learning = self._here.latest

    def share(self, spec: Spec, device: torch.device) -> Share:
        """How the rows of this call are shared out among the experts of such a bank."""
        call = getattr(self._here, "learning" if torch.is_grad_enabled() else "latest", self._learning)
        assert call is not None, "experts stand in a UNet, which tells them the time"
        if (spec, device) not in call.shares:
            call.shares[spec, device] = Share.of([spec.serving(each) for each in call.timesteps], device)
        return call.shares[spec, device]


class ExpertConv2d(nn.Module):  # type: ignore[misc]
    """A Conv2d without groups whose kernel depends on the timestep.

    Its tensors have a Conv2d's names, with the experts' kernels one after the other in `weight` [K O, C, h, w] and
    their biases in `bias` [K O]: what expects a Conv2d's shapes refuses them. All begin as copies of `like`.
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
        if len(share.experts) == 1:
            return self.convolve(x, share.experts[0])
        parts = [self.convolve(x[rows], expert) for expert, rows in zip(share.experts, share.rows, strict=True)]
        return torch.cat(parts)[share.order]

    def convolve(self, x: Tensor, expert: int) -> Tensor:
        """As the Conv2d that this expert is, counted from 0."""
        first, count = expert * self.out_channels, self.out_channels
        bias = None if self.bias is None else self.bias.narrow(0, first, count)
        return functional.conv2d(x, self.weight.narrow(0, first, count), bias, **self.settings)

    def extra_repr(self) -> str:
        """As Conv2d, and its experts."""
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, {self.spec}"
