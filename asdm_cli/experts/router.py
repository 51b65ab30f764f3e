"""Who is asked how much: from what a router looks at to one weight per expert."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from asdm_cli.experts.mixing import in_float32


def _normalised(logits: Tensor) -> Tensor:
    weights = torch.sigmoid(logits)
    return weights / weights.sum(1, keepdim=True)


ROUTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: torch.softmax(logits, 1),
    "normalised-sigmoid": _normalised,
    "sigmoid": torch.sigmoid,
}
"""Logits [B, K] -> weights [B, K]. CondConv itself has `sigmoid`, whose weights sum to anything."""
SUM_TO_ONE = ("softmax", "normalised-sigmoid")
LOOKS = ("features", "time", "both")
"""At what a router looks: the mean of every channel of the convolution's input, the time embedding, or the two."""


class Clock:
    """What time it is: the time embedding of the call under way, told by the UNet, asked by routers.

    Threads that share a UNet have a time each. Where gradients are wanted the embedding is also kept beside them,
    because checkpointed layers are computed again in the backward pass, on whatever thread that runs.
    """

    def __init__(self) -> None:
        self._here = threading.local()
        self._learning: Tensor | None = None

    def __reduce__(self) -> Any:
        """A copied UNet has a clock of its own, which has not been told anything."""
        return (Clock, ())

    def announce(self, timestep: Tensor | float, alone: bool = True) -> None:
        """A call begins. A timestep that is one number is that of all rows; where it lies on a GPU it is not read,
        because that would wait for the device. `alone` says that the embedding depends on nothing else."""
        self._here.uniform = not isinstance(timestep, Tensor) or timestep.numel() == 1
        readable = not isinstance(timestep, Tensor) or timestep.device.type == "cpu"
        known = alone and self.uniform and readable and not torch.compiler.is_compiling()
        self._here.moment = float(timestep) if known else None

    def hear(self, _module: nn.Module, _inputs: Any, embedding: Tensor) -> None:
        """The forward hook of a UNet's time embedding."""
        self._here.embedding = embedding
        self._learning = embedding if torch.is_grad_enabled() and embedding.requires_grad else None

    @property
    def uniform(self) -> bool:
        """Whether all rows of this call have one timestep."""
        return getattr(self._here, "uniform", False)

    @property
    def moment(self) -> float | None:
        """That timestep, where it is known."""
        return getattr(self._here, "moment", None)

    @property
    def embedding(self) -> Tensor:
        found: Tensor | None = getattr(self._here, "embedding", None) if self._learning is None else self._learning
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

    def forward(self, x: Tensor, clock: Clock) -> Tensor:
        """[B, C, H, W] -> [B, K]."""
        with in_float32(x):
            logits = self.bias.float()
            if self.features is not None:
                logits = logits + functional.linear(x.mean((2, 3), dtype=torch.float32), self.features.weight.float())
            if self.time is not None:
                told = functional.silu(clock.embedding.float())
                logits = logits + functional.linear(told, self.time.weight.float())
            return ROUTINGS[self.weights](logits.expand(len(x), -1))
