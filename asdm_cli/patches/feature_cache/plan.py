"""A plan on one UNet: which nodes a rule owns, by which modules they are handed on, and what happens at each call of a
generation: which nodes are computed, reused or skipped. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

from asdm_cli.errors import ModelError
from asdm_cli.recipe.patches import CachePlan
from asdm_cli.unet.addresses import NORMS, Anatomy
from asdm_cli.unet.dataflow import CONV_IN, CONV_OUT, OUTSIDE, TIME, Dataflow

STORE, REUSE, SKIP = 1, 2, 3
"""What a module does at a call: compute and store its value, hand on a stored one, or nothing. Others just compute."""
COMPUTED, REUSED, UNREAD = "c", "i", "d"
"""The same of a node, as the picture of a plan shows it."""
LETTERS = {COMPUTED: "computed", REUSED: "inherited", UNREAD: "dead"}
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

Reused = frozenset[int]
"""The rules whose nodes are reused at a call; the others have a key step there."""


@dataclass(frozen=True)
class Node:
    """A unit or sub-unit that a rule owns. `cache` is `output` or `residual`; sub-units know no difference."""

    address: str
    kind: str
    rule: int
    cache: str

    @property
    def unit(self) -> str:
        """The unit without which this node is not computed: itself, or the transformer around a sub-unit."""
        return self.address if self.kind in UNITS else f"{self.address.rsplit('.', 1)[0]}.attn"


@dataclass(frozen=True)
class Outlet:
    """Where a node hands on: the module whose output is stored, and those that need not run when it is reused.

    `tupled`: the module answers with a tuple whose first entry is the value.
    """

    module: str
    rule: int
    shadows: tuple[str, ...] = ()
    tupled: bool = False


def match(anatomy: Anatomy, patterns: str | Iterable[str]) -> frozenset[str]:
    """Addresses of patterns and named sets, those of `Anatomy.match` and the two that only a cache knows."""
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if branch := BRANCH.fullmatch(pattern):
            found.add(Dataflow.of(anatomy).branch(int(branch[1])))
        elif pattern == ENCODER:
            found |= {block.address for block in anatomy.blocks if block.kind != "up"}
        else:
            found |= anatomy.match(pattern)
    return frozenset(found)


def owned_nodes(plan: CachePlan, anatomy: Anatomy) -> dict[str, Node]:
    """Node address -> node, in forward order; a node that two rules name belongs to the first.

    Blocks and layers stand for the units inside them; resamplers have no residual branch. Raises ModelError, with the
    rule's place in the plan, where one names nothing on this UNet or owns nothing.
    """
    owned: dict[str, Node] = {}
    for index, rule in enumerate(plan.rules):
        try:
            addresses = match(anatomy, rule.nodes)
        except ModelError as error:
            raise ModelError(f"rules[{index}].nodes: {error}") from None
        kinds = UNITS if rule.cache == "output" else tuple(BRANCHES)
        below = frozenset().union(*(anatomy.inside(address) for address in addresses))
        mine = {
            node.address: Node(node.address, node.kind, index, rule.cache)
            for node in anatomy.nodes
            if (node.kind in kinds and node.address in below) or (node.kind in SUB_UNITS and node.address in addresses)
        }
        if not mine.keys() - owned.keys():
            why = "every node it names belongs to an earlier rule"
            why += "" if rule.cache == "output" else ", or has no residual branch (resamplers)"
            raise ModelError(f"rules[{index}].nodes: {why}; take the rule out or name others")
        owned = mine | owned
    order = {address: place for place, address in enumerate(anatomy.addresses)}
    return {address: owned[address] for address in sorted(owned, key=order.__getitem__)}


def outlets(node: Node, anatomy: Anatomy) -> list[Outlet]:
    """A sub-unit of a deep transformer hands on at each of its blocks; every other node at one module."""
    modules = anatomy.node(node.address).modules
    if node.kind in SUB_UNITS:
        norm = next(norm for norm, word in NORMS.items() if word == node.kind)
        return [Outlet(module, node.rule, (f"{module.rsplit('.', 1)[0]}.{norm}",)) for module in modules]
    (module,) = modules
    if node.cache == "output":
        return [Outlet(module, node.rule, tupled=node.kind == "attn")]
    end, before = BRANCHES[node.kind]
    return [Outlet(f"{module}.{end}", node.rule, tuple(f"{module}.{name}" for name in before))]


class ResolvedPlan:
    """A plan on one UNet. Raises ModelError where they do not fit."""

    def __init__(self, plan: CachePlan, anatomy: Anatomy):
        self.plan = plan
        self.anatomy = anatomy
        self.flow = Dataflow.of(anatomy)
        self.owned = owned_nodes(plan, anatomy)
        self.outlets = {node.address: outlets(node, anatomy) for node in self.owned.values()}
        self._steps: dict[int, StepPlan] = {}

    def steps(self, calls: int) -> StepPlan:
        """What a generation of so many calls does, worked out once."""
        if calls not in self._steps:
            self._steps[calls] = StepPlan(self, calls)
        return self._steps[calls]

    @cached_property
    def touched(self) -> frozenset[str]:
        """Every module that does anything but compute at some call of some generation."""
        rules = range(len(self.plan.rules))
        subsets = (frozenset(each) for size in range(len(rules) + 1) for each in combinations(rules, size))
        roles = (self.roles(self.states(reused), stored=frozenset()) for reused in subsets)
        return frozenset().union(self.by_module, *roles)

    @cached_property
    def by_module(self) -> dict[str, Outlet]:
        """Module that hands on -> its outlet, in forward order."""
        return {outlet.module: outlet for group in self.outlets.values() for outlet in group}

    def states(self, reused: Reused) -> dict[str, str]:
        """COMPUTED, REUSED or UNREAD for every unit, and for the sub-units that a rule owns."""
        mine = [node for node in self.owned.values() if node.rule in reused]
        handed_on = {node.address: node.cache for node in mine if node.unit == node.address}
        live = self.flow.live(handed_on)
        states = {unit: _state(unit, live, handed_on) for unit in self.flow.reads}
        for node in self.owned.values():
            if node.unit != node.address:
                # inside a transformer that is itself reused, a sub-unit is not read
                around = states[node.unit]
                own = REUSED if around == COMPUTED and node.rule in reused else around
                states[node.address] = UNREAD if around == REUSED else own
        return states

    def roles(self, states: Mapping[str, str], stored: frozenset[str]) -> dict[str, int]:
        """Module -> STORE, REUSE or SKIP, for UNet calls with these states; `stored` modules are read later."""
        roles: dict[str, int] = {}
        for address, state in states.items():
            if state == UNREAD and address in self.flow.reads:
                outside = address in (CONV_IN, TIME, CONV_OUT)
                roles |= dict.fromkeys(OUTSIDE[address] if outside else self.anatomy.node(address).modules, SKIP)
            for outlet in self.outlets.get(address, ()):
                if state == REUSED:
                    roles |= dict.fromkeys(outlet.shadows, SKIP) | {outlet.module: REUSE}
                elif state == COMPUTED and outlet.module in stored:
                    roles[outlet.module] = STORE
        return roles


def _state(unit: str, live: frozenset[str], handed_on: Mapping[str, str]) -> str:
    if unit not in live:
        return UNREAD
    return REUSED if unit in handed_on else COMPUTED


@dataclass(frozen=True)
class StepPattern:
    """All calls at which the same rules are reused."""

    states: Mapping[str, str]
    roles: Mapping[str, int]


class StepPlan:
    """A generation of so many UNet calls. `keys[rule]` are its key steps; None where they are found while it runs.

    They are those of the rules' schedules, unless others are given.
    """

    def __init__(self, resolved: ResolvedPlan, calls: int, keys: tuple[frozenset[int] | None, ...] | None = None):
        self.resolved = resolved
        self.calls = calls
        found = (rule.schedule.key_steps(calls) for rule in resolved.plan.rules)
        self.keys = keys or tuple(None if steps is None else frozenset(steps) for steps in found)
        self._patterns: dict[Reused, StepPattern] = {}

    def digest(self) -> StepPlan:
        """A plan in which every pattern of this one comes once: a full call, another one that has a past, the rest.

        What a call costs depends on its pattern alone, so this is all that need be timed.
        """
        rest = sorted(self.reachable - {frozenset()}, key=sorted)
        patterns = [frozenset[int](), frozenset[int](), *rest]
        rules = range(len(self.keys))
        keys = tuple(frozenset(call for call, each in enumerate(patterns) if rule not in each) for rule in rules)
        return StepPlan(self.resolved, len(patterns), keys)

    @cached_property
    def reachable(self) -> frozenset[Reused]:
        """Every set of rules that may be reused together at some call."""

        def choices(keys: frozenset[int] | None, call: int) -> tuple[bool, ...]:
            if keys is None:
                return (False, True) if call else (False,)
            return (call not in keys,)

        return frozenset(
            frozenset(rule for rule, reused in enumerate(choice) if reused)
            for call in range(self.calls)
            for choice in product(*(choices(keys, call) for keys in self.keys))
        )

    @cached_property
    def stored(self) -> frozenset[str]:
        """Modules whose values are read at a later call; no others are kept in memory."""
        states = (self.resolved.states(reused) for reused in self.reachable)
        return frozenset(
            outlet.module
            for each in states
            for address, state in each.items()
            if state == REUSED
            for outlet in self.resolved.outlets[address]
        )

    def pattern(self, reused: Reused) -> StepPattern:
        if reused not in self._patterns:
            states = self.resolved.states(reused)
            self._patterns[reused] = StepPattern(states, self.resolved.roles(states, self.stored))
        return self._patterns[reused]

    def reused(self, call: int) -> Reused:
        """Rules that are reused at a call, of those whose key steps are known beforehand."""
        return frozenset(rule for rule, keys in enumerate(self.keys) if keys is not None and call not in keys)
