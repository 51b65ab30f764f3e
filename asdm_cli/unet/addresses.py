"""The UNet as a tree of addresses, and the one place that knows what diffusers calls each of them. No torch.

block `down.0`, `mid`, `up.3`; layer `down.0.1`, `up.2.sampler`; unit `down.0.1.resnet`, `.attn`;
sub-unit (inside the transformer) `down.0.1.self`, `.cross`, `.ff`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property

from asdm_cli.errors import ModelError
from asdm_cli.unet.blocks import Block, Config, read_blocks
from asdm_cli.unet.layer_sets import NAMED, named_set

SAMPLERS = {"down": "downsamplers", "up": "upsamplers"}
SUB_UNITS = {"self": "attn1", "cross": "attn2", "ff": "ff"}
"""Address word -> module inside a BasicTransformerBlock."""
NORMS = {"norm1": "self", "norm2": "cross", "norm3": "ff"}
"""The layer norm in front of a sub-unit belongs to it."""
INSIDE = {**NORMS, **{module: word for word, module in SUB_UNITS.items()}}
KEY = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
UNITS = {"resnet", "attn", "self", "cross", "ff", "sampler"}


@dataclass(frozen=True)
class Node:
    """One address. `kind` is block, layer, sampler, resnet, attn, self, cross or ff; level 0 is the finest."""

    address: str
    kind: str
    level: int
    parent: str | None
    modules: tuple[str, ...]


class Anatomy:
    """All addresses of one UNet, in forward order, parents before children."""

    def __init__(self, blocks: Iterable[Block]):
        self.blocks = tuple(blocks)
        self._nodes = {node.address: node for block in self.blocks for node in _block_nodes(block)}
        self._children: dict[str | None, list[str]] = {}
        for node in self._nodes.values():
            self._children.setdefault(node.parent, []).append(node.address)
        self._inside: dict[str, frozenset[str]] = {}

    @classmethod
    def of(cls, config: Config) -> Anatomy:
        """The anatomy of any UNet2DConditionModel of the SD family; ModelError for other block types."""
        return cls(read_blocks(config))

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(self._nodes.values())

    @cached_property
    def addresses(self) -> tuple[str, ...]:
        return tuple(self._nodes)

    def __contains__(self, address: str) -> bool:
        return address in self._nodes

    def node(self, address: str) -> Node:
        if address in self._nodes:
            return self._nodes[address]
        raise ModelError(self._unknown(address))

    def block(self, address: str) -> Block:
        """The block that an address is, or lies in."""
        return next(b for b in self.blocks if address == b.address or address.startswith(f"{b.address}."))

    def module(self, address: str) -> str | tuple[str, ...]:
        """diffusers' module name; several names for a layer (resnet, transformer) and for sub-units of deep ones."""
        names = self.node(address).modules
        return names[0] if len(names) == 1 else names

    def children(self, address: str) -> tuple[str, ...]:
        return tuple(self._children.get(self.node(address).address, ()))

    def inside(self, address: str) -> frozenset[str]:
        """The address and everything below it."""
        if address not in self._inside:
            below = (self.inside(child) for child in self.children(address))
            self._inside[address] = frozenset({address}.union(*below))
        return self._inside[address]

    def match(self, wanted: str | Iterable[str]) -> frozenset[str]:
        """Addresses that patterns, `level.N` and named sets stand for; ModelError for one that matches nothing.

        Words are matched one by one with shell wildcards: `up.*.1`, `down.[01].0.attn`. Where the last word is a
        unit, a leading `*` stands for everything in front: `*.self`, `*.1.attn`.
        """
        wanted = [wanted] if isinstance(wanted, str) else list(wanted)
        return frozenset().union(*(self._match_one(pattern) for pattern in wanted))

    def address_of_key(self, key: str) -> str | None:
        """The most specific address that owns a state-dict key; None for what stands outside the blocks.

        A transformer's own norm, proj_in and proj_out belong to `.attn`.
        """
        found = KEY.match(key)
        if found is None:
            return None
        side, index, group, number, rest = found.groups()
        block = f"{side}.{index}" if side else "mid"
        words = rest.split(".")
        if group in SAMPLERS.values():
            address = f"{block}.sampler"
        elif group == "resnets":
            address = f"{block}.{number}.resnet"
        else:
            inner = INSIDE.get(words[2], "attn") if words[0] == "transformer_blocks" and len(words) > 3 else "attn"
            address = f"{block}.{number}.{inner}"
        if address in self._nodes:
            return address
        where = f"the UNet's config has no place for this tensor ({address})"
        raise ModelError(f"{key}: {where}; config and weights differ")

    def _match_one(self, pattern: str) -> frozenset[str]:
        if pattern in NAMED:
            return named_set(self.blocks, pattern)
        if level := re.fullmatch(r"level\.(\d+)", pattern):  # the mid block has an address of its own
            found = [b.address for b in self.blocks if b.level == int(level[1]) and b.kind != "mid"]
            deepest = max(block.level for block in self.blocks)
            if not found:
                raise ModelError(f"{pattern}: this UNet has the levels 0 to {deepest}")
            return frozenset(found)
        wanted = pattern.split(".")
        anywhere = len(wanted) > 1 and wanted[0] == "*" and wanted[-1] in UNITS
        wanted = wanted[anywhere:]
        matched = set()
        for address in self.addresses:
            words = address.split(".")
            words = words[-len(wanted) :] if anywhere else words
            if len(words) == len(wanted) and all(fnmatchcase(*pair) for pair in zip(words, wanted, strict=True)):
                matched.add(address)
        if not matched:
            raise ModelError(self._unknown(pattern, NAMED))
        return frozenset(matched)

    def _unknown(self, word: str, names: Iterable[str] = ()) -> str:
        close = get_close_matches(word, [*self.addresses, *names], n=1)
        blocks = ", ".join(sorted(block.address for block in self.blocks))
        hint = f"did you mean {close[0]!r}?" if close else f"its blocks are {blocks}"
        return f"{word}: this UNet has no such address ({hint})"


def _block_nodes(block: Block) -> Iterable[Node]:
    prefix = "mid_block" if block.kind == "mid" else f"{block.kind}_blocks.{block.index}"
    yield Node(block.address, "block", block.level, None, (prefix,))
    for number, layer in enumerate(block.layers):
        address = f"{block.address}.{number}"
        resnet, attn = f"{prefix}.resnets.{number}", f"{prefix}.attentions.{number}"
        modules = (resnet, attn) if layer.transformer else (resnet,)
        yield Node(address, "layer", block.level, block.address, modules)
        yield Node(f"{address}.resnet", "resnet", block.level, address, (resnet,))
        if layer.transformer is None:
            continue
        yield Node(f"{address}.attn", "attn", block.level, address, (attn,))
        for word, module in SUB_UNITS.items() if layer.transformer.depth else ():
            inner = tuple(f"{attn}.transformer_blocks.{k}.{module}" for k in range(layer.transformer.depth))
            yield Node(f"{address}.{word}", word, block.level, f"{address}.attn", inner)
    if block.sampler is not None:
        name = f"{prefix}.{SAMPLERS[block.kind]}.0"
        yield Node(f"{block.address}.sampler", "sampler", block.level, block.address, (name,))
