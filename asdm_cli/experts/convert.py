"""From a plain UNet to one with experts: which convolutions, whose kernels they inherit, and where they begin:
banks and router tensors that do, at first, what one kernel did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt

import torch
from safetensors import safe_open
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.experts.layer import SUM_TO_ONE
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import Config, Spec, specs, time_width, with_experts
from asdm_cli.unet.weights import Entry

COMPRESSED = "compressed"
CONVOLUTIONS = ("conv1", "conv2")
"""The 3x3 ones of a resnet."""
EVEN = 0.5
"""What a sigmoid at 0 gives every expert, where weights need not sum to one."""


@dataclass(frozen=True)
class Init:
    """`kind` is copies, noise or inherited. `noise` is the standard deviation of what noise adds, as a share of the
    kernel's own; `share` is what inherited kernels weigh together at the beginning."""

    kind: str
    noise: float = 0.05
    share: float = 1e-6


@dataclass(frozen=True)
class Expansion:
    """`config` of the result; `siblings`: convolution -> the donor's convolutions that it may inherit from, nearest
    first. Names are diffusers' module names."""

    config: Config
    spec: Spec
    siblings: Mapping[str, tuple[str, ...]]

    def inherited(self, name: str, own: Mapping[str, Entry], donor: Mapping[str, Entry], init: Init) -> list[str]:
        """The convolutions of the donor that `name` begins with, besides itself: its siblings of its shape."""
        shape = own[f"{name}.weight"].shape
        fitting = [each for each in self.siblings[name] if donor and donor[f"{each}.weight"].shape == shape]
        return fitting[: self.spec.experts - 1] if init.kind == "inherited" else []


def expand(config: Config, spec: Spec, at: str | Sequence[str] | None, donor: Config | None) -> Expansion:
    """The UNet with every chosen convolution made of `spec.experts`; `at` None, or "compressed", chooses the blocks
    that have fewer layers than the donor's. Raises ModelError where that is nothing, or where experts are already."""
    if specs(config):
        raise ModelError("model: its convolutions are made of experts already; fold it first, or expand its donor")
    anatomy, theirs = Anatomy.of(config), Anatomy.of(donor) if donor else None
    twins = {(block.kind, block.level): block for block in theirs.blocks} if theirs else {}
    chosen = (
        anatomy.match(at)
        if at and at != COMPRESSED
        else frozenset(
            block.address
            for block in anatomy.blocks
            if (twin := twins.get((block.kind, block.level))) and len(block.layers) < len(twin.layers)
        )
    )
    if not chosen:
        raise ModelError("expand.at: no block has fewer layers than the donor's; name addresses, or another donor")
    inside = frozenset().union(*(anatomy.inside(address) for address in chosen))
    siblings = {}
    for block in anatomy.blocks:
        twin = twins.get((block.kind, block.level))
        whole, left = len(twin.layers) if twin else 0, len(block.layers)
        # BK-SDM's pruning keeps the first layers of a down block, and the first ones and the last of an up block,
        # whose inputs are of other widths: the others are what it removed
        kept = [*range(left - 1), whole - 1] if block.kind == "up" else list(range(left))
        removed = [number for number in range(whole) if number not in kept]
        for number in range(left):
            if (address := f"{block.address}.{number}.resnet") not in inside:
                continue
            here = kept[number]
            nearest = sorted(removed, key=lambda other: (abs(other - here), other))
            units = [f"{twin.address}.{other}.resnet" for other in nearest] if twin else []
            others = [theirs.node(unit).modules[0] for unit in units] if theirs else []
            for conv in CONVOLUTIONS:
                siblings[f"{anatomy.node(address).modules[0]}.{conv}"] = tuple(f"{other}.{conv}" for other in others)
    if not siblings:
        raise ModelError(f"expand.at: {', '.join(sorted(chosen))} has no resnet; name others")
    return Expansion(with_experts(config, dict.fromkeys(siblings, vars(spec))), spec, siblings)


def first_experts(
    expansion: Expansion, own: Mapping[str, Entry], donor: Mapping[str, Entry], init: Init, seed: int
) -> dict[str, Tensor]:
    """Banks and routers by tensor name, in the number format of the kernel that each begins as."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name in sorted(expansion.siblings):
        inherited = expansion.inherited(name, own, donor, init)
        for part in ("weight", "bias"):
            if (key := f"{name}.{part}") in own:
                first = _tensor(own, key)
                kernels = [first, *(_tensor(donor, f"{each}.{part}").to(first.dtype) for each in inherited)]
                tensors[key] = bank(kernels, expansion.spec, init, generator)
        channels, width = own[f"{name}.weight"].shape[1], time_width(expansion.config)
        started = router(expansion.spec, init, channels, width, generator)
        tensors |= {f"{name}.router.{key}": tensor for key, tensor in started.items()}
    return tensors


def _tensor(entries: Mapping[str, Entry], name: str) -> Tensor:
    with safe_open(entries[name].file, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


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
