"""Removing addresses from a UNet: pure functions on its config and on the names of its tensors. No torch.

The survivors keep their order and are renumbered. What is left must be a UNet that a stock config describes;
that is decided by building the config and comparing, layer by layer, what it promises with what survived.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from asdm_cli.errors import ModelError
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import Config, Layer
from asdm_cli.unet.stock import Grafted, Origin, Piece, graft, misfits

Tensor = TypeVar("Tensor")


@dataclass(frozen=True)
class Surgery:
    """What is left of `donor`."""

    left: Grafted
    removed: tuple[str, ...]
    """What the donor loses, as the coarsest addresses, in forward order."""
    donor: Anatomy

    @property
    def config(self) -> Config:
        return self.left.config

    @property
    def sources(self) -> dict[str, str]:
        """Module of the result -> module of the donor that it comes from."""
        return {new: old for new, (_, old) in self.left.sources.items()}

    def key_map(self, keys: Iterable[str]) -> dict[str, str]:
        """Tensor name in the result -> its name in the donor, for the donor's `keys`; removed ones are left out."""
        return {new: old for new, (_, old) in self.left.key_map({"": keys}, lambda _: "").items()}


def remove(config: Config, patterns: str | Iterable[str]) -> Surgery:
    """What is left of a UNet without the addresses that `patterns` name.

    Raises ModelError for patterns that name nothing, and where no stock config describes the result.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    donor = Anatomy.of(config)
    gone = closure(donor, donor.match(patterns))
    pieces = _pieces(config, donor, gone)
    if faults := _inside_out(donor, gone) or _unpaired(pieces) or [each.what for each in misfits(config, pieces)]:
        raise ModelError(f"remove {', '.join(patterns)}: no stock UNet lacks just that: {'; '.join(faults)}")
    return Surgery(graft(config, pieces), brief(donor, gone), donor)


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


def brief(anatomy: Anatomy, addresses: frozenset[str]) -> tuple[str, ...]:
    """The same set in fewer words: nothing inside of something else, and `down.0.*.attn` for all of a block's."""
    below = frozenset().union(*(anatomy.inside(address) for address in addresses))
    words: dict[str, None] = {}
    for node in anatomy.nodes:
        if node.address not in addresses or node.parent in below:
            continue
        pattern = f"{anatomy.block(node.address).address}.*.attn"
        alike = anatomy.match(pattern) if node.kind == "attn" else frozenset()
        words[pattern if len(alike) > 1 and alike <= below else node.address] = None
    return tuple(words)


def _pieces(config: Config, donor: Anatomy, gone: frozenset[str]) -> list[Piece]:
    """The blocks as they would be left, with their old indices."""
    pieces = []
    for block in donor.blocks:
        if block.address in gone:
            continue
        left = [i for i in range(len(block.layers)) if f"{block.address}.{i}" not in gone]
        layers = tuple(_cut(block.layers[i], f"{block.address}.{i}", gone) for i in left)
        origins = tuple(Origin("", config, block, str(i)) for i in left)
        sampler = None if f"{block.address}.sampler" in gone else block.sampler
        own = Origin("", config, block, "sampler") if sampler else None
        pieces.append(Piece(replace(block, layers=layers, sampler=sampler), origins, own))
    return pieces


def _cut(layer: Layer, address: str, gone: frozenset[str]) -> Layer:
    return replace(layer, transformer=None) if f"{address}.attn" in gone else layer


def _inside_out(donor: Anatomy, gone: frozenset[str]) -> list[str]:
    """Parts that cannot go without what they are parts of."""
    faults = []
    for node in donor.nodes:
        if node.address not in gone or node.parent in gone:
            continue
        if node.kind in ("self", "cross", "ff"):
            faults.append(f"{node.address} cannot leave its transformer {node.parent}")
        if node.kind == "resnet":
            faults.append(f"the transformer of {node.parent} cannot stand without its resnet")
    return faults


def _unpaired(pieces: list[Piece]) -> list[str]:
    down, up = ([each.block.level for each in pieces if each.block.kind == kind] for kind in ("down", "up"))
    if down != up[::-1]:
        return ["down and up block of a level go together"]
    if not down:
        return ["nothing would be left"]
    bare = [piece.block.address for piece in pieces if not piece.layers]
    return [f"{address} would keep no layer" for address in bare]
