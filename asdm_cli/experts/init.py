"""Where experts begin: banks and router tensors that do, at first, what one kernel did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt

import torch
from torch import Tensor

from asdm_cli.experts.router import SUM_TO_ONE
from asdm_cli.experts.spec import Spec

EVEN = 0.5
"""What a sigmoid at 0 gives every expert, where weights need not sum to one."""


@dataclass(frozen=True)
class Init:
    """`kind` is copies, noise or inherited. `noise` is the standard deviation of what noise adds, as a share of the
    kernel's own; `share` is what inherited kernels weigh together at the beginning."""

    kind: str
    noise: float = 0.05
    share: float = 1e-6


def bank(kernels: Sequence[Tensor], spec: Spec, init: Init, generator: torch.Generator) -> Tensor:
    """[K O, ...] in the kernels' dtype: `kernels[0]` is the one to equal, the others are inherited.

    Where fewer are inherited than there are experts, copies of the first fill up. Noise sums to nothing over the
    experts, which is why it is not felt while they weigh the same.
    """
    first = kernels[0].float()
    experts = torch.stack([*(kernel.float() for kernel in kernels), *[first] * spec.experts][: spec.experts])
    if init.kind == "noise":
        noise = torch.randn(experts.shape, generator=generator) * (first.std(correction=0) * init.noise)
        experts = experts + noise - noise.mean(0)
    if spec.weights not in SUM_TO_ONE:
        # all that weigh EVEN answer as one kernel; of inherited ones the first alone does
        even = [1 / EVEN, *[1.0] * (spec.experts - 1)]
        scales = torch.tensor(even if init.kind == "inherited" else [1 / (EVEN * spec.experts)] * spec.experts)
        experts = experts * scales.reshape(-1, *[1] * first.dim())
    return experts.flatten(0, 1).to(kernels[0].dtype)


def router(spec: Spec, init: Init, channels: int, time_width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A router's tensors by their names, in float32.

    Copies all learn the same as long as they weigh the same, so where there are copies a router begins with random
    weights: kernels are equal, or weigh next to nothing, so it may choose as it likes. With noise it begins even.
    """
    tensors = {}
    for name, width in {"features": channels, "time": time_width}.items():
        if spec.router in (name, "both"):
            weight = torch.zeros(spec.experts, width)
            if init.kind != "noise":
                weight.uniform_(-1 / sqrt(width), 1 / sqrt(width), generator=generator)
            if init.kind == "inherited":
                weight[0] = 0
            tensors[f"{name}.weight"] = weight
    tensors["bias"] = torch.zeros(spec.experts)
    if init.kind == "inherited" and spec.experts > 1:
        tensors["bias"][1:] = _logit(spec.weights, init.share / (spec.experts - 1), init.share)
    return tensors


def _logit(weights: str, each: float, share: float) -> float:
    """At which an expert weighs `each` beside a first one at logit 0, which weighs the rest."""
    if weights == "softmax":
        return log(each / (1 - share))
    weight = EVEN * each / (1 - share) if weights == "normalised-sigmoid" else each
    return log(weight / (1 - weight))
