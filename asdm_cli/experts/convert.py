"""From a plain UNet to one with experts and back: which convolutions, copies of a kernel, and the mean of a bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safetensors import safe_open
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import Config, Spec, specs, with_experts
from asdm_cli.unet.weights import Entry

COMPRESSED = "compressed"
CONVOLUTIONS = ("conv1", "conv2")
"""The 3x3 ones of a resnet."""


@dataclass(frozen=True)
class Expansion:
    """`config` of the result, and the diffusers names of the convolutions that become banks of `spec`."""

    config: Config
    spec: Spec
    convolutions: tuple[str, ...]


def expand(config: Config, spec: Spec, at: str | Sequence[str] | None, donor: Config | None) -> Expansion:
    """The UNet with every chosen convolution made of `spec.experts`; `at` None, or "compressed", chooses the blocks
    that have fewer layers than the donor's. Raises ModelError where that is nothing, or where experts are already."""
    if specs(config):
        raise ModelError("model: its convolutions are made of experts already; fold it first, or expand its donor")
    anatomy, theirs = Anatomy.of(config), Anatomy.of(donor) if donor else None
    whole = {(block.kind, block.level): len(block.layers) for block in theirs.blocks} if theirs else {}
    chosen = (
        anatomy.match(at)
        if at and at != COMPRESSED
        else frozenset(
            block.address for block in anatomy.blocks if len(block.layers) < whole.get((block.kind, block.level), 0)
        )
    )
    if not chosen:
        raise ModelError("expand.at: no block has fewer layers than the donor's; name addresses, or another donor")
    inside = frozenset().union(*(anatomy.inside(address) for address in chosen))
    resnets = [f"{block.address}.{layer}.resnet" for block in anatomy.blocks for layer in range(len(block.layers))]
    if empty := sorted(address for address in chosen if not anatomy.inside(address) & {*resnets}):
        raise ModelError(f"expand.at: {', '.join(empty)} has no resnet; name others")
    names = [anatomy.node(address).modules[0] for address in resnets if address in inside]
    convolutions = tuple(f"{name}.{conv}" for name in names for conv in CONVOLUTIONS)
    return Expansion(with_experts(config, dict.fromkeys(convolutions, vars(spec))), spec, convolutions)


def first_experts(expansion: Expansion, own: Mapping[str, Entry]) -> dict[str, Tensor]:
    """Banks by tensor name, copies of the kernels that they stand for."""
    count = expansion.spec.experts
    return {
        key: (tensor := _tensor(own, key)).repeat(count, *[1] * (tensor.dim() - 1))
        for key in _tensors(expansion.convolutions, own)
    }


def folded(wide: Mapping[str, Spec], own: Mapping[str, Entry]) -> tuple[dict[str, Tensor], bool]:
    """Kernels and biases by tensor name, each the mean of its bank in the bank's number format; and whether the
    experts of every bank are equal, so that nothing is lost."""
    made, equal = {}, True
    for name, spec in wide.items():
        for key in _tensors([name], own):
            bank = _tensor(own, key).unflatten(0, (spec.experts, -1))
            alike = bool((bank == bank[:1]).all())
            made[key] = bank[0].clone() if alike else bank.double().mean(0).to(bank.dtype)
            equal = equal and alike
    return made, equal


def _tensors(convolutions: Sequence[str], own: Mapping[str, Entry]) -> list[str]:
    return [key for name in convolutions for part in ("weight", "bias") if (key := f"{name}.{part}") in own]


def _tensor(entries: Mapping[str, Entry], name: str) -> Tensor:
    with safe_open(entries[name].file, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor
