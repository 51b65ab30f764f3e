"""Putting a UNet together from blocks and layers of several: pure functions on configs and on names of tensors.

No torch. What is chosen must be a UNet that a stock config describes; whatever keeps it from being one is told at
once, each fault with the place in the recipe that it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from asdm_cli.errors import ModelError
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.blocks import Block, Config, per_level, read_blocks
from asdm_cli.unet.expert_config import carried
from asdm_cli.unet.nearest import brief
from asdm_cli.unet.settings import time_width, unlike
from asdm_cli.unet.stock import Origin, Piece, differences, stock_config
from asdm_cli.unet.surgery import closure, unit_of, units

ENDS = ("conv_in", "conv_norm_out", "conv_out")
"""Modules outside the blocks that work on pictures; all others outside embed time and conditions."""

Place = tuple[str, str]
"""A donor's name and an address, or a module or tensor, of that donor."""


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
    """`config` of the result; `sources`: module of the result -> donor and its module; `ends` and `embeddings`: the
    donors of what is outside the blocks."""

    config: Config
    sources: dict[str, Place]
    ends: str
    embeddings: str
    result: Anatomy

    def key_map(self, keys: Mapping[str, Iterable[str]]) -> dict[str, Place]:
        """Tensor name in the result -> donor and its name there, from the names of each donor's tensors."""
        names: dict[Place, list[str]] = {}
        for new, place in self.sources.items():
            names.setdefault(place, []).append(new)
        mapped: dict[str, Place] = {}
        for donor, tensors in keys.items():
            for key in tensors:
                if _outside(key):
                    mapped |= {key: (donor, key)} if donor == self._donor_outside(key) else {}
                    continue
                module = unit_of(key)
                for new in names.get((donor, module), ()):
                    mapped[new + key.removeprefix(module)] = (donor, key)
        return mapped

    def taken(self, keys: Iterable[str]) -> dict[str, list[str]]:
        """Donor -> what of the result is its: coarsest addresses in forward order, then modules outside the blocks.
        `keys` are the names of the result's tensors."""
        owners = {node.address: self.sources[node.modules[0]][0] for node in units(self.result)}
        outside = sorted({key.split(".")[0] for key in keys if _outside(key)})
        found = {}
        for donor in dict.fromkeys([*owners.values(), self.embeddings, self.ends]):
            own = closure(self.result, [address for address, owner in owners.items() if owner == donor])
            modules = [module for module in outside if self._donor_outside(module) == donor]
            found[donor] = [*brief(self.result, own), *modules]
        return found

    @property
    def moved(self) -> dict[str, Place]:
        """The part of `sources` where the two modules' names differ."""
        return {new: (donor, old) for new, (donor, old) in self.sources.items() if new != old}

    def _donor_outside(self, key: str) -> str:
        return self.ends if key.split(".")[0] in ENDS else self.embeddings


@dataclass(frozen=True)
class _Built:
    """A block of the result, with the donor of each layer and of the resampler."""

    piece: Piece
    layers: tuple[Place, ...]
    sampler: Place | None


def assemble(donors: Mapping[str, Config], choice: Choice) -> Assembly:
    """The UNet that is made of these parts, which must be in forward order. Raises ModelError with all that does not
    fit."""
    trees = {name: _anatomy(name, config) for name, config in donors.items()}
    faults = unlike(donors)
    built, wrong = _build(donors, trees, choice.parts)
    faults += wrong or _misfits(donors, choice, built)
    if faults:
        raise ModelError("\n".join(dict.fromkeys(faults)))
    config = stock_config(next(iter(donors.values())), [each.piece for each in built])
    result = Anatomy.of(config)
    sources = _sources(result, trees, built)
    config = carried(config, ((new, donors[donor], old) for new, (donor, old) in sources.items()))
    return Assembly(config, sources, choice.ends, choice.embeddings, result)


def by_levels(levels: Sequence[str], mid: str | None, keys: tuple[str, str] = ("levels", "mid")) -> tuple[Part, ...]:
    """The parts of a UNet whose level i, from fine to coarse, is the donor `levels[i]`'s."""
    last = len(levels) - 1
    down = [Part(f"down.{level}", f"{keys[0]}[{level}]", donor) for level, donor in enumerate(levels)]
    up = [Part(f"up.{last - level}", f"{keys[0]}[{level}]", levels[level]) for level in range(last, -1, -1)]
    return (*down, *([Part("mid", keys[1], mid)] if mid else []), *up)


def _anatomy(name: str, config: Config) -> Anatomy:
    try:
        return Anatomy.of(config)
    except ModelError as error:
        raise ModelError(f"donors.{name}: {error}") from None


def _build(
    donors: Mapping[str, Config], trees: Mapping[str, Anatomy], parts: Sequence[Part]
) -> tuple[list[_Built], list[str]]:
    """The blocks; and what they ask of donors that these do not have."""
    last = sum(part.block.startswith("down") for part in parts) - 1
    built, faults = [], []
    for part in parts:
        try:
            kind, level = _where(part.block, last)
            layers, sampler = (
                _named(part, trees) if part.layers else _whole(part, trees[part.donor], (kind, level), last)
            )
            built.append(_piece(donors, trees, (part.block, level), layers, sampler))
        except ModelError as error:
            faults.append(str(error))
    return built, faults


def _where(block: str, last: int) -> tuple[str, int]:
    """Kind and level of a block of the result."""
    kind, _, index = block.partition(".")
    return kind, {"down": int(index or 0), "up": last - int(index or 0), "mid": last}[kind]


def _whole(part: Part, tree: Anatomy, where: tuple[str, int], last: int) -> tuple[tuple[Place, ...], Place | None]:
    """All layers of the donor's block, and its resampler where the result has a level for it to lead to."""
    kind, level = where
    found = next((each for each in tree.blocks if each.kind == kind and (kind == "mid" or each.level == level)), None)
    if found is None and kind == "mid":
        raise ModelError(f"{part.key}: donor {part.donor} has no mid block; name another donor, or none")
    if found is None:
        deepest = max(block.level for block in tree.blocks)
        raise ModelError(f"{part.key}: donor {part.donor} has no level {level}; its levels are 0..{deepest}")
    leads = kind == "up" or level < last
    layers = tuple((part.donor, f"{found.address}.{i}") for i in range(len(found.layers)))
    return layers, (part.donor, f"{found.address}.sampler") if found.sampler and leads else None


def _named(part: Part, trees: Mapping[str, Anatomy]) -> tuple[tuple[Place, ...], Place | None]:
    """Layers that are named one by one."""
    faults = []
    for number, (donor, address) in enumerate(part.layers):
        key = f"{part.key}[{number}]"
        try:
            kind = trees[donor].node(address).kind
        except ModelError as error:
            faults.append(f"{key}: donor {donor}: {error}")
            continue
        if kind not in ("layer", "sampler"):
            faults.append(f"{key}: {address} is no layer; name layers ({_example(address)}) or a resampler")
        elif kind == "sampler" and number < len(part.layers) - 1:
            faults.append(f"{key}: a resampler comes last in its block")
        elif kind == "sampler" and address.split(".")[0] != part.block.split(".")[0]:
            faults.append(f"{key}: {address} leads to another resolution than {part.block} does")
    samplers = [place for place in part.layers if place[1].endswith(".sampler")]
    if not faults and len(samplers) == len(part.layers):
        faults.append(f"{part.key}: a block has one layer or more beside its resampler")
    if faults:
        raise ModelError("\n".join(faults))
    layers = tuple(place for place in part.layers if place not in samplers)
    return layers, samplers[0] if samplers else None


def _example(address: str) -> str:
    found = re.match(r"(?:mid|(?:down|up)\.\d+)(?:\.\d+)?", address)
    whole = found[0] if found else "up.3"
    return whole if whole.count(".") == (1 if whole.startswith("mid") else 2) else f"{whole}.0"


def _piece(
    donors: Mapping[str, Config],
    trees: Mapping[str, Anatomy],
    where: tuple[str, int],
    layers: tuple[Place, ...],
    sampler: Place | None,
) -> _Built:
    address, level = where
    kind, _, index = address.partition(".")
    origins = []
    for donor, layer in layers:
        home, _, number = layer.rpartition(".")
        origins.append(Origin(donors[donor], _block(trees[donor], home), int(number)))
    channels = _block(trees[sampler[0]], sampler[1].removesuffix(".sampler")).sampler if sampler else None
    block = Block(kind, int(index or 0), level, tuple(each.block.layers[each.number] for each in origins), channels)
    return _Built(Piece(block, tuple(origins)), layers, sampler)


def _block(tree: Anatomy, address: str) -> Block:
    return next(block for block in tree.blocks if block.address == address)


def _misfits(donors: Mapping[str, Config], choice: Choice, built: Sequence[_Built]) -> list[str]:
    """What keeps the blocks, and what is outside of them, from being one stock UNet."""
    faults = _odd_counts(choice.parts, built)
    if faults:
        return faults
    base = next(iter(donors.values()))
    config = stock_config(base, [each.piece for each in built])
    try:
        promised = read_blocks(config)
    except ModelError as error:
        return [str(error)]
    for found in differences([each.piece.block for each in built], promised):
        part = choice.parts[found.piece]
        inside = f"[{found.layer}]" if part.layers and found.layer is not None else ""
        faults.append(f"{part.key}{inside}: {found.what}")
    return faults + _outside_misfits(donors, choice, built, config)


def _odd_counts(parts: Sequence[Part], built: Sequence[_Built]) -> list[str]:
    """An up block has one layer more than the down block of its level; told at the up block."""
    down = {each.piece.block.level: each.piece.block for each in built if each.piece.block.kind == "down"}
    faults = []
    for part, each in zip(parts, built, strict=True):
        block = each.piece.block
        if block.kind == "up" and len(block.layers) != len(down[block.level].layers) + 1:
            other = down[block.level]
            faults.append(
                f"{part.key}: {block.address} would have {len(block.layers)} layer(s) and {other.address} "
                f"{len(other.layers)}; an up block has one layer more than the down block of its level"
            )
    return faults


def _outside_misfits(
    donors: Mapping[str, Config], choice: Choice, built: Sequence[_Built], config: Config
) -> list[str]:
    width = per_level(config, "block_out_channels")[0]
    faults = []
    for key, donor in (("ends", choice.ends), ("embeddings", choice.embeddings)):
        own = per_level(donors[donor], "block_out_channels")[0]
        if own != width:
            faults.append(
                f"{key}: those of donor {donor} are made for {own} channels at level 0, the result has {width}"
            )
    for donor in dict.fromkeys(place[0] for each in built for place in each.layers):
        if time_width(donors[donor]) != time_width(config):
            faults.append(
                f"donors.{donor}: its layers take a time embedding of {time_width(donors[donor])} channels, "
                f"the result's has {time_width(config)}"
            )
    return faults


def _sources(result: Anatomy, trees: Mapping[str, Anatomy], built: Sequence[_Built]) -> dict[str, Place]:
    sources: dict[str, Place] = {}
    for block, each in zip(result.blocks, built, strict=True):
        addresses = [f"{block.address}.{i}" for i in range(len(block.layers))]
        pairs = list(zip(addresses, each.layers, strict=True))
        if each.sampler:
            pairs.append((f"{block.address}.sampler", each.sampler))
        for address, (donor, old) in pairs:
            modules = zip(result.node(address).modules, trees[donor].node(old).modules, strict=True)
            sources |= {new: (donor, theirs) for new, theirs in modules}
    return sources


def _outside(key: str) -> bool:
    return key.split(".")[0] not in ("down_blocks", "mid_block", "up_blocks")
