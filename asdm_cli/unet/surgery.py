"""Removing addresses from a UNet: pure functions on its config and on the names of its tensors. No torch.

The survivors keep their order and are renumbered. What is left must be a UNet that a stock config describes;
that is decided by building the config and comparing, layer by layer, what it promises with what survived.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from asdm_cli.errors import ModelError
from asdm_cli.unet.anatomy import Anatomy, Node
from asdm_cli.unet.blocks import Block, Config, Layer, read_blocks
from asdm_cli.unet.expert_config import carried
from asdm_cli.unet.nearest import brief, nearest
from asdm_cli.unet.stock import Origin, Piece, differences, stock_config

Tensor = TypeVar("Tensor")


@dataclass(frozen=True)
class Surgery:
    """`config` of the result; `sources`: module of the result -> module of the donor that it comes from."""

    config: Config
    removed: tuple[str, ...]
    """What the donor loses, as the coarsest addresses, in forward order."""
    sources: dict[str, str]
    donor: Anatomy
    result: Anatomy

    @property
    def renumbered(self) -> dict[str, str]:
        """The part of `sources` where the two names differ."""
        return {new: old for new, old in self.sources.items() if new != old}

    def key_map(self, keys: Iterable[str]) -> dict[str, str]:
        """Tensor name in the result -> its name in the donor, for the donor's `keys`; removed ones are left out."""
        names = {old: new for new, old in self.sources.items()}
        mapped = {}
        for key in keys:
            address = self.donor.address_of_key(key)
            module = unit_of(key)
            if address is None:
                mapped[key] = key
            elif module in names:
                mapped[names[module] + key.removeprefix(module)] = key
        return mapped


def remove(config: Config, patterns: str | Iterable[str]) -> Surgery:
    """What is left of a UNet without the addresses that `patterns` name.

    Raises ModelError for patterns that name nothing, and where no stock config describes the result: then with
    the nearest sets that can be removed.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    donor = Anatomy.of(config)
    gone = closure(donor, donor.match(patterns))
    reason = _obstacle(config, donor, gone)
    if reason is None:
        return _surgery(config, donor, gone)
    sets = nearest(donor, gone, lambda other: _obstacle(config, donor, closure(donor, other)) is None)
    hint = "; ".join(f"[{', '.join(addresses)}]" for addresses in sets)
    way = f"nearest sets that can be removed: {hint}" if sets else "keep it"
    raise ModelError(f"remove {', '.join(patterns)}: no stock UNet lacks just that: {reason}; {way}")


def apply(
    config: Config, tensors: Mapping[str, Tensor], patterns: str | Iterable[str]
) -> tuple[Config, dict[str, Tensor]]:
    """Config and state dict without the named addresses; the tensors themselves are shared, not copied."""
    surgery = remove(config, patterns)
    return surgery.config, {new: tensors[old] for new, old in surgery.key_map(tensors).items()}


def closure(anatomy: Anatomy, addresses: Iterable[str]) -> frozenset[str]:
    """The addresses, all that is inside them, and layers and blocks of which nothing is left."""
    gone = set().union(*(anatomy.inside(address) for address in addresses))
    for node in reversed(anatomy.nodes):
        if node.kind in ("layer", "block") and gone.issuperset(anatomy.children(node.address)):
            gone.add(node.address)
    return frozenset(gone)


def _surgery(config: Config, donor: Anatomy, gone: frozenset[str]) -> Surgery:
    result = stock_config(config, _pieces(config, donor, gone))
    anatomy = Anatomy.of(result)
    kept = [node.modules[0] for node in units(donor) if node.address not in gone]
    sources = dict(zip((node.modules[0] for node in units(anatomy)), kept, strict=True))
    result = carried(result, ((new, config, old) for new, old in sources.items()))
    return Surgery(result, brief(donor, gone), sources, donor, anatomy)


def units(tree: Anatomy) -> list[Node]:
    """The nodes that own tensors and move as a whole."""
    return [node for node in tree.nodes if node.kind in ("resnet", "attn", "sampler")]


def _obstacle(config: Config, donor: Anatomy, gone: frozenset[str]) -> str | None:
    """Why no stock config describes what is left, or None where one does."""
    left = {kind: [b for b in donor.blocks if b.kind == kind and b.address not in gone] for kind in ("down", "up")}
    if [block.level for block in left["down"]] != [block.level for block in left["up"]][::-1]:
        return "down and up block of a level go together"
    if not left["down"]:
        return "nothing would be left"
    for down, up in zip(left["down"], reversed(left["up"]), strict=True):
        pair = [len(_kept(block, gone)) for block in (down, up)]
        if pair[0] < 1 or pair[1] != pair[0] + 1:
            return (
                f"{down.address} would keep {pair[0]} layer(s) and {up.address} {pair[1]}, "
                "and an up block has one layer more than the down block of its level"
            )
    for node in donor.nodes:
        if node.address in gone and node.kind in ("self", "cross", "ff") and node.parent not in gone:
            return f"{node.address} cannot leave its transformer {node.parent}"
        if node.address in gone and node.kind == "resnet" and node.parent not in gone:
            return f"the transformer of {node.parent} cannot stand without its resnet"
    pieces = _pieces(config, donor, gone)
    promised = read_blocks(stock_config(config, pieces))
    return next((each.what for each in differences([piece.block for piece in pieces], promised)), None)


def _pieces(config: Config, donor: Anatomy, gone: frozenset[str]) -> list[Piece]:
    """The blocks as they would be left, with their old indices."""
    return [
        Piece(
            replace(
                block,
                layers=tuple(_cut(layer, f"{block.address}.{i}", gone) for i, layer in _kept(block, gone)),
                sampler=None if f"{block.address}.sampler" in gone else block.sampler,
            ),
            tuple(Origin(config, block, i) for i, _ in _kept(block, gone)),
        )
        for block in donor.blocks
        if block.address not in gone
    ]


def _kept(block: Block, gone: frozenset[str]) -> list[tuple[int, Layer]]:
    return [(i, layer) for i, layer in enumerate(block.layers) if f"{block.address}.{i}" not in gone]


def _cut(layer: Layer, address: str, gone: frozenset[str]) -> Layer:
    return replace(layer, transformer=None) if f"{address}.attn" in gone else layer


def unit_of(key: str) -> str:
    """`down_blocks.0.resnets.1.conv1.weight` -> `down_blocks.0.resnets.1`."""
    words = key.split(".")
    return ".".join(words[: 3 if words[0] == "mid_block" else 4])
