"""The UNet as a tree of addresses, and the one place that knows what diffusers calls each of them. No torch.

block `down.0`, `mid`, `up.3`; layer `down.0.1`, `up.2.sampler`; unit `down.0.1.resnet`, `.attn`;
sub-unit (inside the transformer) `down.0.1.self`, `.cross`, `.ff`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from asdm_cli.errors import ModelError
from asdm_cli.unet import patterns
from asdm_cli.unet.blocks import Block, Config, read_blocks
from asdm_cli.unet.masks import NAMED, named_set

SAMPLERS = {"down": "downsamplers", "up": "upsamplers"}
SUB_UNITS = {"self": "attn1", "cross": "attn2", "ff": "ff"}
"""Address word -> module inside a BasicTransformerBlock."""
NORMS = {"norm1": "self", "norm2": "cross", "norm3": "ff"}
"""The layer norm in front of a sub-unit belongs to it."""
KEY = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
INSIDE = re.compile(r"transformer_blocks\.\d+\.(\w+)\.")


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
        raise ModelError(patterns.unknown(address, self.addresses))

    def module(self, address: str) -> str | tuple[str, ...]:
        """diffusers' module name; several names for a layer (resnet, transformer) and for sub-units of deep ones."""
        names = self.node(address).modules
        return names[0] if len(names) == 1 else names

    def children(self, address: str) -> tuple[str, ...]:
        self.node(address)
        return self._children.get(address, ())

    def inside(self, address: str) -> frozenset[str]:
        """The address and everything below it."""
        if address not in self._inside:
            below = (self.inside(child) for child in self.children(address))
            self._inside[address] = frozenset({address}.union(*below))
        return self._inside[address]

    def match(self, wanted: str | Iterable[str]) -> frozenset[str]:
        """Addresses that patterns, `level.N` and named sets stand for; ModelError for one that matches nothing."""
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
        if group in SAMPLERS.values():
            return self._known(f"{block}.sampler", key)
        if group == "resnets":
            return self._known(f"{block}.{number}.resnet", key)
        part = INSIDE.match(rest)
        word = part and (NORMS.get(part[1]) or next((w for w, module in SUB_UNITS.items() if module == part[1]), None))
        return self._known(f"{block}.{number}.{word or 'attn'}", key)

    @cached_property
    def _children(self) -> dict[str, tuple[str, ...]]:
        below: dict[str, list[str]] = {}
        for node in self.nodes:
            if node.parent is not None:
                below.setdefault(node.parent, []).append(node.address)
        return {parent: tuple(children) for parent, children in below.items()}

    def _match_one(self, pattern: str) -> frozenset[str]:
        if pattern in NAMED:
            return named_set(self.blocks, pattern)
        level = re.fullmatch(r"level\.(\d+)", pattern)
        if level:
            return self._level(int(level[1]))
        found = patterns.match(pattern, self.addresses)
        if not found:
            raise ModelError(patterns.unknown(pattern, (*self.addresses, *NAMED)))
        return found

    def _level(self, level: int) -> frozenset[str]:
        """Down and up block of one resolution; the mid block has an address of its own."""
        found = [block.address for block in self.blocks if block.level == level and block.kind != "mid"]
        if not found:
            deepest = max(block.level for block in self.blocks)
            raise ModelError(f"level.{level}: this UNet has the levels 0 to {deepest}")
        return frozenset(found)

    def _known(self, address: str, key: str) -> str:
        if address in self._nodes:
            return address
        raise ModelError(
            f"{key}: the UNet's config has no place for this tensor ({address}); config and weights differ"
        )


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
