"""The UNet as a tree of addresses, and the one place that knows what diffusers calls each of them. No torch.

block `down.0`, `mid`, `up.3`; layer `down.0.1`, `up.2.sampler`; unit `down.0.1.resnet`, `.attn`; inside the
transformer, sub-unit `down.0.1.self`, `.cross`, `.ff` (of all its depth) and one block of the depth `down.0.1.attn.3`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple

from asdm_cli.errors import ModelError
from asdm_cli.unet.blocks import Block, Config, read_blocks

SAMPLERS = {"down": "downsamplers", "up": "upsamplers"}
SUB_UNITS = {"self": "attn1", "cross": "attn2", "ff": "ff"}
"""Address word -> module inside a BasicTransformerBlock."""
NORMS = {"norm1": "self", "norm2": "cross", "norm3": "ff"}
"""The layer norm in front of a sub-unit belongs to it."""
INSIDE = {**NORMS, **{module: word for word, module in SUB_UNITS.items()}}
KEY = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
DEPTH = "transformer_blocks"
BK_SDM = ("base", "small", "tiny")
"""Named sets of layers: those of BK-SDM (arXiv 2305.15798), as rules that give its sets on SD 1.x."""


class Student(NamedTuple):
    """What a published student keeps of SDXL. `depths`: block -> transformer blocks that stay of each layer that does,
    the first ones. `mid`: what goes of the mid block."""

    pairs: bool
    """Whether every block keeps the layers that `base` keeps of it, or all."""
    depths: Mapping[str, tuple[int, ...]]
    mid: tuple[str, ...]


STUDENTS = {
    "ssd-1b": Student(
        pairs=False,
        depths={"down.1": (2, 2), "down.2": (4, 4), "up.0": (4, 4, 10), "up.1": (2, 1, 1)},
        mid=("mid.0.attn", "mid.1"),
    ),
    "vega": Student(
        pairs=False,
        depths={"down.1": (1, 1), "down.2": (2, 2), "up.0": (2, 2, 2), "up.1": (1, 1, 1)},
        mid=("mid.0.attn", "mid.1"),
    ),
    "koala-1b": Student(
        pairs=True,
        depths={"down.1": (2,), "down.2": (6,), "mid": (6,), "up.0": (6, 6), "up.1": (2, 2)},
        mid=(),
    ),
    "koala-700m": Student(
        pairs=True, depths={"down.1": (2,), "down.2": (5,), "up.0": (5, 5), "up.1": (2, 2)}, mid=("mid",)
    ),
}
"""Named sets of SDXL's shape: SSD-1B and Segmind Vega (arXiv 2401.02677), KOALA (arXiv 2312.04005). Layers and depths
are those of the published models' configs. Which blocks of a depth their authors kept is not in a config; the first
ones is our choice."""
NAMED = (*BK_SDM, *STUDENTS)
SHOWN = 60
"""Letters of a word that is none, in a message."""
UNITS = {"resnet", "attn", "self", "cross", "ff", "sampler"}
INNER = re.compile(rf".*\.{DEPTH}\.(\d+)\.")
PART = re.compile(rf"(?:(?:down|up)_blocks\.\d+|mid_block)\.\w+\.\d+(?:\.{DEPTH}\.\d+)?(?=\.)")


@dataclass(frozen=True)
class Node:
    """One address. `kind` is block, layer, sampler, resnet, attn, self, cross, ff or depth. `modules` are diffusers'
    names: several for a layer (resnet, transformer) and for sub-units of deep transformers."""

    address: str
    kind: str
    parent: str | None
    modules: tuple[str, ...]


class Anatomy:
    """All addresses of one UNet, in forward order, parents before children."""

    def __init__(self, blocks: Iterable[Block]):
        self.blocks = tuple(blocks)
        self._nodes = {node.address: node for block in self.blocks for node in _block_nodes(block)}
        self.nodes, self.addresses = tuple(self._nodes.values()), tuple(self._nodes)
        self._inside = {address: {address} for address in self.addresses}
        for node in reversed(self.nodes):
            if node.parent:
                self._inside[node.parent] |= self._inside[node.address]

    @classmethod
    def of(cls, config: Config) -> Anatomy:
        """The anatomy of any UNet2DConditionModel of the SD family; ModelError for other block types."""
        return cls(read_blocks(config))

    def __contains__(self, address: str) -> bool:
        return address in self._nodes

    def node(self, address: str) -> Node:
        if address in self._nodes:
            return self._nodes[address]
        raise ModelError(self._unknown(address))

    def block(self, address: str) -> Block:
        """The block that an address is, or lies in."""
        return next(b for b in self.blocks if address == b.address or address.startswith(f"{b.address}."))

    def inside(self, address: str) -> frozenset[str]:
        """The address and everything below it."""
        return frozenset(self._inside[self.node(address).address])

    def match(self, wanted: str | Iterable[str]) -> frozenset[str]:
        """Addresses that patterns, `level.N` and named sets stand for; ModelError for one that matches nothing.

        Words are matched one by one with shell wildcards: `up.*.1`, `down.[01].0.attn`. Where the last word is a
        unit, or one of a transformer's depth, a leading `*` stands for everything in front: `*.self`, `*.1.attn`,
        `*.attn.[4-9]`.
        """
        wanted = [wanted] if isinstance(wanted, str) else list(wanted)
        return frozenset().union(*(self._match_one(pattern) for pattern in wanted))

    def address_of_key(self, key: str) -> str | None:
        """The most specific address that owns a state-dict key; None for what stands outside the blocks.

        A transformer's own norm, proj_in and proj_out belong to `.attn`; what its depth holds to `.self`, `.cross`
        or `.ff` (and, beside these, to a block of the depth: `owners`).
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

    def owners(self, key: str) -> frozenset[str]:
        """The most specific addresses that own a key: within a transformer's depth two, else one or none."""
        address = self.address_of_key(key)
        if address is None or (inner := INNER.match(key)) is None:
            return frozenset({address} if address else ())
        return frozenset({address, f"{address.rpartition('.')[0]}.attn.{inner[1]}"})

    def _match_one(self, pattern: str) -> frozenset[str]:
        if pattern in NAMED:
            return named_set(self.blocks, pattern)
        if level := re.fullmatch(r"level\.(\d+)", pattern):  # the mid block has an address of its own
            found = [b.address for b in self.blocks if b.level == int(level[1]) and b.kind != "mid"]
            deepest = max(block.level for block in self.blocks)
            if not found:
                raise ModelError(f"{pattern}: this UNet has the levels 0 to {deepest}")
            return frozenset(found)
        if pattern == "*":  # of one word there is mid alone
            raise ModelError("*: names no address; for all of the UNet, name its blocks: ['down.?', mid, 'up.?']")
        wanted = pattern.split(".")
        anywhere = len(wanted) > 1 and wanted[0] == "*" and (wanted[-1] in UNITS or wanted[-2] == "attn")
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
        return f"{word[:SHOWN]}: this UNet has no such address ({hint})"


def part_of(key: str) -> str | None:
    """The smallest module that surgery moves: a unit, or inside of a transformer one block of its depth,
    `down_blocks.1.attentions.0.transformer_blocks.3`; None for what stands in no block."""
    found = PART.match(key)
    return found[0] if found else None


def unit_of(key: str) -> str | None:
    """`down_blocks.0.resnets.1.conv1.weight` -> `down_blocks.0.resnets.1`; None for what stands in no block."""
    words = key.split(".")
    length = {"down_blocks": 4, "mid_block": 3, "up_blocks": 4}.get(words[0])
    return ".".join(words[:length]) if length else None


def _block_nodes(block: Block) -> Iterable[Node]:
    prefix = "mid_block" if block.kind == "mid" else f"{block.kind}_blocks.{block.index}"
    yield Node(block.address, "block", None, (prefix,))
    for number, layer in enumerate(block.layers):
        address = f"{block.address}.{number}"
        resnet, attn = f"{prefix}.resnets.{number}", f"{prefix}.attentions.{number}"
        modules = (resnet, attn) if layer.transformer else (resnet,)
        yield Node(address, "layer", block.address, modules)
        yield Node(f"{address}.resnet", "resnet", address, (resnet,))
        if layer.transformer is None:
            continue
        yield Node(f"{address}.attn", "attn", address, (attn,))
        for word, module in SUB_UNITS.items() if layer.transformer.depth else ():
            inner = tuple(f"{attn}.transformer_blocks.{k}.{module}" for k in range(layer.transformer.depth))
            yield Node(f"{address}.{word}", word, f"{address}.attn", inner)
        for k in range(layer.transformer.depth):
            yield Node(f"{address}.attn.{k}", "depth", f"{address}.attn", (f"{attn}.{DEPTH}.{k}",))
    if block.sampler is not None:
        name = f"{prefix}.{SAMPLERS[block.kind]}.0"
        yield Node(f"{block.address}.sampler", "sampler", block.address, (name,))


def named_set(blocks: tuple[Block, ...], name: str) -> frozenset[str]:
    """The addresses of a named set on these blocks; ModelError where nothing of it is there.

    Down blocks keep their first layer. Up blocks keep the first (it takes the coarser level's width) and the last (it
    takes the finer level's skip): only the layers between them are alike. Small lacks the mid block as well, and tiny
    the whole deepest level. Students of SDXL keep these layers, or all, and the first of every transformer's depth.
    """
    gone = _student(blocks, name) if name in STUDENTS else _bk_sdm(blocks, name)
    if not gone:
        raise ModelError(f"{name}: this UNet lacks all of it already; name other addresses")
    return frozenset(gone)


def _bk_sdm(blocks: tuple[Block, ...], name: str) -> set[str]:
    deepest = max(block.level for block in blocks)
    gone: set[str] = set()
    if name == "small":
        gone = {block.address for block in blocks if block.kind == "mid"}
    if name == "tiny":
        if deepest == 0:
            raise ModelError("tiny: this UNet has one level only; nothing would be left of it")
        gone = {block.address for block in blocks if block.level == deepest} | {f"down.{deepest - 1}.sampler"}
    for block in blocks:
        if not (name == "tiny" and block.level == deepest):
            gone |= {f"{block.address}.{i}" for i in range(len(block.layers)) if i not in _ends(block)}
    return gone


def _ends(block: Block) -> list[int]:
    """The layers that BK-SDM's sets keep of a block."""
    last = len(block.layers) - 1
    return {"down": [0], "mid": list(range(last + 1)), "up": sorted({0, last})}[block.kind]


def _student(blocks: tuple[Block, ...], name: str) -> set[str]:
    student, tree = STUDENTS[name], {block.address: block for block in blocks}
    gone: set[str] = set()
    for address, depths in student.depths.items():
        layers = tree[address].layers if address in tree else ()
        numbers = _ends(tree[address])[: len(depths)] if student.pairs and layers else list(range(len(layers)))
        found = [made.depth if (made := layers[number].transformer) else 0 for number in numbers]
        if len(found) != len(depths) or any(have < kept for have, kept in zip(found, depths, strict=True)):
            has = f"has the depths {found}" if found else "is not there"
            raise ModelError(
                f"{name}: a set for SDXL's shape, which keeps transformers of the depths {list(depths)} in {address}; "
                f"here {address} {has}; name addresses instead"
            )
        for number, kept, have in zip(numbers, depths, found, strict=True):
            gone |= {f"{address}.{number}.attn.{k}" for k in range(kept, have)}
    for block in blocks if student.pairs else ():
        gone |= {f"{block.address}.{i}" for i in range(len(block.layers)) if i not in _ends(block)}
    if "mid" in tree and (student.mid == ("mid",) or tree["mid"].attends):
        gone |= set(student.mid)
    return gone
