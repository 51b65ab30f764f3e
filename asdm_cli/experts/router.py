"""Who is asked how much: from what a router looks at to one weight per expert."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

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
