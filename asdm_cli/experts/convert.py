"""From a plain UNet to one with experts: which convolutions, whose kernels they inherit, and their first tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.experts.init import Init, bank, router
from asdm_cli.experts.spec import Spec, specs
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.stock import time_width, with_experts
from asdm_cli.unet.weights import Entry

COMPRESSED = "compressed"
CONVOLUTIONS = ("conv1", "conv2")
"""The 3x3 ones of a resnet."""


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
