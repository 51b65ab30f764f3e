"""Where experts begin: banks and router tensors that do, at first, what one kernel did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log, sqrt

import torch
from torch import Tensor

from asdm_cli.experts.router import SUM_TO_ONE
from asdm_cli.experts.spec import Spec

EVEN = 0.5
"""What a sigmoid at 0 gives every expert, where weights need not sum to one."""


@dataclass(frozen=True)
class Start:
    """`kind` is copies, noise or inherited. `noise` is the standard deviation of what noise adds, as a share of the
    kernel's own; `share` is what inherited kernels weigh together at the beginning."""

    kind: str
    noise: float = 0.0
    share: float = 0.0


def bank(kernels: Sequence[Tensor], spec: Spec, start: Start, generator: torch.Generator) -> Tensor:
    """[K O, ...] in the kernels' dtype: `kernels[0]` is the one to equal, the others are inherited.

    Where fewer are inherited than there are experts, copies of the first fill up. Noise sums to nothing over the
    experts, which is why it is not felt while they weigh the same.
    """
    first = kernels[0].float()
    experts = torch.stack([*(kernel.float() for kernel in kernels), *[first] * spec.experts][: spec.experts])
    if start.kind == "noise":
        noise = torch.randn(experts.shape, generator=generator) * (first.std(correction=0) * start.noise)
        experts = experts + noise - noise.mean(0)
    experts = experts * _scales(spec, start).reshape(-1, *[1] * first.dim())
    return experts.flatten(0, 1).to(kernels[0].dtype)


def router(spec: Spec, start: Start, channels: int, time_width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A router's tensors by their names, in float32.

    Copies all learn the same as long as they weigh the same, so where there are copies a router begins with random
    weights: kernels are equal, or weigh next to nothing, so it may choose as it likes. With noise it begins even.
    """
    widths = {"features": channels, "time": time_width}
    looked_at = [name for name in widths if spec.router in (name, "both")]
    tensors = {f"{name}.weight": torch.zeros(spec.experts, widths[name]) for name in looked_at}
    for name in looked_at if start.kind != "noise" else ():
        bound = 1 / sqrt(widths[name])
        tensors[f"{name}.weight"].uniform_(-bound, bound, generator=generator)
        if start.kind == "inherited":
            tensors[f"{name}.weight"][0] = 0
    return {**tensors, "bias": _bias(spec, start)}


def _scales(spec: Spec, start: Start) -> Tensor:
    """What kernels are multiplied with where weights need not sum to one."""
    if spec.weights in SUM_TO_ONE:
        return torch.ones(spec.experts)
    if start.kind == "inherited":
        return torch.tensor([1 / EVEN, *[1.0] * (spec.experts - 1)])
    return torch.full((spec.experts,), 1 / (EVEN * spec.experts))


def _bias(spec: Spec, start: Start) -> Tensor:
    if start.kind != "inherited" or spec.experts == 1:
        return torch.zeros(spec.experts)
    each = start.share / (spec.experts - 1)
    return torch.tensor([0.0, *[_LOGITS[spec.weights](each, start.share)] * (spec.experts - 1)])


def _logit(weight: float) -> float:
    return log(weight / (1 - weight))


_LOGITS: dict[str, Callable[[float, float], float]] = {
    "softmax": lambda each, share: log(each / (1 - share)),
    "normalised-sigmoid": lambda each, share: _logit(EVEN * each / (1 - share)),
    "sigmoid": lambda each, _share: _logit(each),
}
"""The logit at which an expert weighs `each` beside a first one at logit 0, which weighs the rest."""
