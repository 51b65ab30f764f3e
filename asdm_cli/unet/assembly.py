"""Putting a UNet together from blocks and layers of several: pure functions on configs and on names of tensors.

No torch. What is chosen must be a UNet that a stock config describes; whatever keeps it from being one is told at
once, each fault with the place in the recipe that it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature

from asdm_cli.errors import Faults, ModelError
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import EXPERTS, Block, Config, differing, per_level, time_width
from asdm_cli.unet.surgery import (
    DEPTHS,
    LISTED,
    UP_DEPTHS,
    Graft,
    Origin,
    Piece,
    Place,
    graft,
    misfits,
    stock_config,
)

INSIDE = ".attn."
"""Behind a layer's address, before the blocks of its transformer's depth that are taken."""
HARMLESS = {"sample_size", EXPERTS}
"""Says what a UNet is used for, not what its weights mean (the result has the first donor's), or is about single
layers."""
BY_BLOCKS = {*LISTED, DEPTHS, UP_DEPTHS, "layers_per_block", "down_block_types", "mid_block_type", "up_block_types"}
"""The settings that follow from the blocks; all others are about the UNet as a whole."""


@dataclass(frozen=True)
class Part:
    """One block of the result, and `key`, the place in the recipe that says so.

    Either the `donor`'s block of the same kind and level, or `layers` one by one, a resampler last.
    """

    block: str
    key: str
    donor: str = ""
    layers: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Choice:
    """Every block of a UNet, and the donors of what is outside of the blocks."""

    parts: tuple[Part, ...]
    ends: str
    embeddings: str


def by_levels(levels: Sequence[str], mid: str | None, keys: tuple[str, str] = ("levels", "mid")) -> tuple[Part, ...]:
    """The parts of a UNet whose level i, from fine to coarse, is the donor `levels[i]`'s."""
    last = len(levels) - 1
    down = [Part(f"down.{level}", f"{keys[0]}[{level}]", donor) for level, donor in enumerate(levels)]
    up = [Part(f"up.{last - level}", f"{keys[0]}[{level}]", levels[level]) for level in range(last, -1, -1)]
    return (*down, *([Part("mid", keys[1], mid)] if mid else []), *up)


def assemble(donors: Mapping[str, Config], choice: Choice) -> Graft:
    """The UNet that is made of these parts, which must be in forward order. Raises ModelError with all that does not
    fit."""
    trees, pieces, faults, misplaced = {}, [], Faults(), Faults()
    for name, config in donors.items():
        with faults.at(f"donors.{name}"):
            trees[name] = Anatomy.of(config)
    faults.raise_all()
    last = sum(part.block.startswith("down") for part in choice.parts) - 1
    for part in choice.parts:
        with misplaced.at():
            pieces.append(_piece(donors, trees, part, last))
    faults += [*unlike(donors), *(misplaced or _unfit(donors, choice, pieces))]
    faults.raise_all()
    return graft(next(iter(donors.values())), pieces, choice.ends, choice.embeddings)


def _piece(donors: Mapping[str, Config], trees: Mapping[str, Anatomy], part: Part, last: int) -> Piece:
    """A block of the result, of whose levels `last` is the coarsest. ModelError for what its donors do not have."""
    kind, _, index = part.block.partition(".")
    level = {"down": int(index or 0), "up": last - int(index or 0), "mid": last}[kind]
    places = part.layers or _whole(part, trees[part.donor], kind, level, kind == "up" or level < last)
    if faults := list(_misnamed(part, trees)):
        raise ModelError("\n".join(faults))
    origins = []
    for donor, place in places:
        address, *_ = place.split(INSIDE)
        origins.append(Origin(donor, donors[donor], trees[donor].block(address), address.rpartition(".")[2]))
        if address != place:
            kept = sorted(int(each.rpartition(".")[2]) for each in trees[donor].match(place))
            origins[-1] = replace(origins[-1], depth=tuple(kept))
    sampler = origins.pop() if origins[-1].word == "sampler" else None
    layers = tuple(each.layer for each in origins)
    block = Block(kind, int(index or 0), level, layers, sampler.block.sampler if sampler else None)
    return Piece(block, tuple(origins), sampler)


def _whole(part: Part, tree: Anatomy, kind: str, level: int, leads_on: bool) -> list[Place]:
    """All layers of the donor's block, and its resampler where the result has a level for it to lead to."""
    found = next((each for each in tree.blocks if each.kind == kind and (kind == "mid" or each.level == level)), None)
    if found is None and kind == "mid":
        raise ModelError(f"{part.key}: donor {part.donor} has no mid block; name another donor, or none")
    if found is None:
        deepest = max(block.level for block in tree.blocks)
        raise ModelError(f"{part.key}: donor {part.donor} has no level {level}; its levels are 0..{deepest}")
    words = [*range(len(found.layers)), *(["sampler"] if found.sampler and leads_on else [])]
    return [(part.donor, f"{found.address}.{word}") for word in words]


def _misnamed(part: Part, trees: Mapping[str, Anatomy]) -> Iterable[str]:
    """What is wrong with layers that are named one by one."""
    kinds = []
    for number, (donor, address) in enumerate(part.layers):
        key, (layer, *inside) = f"{part.key}[{number}]", address.split(INSIDE)
        try:
            if inside:
                trees[donor].match(address)
            kinds.append(trees[donor].node(layer).kind)
        except ModelError as error:
            yield f"{key}: donor {donor}: {error}"
            continue
        if kinds[-1] not in ("layer", "sampler"):
            found = re.match(r"(mid|(?:down|up)\.\d+)(\.\d+)?", address)
            example = found[1] + (found[2] or ".0") if found else "up.3.0"
            some = f"some of their depth ({example}.attn.[0-3])"
            yield f"{key}: {address} is no layer; name layers ({example}), {some} or a resampler"
        elif kinds[-1] == "sampler" and number < len(part.layers) - 1:
            yield f"{key}: a resampler comes last in its block"
        elif kinds[-1] == "sampler" and address.split(".")[0] != part.block.split(".")[0]:
            yield f"{key}: {address} leads to another resolution than {part.block} does"
    if kinds == ["sampler"] and len(part.layers) == 1:
        yield f"{part.key}: a block has one layer or more beside its resampler"


def _unfit(donors: Mapping[str, Config], choice: Choice, pieces: Sequence[Piece]) -> list[str]:
    """What keeps the blocks, and what is outside of them, from being one stock UNet."""
    base = next(iter(donors.values()))
    try:
        found = misfits(base, pieces)
        config = stock_config(base, pieces)
    except ModelError as error:
        return [str(error)]
    faults = []
    for number, layer, what in found:
        part = choice.parts[number]
        faults.append(f"{part.key}{f'[{layer}]' if part.layers and layer is not None else ''}: {what}")
    width = per_level(config, "block_out_channels")[0]
    for key, donor in (("ends", choice.ends), ("embeddings", choice.embeddings)):
        if (own := per_level(donors[donor], "block_out_channels")[0]) != width:
            wrong = f"made for {own} channels at level 0, the result has {width}"
            faults.append(f"{key}: those of donor {donor} are {wrong}")
    for donor in dict.fromkeys(origin.donor for piece in pieces for origin in piece.layers):
        if (own := time_width(donors[donor])) != time_width(config):
            faults.append(
                f"donors.{donor}: its layers take a time embedding of {own} channels, the result's has "
                f"{time_width(config)}"
            )
    return faults


def unlike(donors: Mapping[str, Config]) -> list[str]:
    """A sentence for every setting that must be one for the whole UNet, and in which the donors differ."""
    known = _defaults()
    keys = {key for config in donors.values() for key in config if not key.startswith("_")} | known.keys()
    wanted = ["cross_attention_dim", *sorted(keys - BY_BLOCKS - HARMLESS)]
    found = differing(donors, wanted, known)
    return [f"donors: {key} must be the same everywhere: {each}" for key, each in found]


@cache
def _defaults() -> Config:
    """What diffusers assumes for every key that a config leaves out."""
    from diffusers import UNet2DConditionModel  # takes torch

    return {name: each.default for name, each in list(signature(UNet2DConditionModel.__init__).parameters.items())[1:]}
