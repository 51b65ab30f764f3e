"""Putting a UNet together from blocks and layers of several: pure functions on configs and on names of tensors.

No torch. What is chosen must be a UNet that a stock config describes; whatever keeps it from being one is told at
once, each fault with the place in the recipe that it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from asdm_cli.errors import ModelError
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import Block, Config, per_level
from asdm_cli.unet.stock import (
    Grafted,
    Origin,
    Piece,
    Place,
    graft,
    misfits,
    stock_config,
    time_width,
    unit_of,
    unlike,
)
from asdm_cli.unet.surgery import brief, closure

ENDS = ("conv_in", "conv_norm_out", "conv_out")
"""Modules outside the blocks that work on pictures; all others outside embed time and conditions."""


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


@dataclass(frozen=True)
class Assembly:
    """`made` of blocks; `ends` and `embeddings` are the donors of what is outside of them."""

    made: Grafted
    ends: str
    embeddings: str

    @property
    def config(self) -> Config:
        return self.made.config

    def key_map(self, keys: Mapping[str, Iterable[str]]) -> dict[str, Place]:
        """Tensor name in the result -> donor and its name there, from the names of each donor's tensors."""
        return self.made.key_map(keys, self._outside)

    def taken(self, keys: Iterable[str]) -> dict[str, list[str]]:
        """Donor -> what of the result is its: coarsest addresses in forward order, then modules outside the blocks.
        `keys` are the names of the result's tensors."""
        result, owners = self.made.result, {module: donor for module, (donor, _) in self.made.sources.items()}
        outside = sorted({key.split(".")[0] for key in keys if unit_of(key) is None})
        found = {}
        for donor in dict.fromkeys([*owners.values(), self.embeddings, self.ends]):
            units = [node for node in result.nodes if node.kind in ("resnet", "attn", "sampler")]
            own = closure(result, [node.address for node in units if owners[node.modules[0]] == donor])
            modules = [module for module in outside if self._outside(module) == donor]
            found[donor] = [*brief(result, own), *modules]
        return found

    def _outside(self, key: str) -> str:
        return self.ends if key.split(".")[0] in ENDS else self.embeddings


def by_levels(levels: Sequence[str], mid: str | None, keys: tuple[str, str] = ("levels", "mid")) -> tuple[Part, ...]:
    """The parts of a UNet whose level i, from fine to coarse, is the donor `levels[i]`'s."""
    last = len(levels) - 1
    down = [Part(f"down.{level}", f"{keys[0]}[{level}]", donor) for level, donor in enumerate(levels)]
    up = [Part(f"up.{last - level}", f"{keys[0]}[{level}]", levels[level]) for level in range(last, -1, -1)]
    return (*down, *([Part("mid", keys[1], mid)] if mid else []), *up)


def assemble(donors: Mapping[str, Config], choice: Choice) -> Assembly:
    """The UNet that is made of these parts, which must be in forward order. Raises ModelError with all that does not
    fit."""
    trees, pieces, faults, misplaced = {}, [], unlike(donors), []
    for name, config in donors.items():
        try:
            trees[name] = Anatomy.of(config)
        except ModelError as error:
            raise ModelError(f"donors.{name}: {error}") from None
    last = sum(part.block.startswith("down") for part in choice.parts) - 1
    for part in choice.parts:
        try:
            pieces.append(_piece(donors, trees, part, last))
        except ModelError as error:
            misplaced.append(str(error))
    if faults := faults + (misplaced or _unfit(donors, choice, pieces)):
        raise ModelError("\n".join(dict.fromkeys(faults)))
    return Assembly(graft(next(iter(donors.values())), pieces), choice.ends, choice.embeddings)


def _piece(donors: Mapping[str, Config], trees: Mapping[str, Anatomy], part: Part, last: int) -> Piece:
    """A block of the result, of whose levels `last` is the coarsest. ModelError for what its donors do not have."""
    kind, _, index = part.block.partition(".")
    level = {"down": int(index or 0), "up": last - int(index or 0), "mid": last}[kind]
    places = part.layers or _whole(part, trees[part.donor], kind, level, kind == "up" or level < last)
    if faults := list(_misnamed(part, trees)):
        raise ModelError("\n".join(faults))
    origins = [
        Origin(donor, donors[donor], trees[donor].block(address), address.rpartition(".")[2])
        for donor, address in places
    ]
    sampler = origins.pop() if origins[-1].word == "sampler" else None
    layers = tuple(each.block.layers[int(each.word)] for each in origins)
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
        key = f"{part.key}[{number}]"
        try:
            kinds.append(trees[donor].node(address).kind)
        except ModelError as error:
            yield f"{key}: donor {donor}: {error}"
            continue
        if kinds[-1] not in ("layer", "sampler"):
            found = re.match(r"(mid|(?:down|up)\.\d+)(\.\d+)?", address)
            example = found[1] + (found[2] or ".0") if found else "up.3.0"
            yield f"{key}: {address} is no layer; name layers ({example}) or a resampler"
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
