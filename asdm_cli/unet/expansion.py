"""Which convolutions of a UNet become banks of experts, and whose kernels they may inherit. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from asdm_cli.errors import ModelError
from asdm_cli.experts.spec import Spec
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.blocks import Block, Config
from asdm_cli.unet.expert_config import specs, with_specs

CONVOLUTIONS = ("conv1", "conv2")
"""The 3x3 ones of a resnet."""


@dataclass(frozen=True)
class Expansion:
    """`config` of the result; `siblings`: convolution -> the donor's convolutions that it may inherit from, nearest
    first. Names are diffusers' module names."""

    config: Config
    spec: Spec
    siblings: Mapping[str, tuple[str, ...]]


def expand(config: Config, spec: Spec, at: str | list[str] | None, donor: Config | None) -> Expansion:
    """The UNet with every chosen convolution made of `spec.experts`; `at` None chooses the blocks that have fewer
    layers than the donor's. Raises ModelError where that is nothing, or where experts are already."""
    anatomy = Anatomy.of(config)
    if specs(config):
        raise ModelError("model: its convolutions are made of experts already; fold it first, or expand its donor")
    twin = Anatomy.of(donor) if donor else None
    chosen = _compressed(anatomy, twin) if at is None and twin else anatomy.match(at or [])
    inside = frozenset().union(*(anatomy.inside(address) for address in chosen))
    siblings = {
        f"{resnet}.{conv}": tuple(f"{other}.{conv}" for other in others)
        for block in anatomy.blocks
        for resnet, others in _resnets(anatomy, block, inside, twin)
        for conv in CONVOLUTIONS
    }
    if not siblings:
        raise ModelError(f"expand.at: {', '.join(sorted(chosen)) or 'no block'} has no resnet; name others")
    return Expansion(with_specs(config, dict.fromkeys(siblings, spec)), spec, siblings)


def _compressed(anatomy: Anatomy, donor: Anatomy) -> frozenset[str]:
    found = frozenset(
        block.address
        for block in anatomy.blocks
        if (twin := _twin(donor, block)) and len(block.layers) < len(twin.layers)
    )
    if not found:
        raise ModelError("expand.at: no block has fewer layers than the donor's; name addresses, or another donor")
    return found


def _twin(donor: Anatomy, block: Block) -> Block | None:
    """The donor's block of the same kind and resolution."""
    return next((each for each in donor.blocks if (each.kind, each.level) == (block.kind, block.level)), None)


def _resnets(
    anatomy: Anatomy, block: Block, inside: frozenset[str], donor: Anatomy | None
) -> Iterator[tuple[str, list[str]]]:
    """The block's chosen resnets, each with those of the donor's block that pruning removed, nearest first."""
    twin = _twin(donor, block) if donor else None
    kept = _kept(block.kind, len(block.layers), len(twin.layers)) if twin else []
    removed = [number for number in range(len(twin.layers)) if number not in kept] if twin else []
    for number in range(len(block.layers)):
        address = f"{block.address}.{number}.resnet"
        if address not in inside:
            continue
        here = kept[number] if number < len(kept) else number
        order = sorted(removed, key=lambda other: (abs(other - here), other))
        others = [donor.node(f"{twin.address}.{other}.resnet").modules[0] for other in order] if donor and twin else []
        yield anatomy.node(address).modules[0], others


def _kept(kind: str, left: int, whole: int) -> list[int]:
    """The layers that BK-SDM's pruning keeps, whatever their number: the first ones of a down block, the first ones
    and the last of an up block, whose inputs are of other widths."""
    return [*range(left - 1), whole - 1] if kind == "up" else list(range(left))
