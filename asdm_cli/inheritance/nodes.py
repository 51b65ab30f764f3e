"""Which nodes a plan's rules own on one UNet, and by which of its modules a node is handed on. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from asdm_cli.errors import ModelError
from asdm_cli.recipe.patches import Rules
from asdm_cli.unet.anatomy import NORMS, Anatomy
from asdm_cli.unet.dataflow import Dataflow

UNITS = ("resnet", "attn", "sampler")
SUB_UNITS = ("self", "cross", "ff")
BRANCH = re.compile(r"deepcache\.(\d+)")
ENCODER = "encoder"
BRANCHES = {
    "resnet": ("conv2", ("norm1", "conv1", "time_emb_proj", "norm2")),
    "attn": ("proj_out", ("proj_in", "transformer_blocks.*")),
}
"""Kind of unit -> the module that ends its residual branch, and those that only lead there.

A transformer's norm runs: where its projections are linear, the shape of its output is used again after the last.
"""


@dataclass(frozen=True)
class Node:
    """A unit or sub-unit that a rule owns. `carry` is `output` or `residual`; sub-units know no difference."""

    address: str
    kind: str
    rule: int
    carry: str

    @property
    def unit(self) -> str:
        """The unit without which this node is not computed: itself, or the transformer around a sub-unit."""
        return self.address if self.kind in UNITS else f"{self.address.rsplit('.', 1)[0]}.attn"


@dataclass(frozen=True)
class Outlet:
    """Where a node hands on: the module whose output is kept, and those that need not run when it is inherited.

    `tupled`: the module answers with a tuple whose first entry is the value.
    """

    module: str
    rule: int
    shadows: tuple[str, ...] = ()
    tupled: bool = False


def own(plan: Rules, anatomy: Anatomy) -> dict[str, Node]:
    """Node address -> node, in forward order; a node that two rules name belongs to the first.

    Raises ModelError, with the rule's place in the plan, where one names nothing on this UNet or owns nothing.
    """
    owned: dict[str, Node] = {}
    for index, rule in enumerate(plan.rules):
        try:
            addresses = match(anatomy, rule.nodes)
        except ModelError as error:
            raise ModelError(f"rules[{index}].nodes: {error}") from None
        mine = [node for node in _expanded(anatomy, addresses, index, rule.carry) if node.address not in owned]
        if not mine:
            raise ModelError(f"rules[{index}].nodes: {_empty(rule.carry)}; take the rule out or name others")
        owned |= {node.address: node for node in mine}
    order = {address: place for place, address in enumerate(anatomy.addresses)}
    return {address: owned[address] for address in sorted(owned, key=order.__getitem__)}


def match(anatomy: Anatomy, patterns: str | Iterable[str]) -> frozenset[str]:
    """Addresses of patterns and named sets, those of `Anatomy.match` and the two that only inheriting knows."""
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    return frozenset().union(*(_match_one(anatomy, pattern) for pattern in patterns))


def outlets(node: Node, anatomy: Anatomy) -> list[Outlet]:
    """A sub-unit of a deep transformer hands on at each of its blocks; every other node at one module."""
    modules = anatomy.node(node.address).modules
    if node.kind in SUB_UNITS:
        norm = next(norm for norm, word in NORMS.items() if word == node.kind)
        return [Outlet(module, node.rule, (f"{module.rsplit('.', 1)[0]}.{norm}",)) for module in modules]
    (module,) = modules
    if node.carry == "output":
        return [Outlet(module, node.rule, tupled=node.kind == "attn")]
    end, before = BRANCHES[node.kind]
    return [Outlet(f"{module}.{end}", node.rule, tuple(f"{module}.{name}" for name in before))]


def _match_one(anatomy: Anatomy, pattern: str) -> frozenset[str]:
    branch = BRANCH.fullmatch(pattern)
    if branch:
        return frozenset({Dataflow.of(anatomy).branch(int(branch[1]))})
    if pattern == ENCODER:
        return frozenset(block.address for block in anatomy.blocks if block.kind != "up")
    return anatomy.match(pattern)


def _expanded(anatomy: Anatomy, addresses: frozenset[str], rule: int, carry: str) -> Iterable[Node]:
    """Sub-units as they are; blocks and layers as the units inside them. Resamplers have no residual branch."""
    kinds = UNITS if carry == "output" else tuple(BRANCHES)
    below = frozenset().union(*(anatomy.inside(address) for address in addresses))
    for node in anatomy.nodes:
        if (node.kind in kinds and node.address in below) or (node.kind in SUB_UNITS and node.address in addresses):
            yield Node(node.address, node.kind, rule, carry)


def _empty(carry: str) -> str:
    owner = "every node it names belongs to an earlier rule"
    return owner if carry == "output" else f"{owner}, or has no residual branch (resamplers)"
