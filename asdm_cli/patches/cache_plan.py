"""A plan on one UNet: which nodes a rule owns, by which modules they are handed on, and what happens at each call of a
generation: which nodes are computed, reused or skipped. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, count, takewhile
from typing import Any

from asdm_cli.errors import ModelError
from asdm_cli.recipe.patches import OUT, CachePlan, CacheRule, FeatureCacheSpec
from asdm_cli.records import Timeline
from asdm_cli.unet.addresses import NORMS, Anatomy
from asdm_cli.unet.addresses import SUB_UNITS as SUB_UNIT_MODULES
from asdm_cli.unet.dataflow import CONV_OUT, OUTSIDE, Dataflow

STORE, REUSE, SKIP = 1, 2, 3
"""What a module does at a call: compute and store its value, hand on a stored one, or nothing. Others just compute."""
COMPUTED, REUSED, UNREAD = "c", "i", "d"
"""The same of a node, as the picture of a plan shows it."""
LETTERS = {COMPUTED: "computed", REUSED: "inherited", UNREAD: "dead"}
UNITS = ("resnet", "attn", "sampler")
WHOLE = ""
"""The UNet among its modules, which hands on the whole output."""
SUB_UNITS = ("self", "cross", "ff")
DEPTH = "depth"
"""The kind of a block of a transformer's depth. Its output is all that later ones read: earlier ones are not computed
where it is reused. Its residual branch is what its three sub-units add."""
BRANCH = re.compile(r"deepcache\.(\d+)")
ENCODER = "encoder"
BRANCHES = {
    "resnet": ("conv2", ("norm1", "conv1", "time_emb_proj", "norm2")),
    "attn": ("proj_out", ("proj_in",)),
}
"""Kind of unit -> the module that ends its residual branch, and those that only lead there, beside its depth.

A transformer's norm runs: where its projections are linear, the shape of its output is used again after the last.
"""

Reused = frozenset[int]
"""The rules whose nodes are reused at a call; the others have a key step there."""


@dataclass(frozen=True)
class Node:
    """A unit, sub-unit or block of a depth that a rule owns. `cache` is `output` or `residual`; sub-units know no
    difference. `unit` is the one without which it is not computed: itself, or the transformer around it."""

    address: str
    kind: str
    unit: str
    rule: int
    cache: str


@dataclass(frozen=True)
class Outlet:
    """Where a node hands on: the module whose output is stored, and those that need not run when it is reused.

    `tupled`: the module answers with a tuple whose first entry is the value.
    """

    module: str
    rule: int
    shadows: tuple[str, ...] = ()
    tupled: bool = False


def owned_nodes(plan: CachePlan, anatomy: Anatomy, flow: Dataflow) -> dict[str, Node]:
    """Node address -> node, in forward order; a node that two rules name belongs to the first.

    Blocks and layers stand for the units inside them; resamplers have no residual branch. Raises ModelError, with the
    rule's place in the plan, where one names nothing on this UNet or owns nothing.
    """
    owned: dict[str, Node] = {}
    for index, rule in enumerate(plan.rules):
        try:
            named = _named(rule, anatomy, flow)
        except ModelError as error:
            raise ModelError(f"rules[{index}].nodes: {error}") from None
        below = frozenset[str]().union(*(anatomy.inside(address) for address in named - {CONV_OUT}))
        mine = {CONV_OUT: Node(CONV_OUT, OUT, CONV_OUT, index, rule.cache)} if CONV_OUT in named else {}
        for node in anatomy.nodes:
            if node.kind in (*SUB_UNITS, DEPTH) and node.address in named:
                unit = node.parent or ""
                mine[node.address] = Node(node.address, node.kind, unit, index, rule.cache)
            elif node.kind in (UNITS if rule.cache == "output" else BRANCHES) and node.address in below:
                mine[node.address] = Node(node.address, node.kind, node.address, index, rule.cache)
        if not mine.keys() - owned.keys():
            why = "every node it names belongs to an earlier rule"
            why += "" if rule.cache == "output" else ", or has no residual branch (resamplers)"
            raise ModelError(f"rules[{index}].nodes: {why}; take the rule out or name others")
        taken = {outlet.module: other for other in owned.values() for outlet in outlets(other, anatomy)}
        for new in (each for address, each in mine.items() if address not in owned):
            if other := next((taken[each.module] for each in outlets(new, anatomy) if each.module in taken), None):
                what = f"{new.address} shares sub-units with {other.address} of rules[{other.rule}]; name one of them"
                raise ModelError(f"rules[{index}].nodes: {what}")
        owned = mine | owned
    return {address: owned[address] for address in (*anatomy.addresses, CONV_OUT) if address in owned}


def _named(rule: CacheRule, anatomy: Anatomy, flow: Dataflow) -> set[str]:
    """Addresses. Three patterns are known here alone, `out`, `encoder` and `deepcache.N`."""
    named: set[str] = set()
    for pattern in [rule.nodes] if isinstance(rule.nodes, str) else rule.nodes:
        if pattern == OUT:
            named.add(CONV_OUT)
        elif branch := BRANCH.fullmatch(pattern):
            named.add(flow.branch(int(branch[1])))
        elif pattern == ENCODER:
            named |= {block.address for block in anatomy.blocks if block.kind != "up"}
        else:
            named |= anatomy.match(pattern)
    return named


def outlets(node: Node, anatomy: Anatomy) -> list[Outlet]:
    """A sub-unit of a deep transformer hands on at each of its blocks, and the residual branch of such a block at each
    of its sub-units; every other node at one module."""
    if node.kind == OUT:
        return [Outlet(WHOLE, node.rule)]
    modules = anatomy.node(node.address).modules
    if node.kind in SUB_UNITS:
        norm = next(norm for norm, word in NORMS.items() if word == node.kind)
        return [Outlet(module, node.rule, (f"{module.rsplit('.', 1)[0]}.{norm}",)) for module in modules]
    (module,) = modules
    if node.kind == DEPTH and node.cache == "residual":
        parts = ((SUB_UNIT_MODULES[word], norm) for norm, word in NORMS.items())
        return [Outlet(f"{module}.{name}", node.rule, (f"{module}.{norm}",)) for name, norm in parts]
    if node.kind == DEPTH:
        inner, _, number = module.rpartition(".")
        return [Outlet(module, node.rule, tuple(f"{inner}.{k}" for k in range(int(number))))]
    if node.cache == "output":
        return [Outlet(module, node.rule, tupled=node.kind == "attn")]
    end, before = BRANCHES[node.kind]
    depth = takewhile(lambda address: address in anatomy, (f"{node.address}.{k}" for k in count()))
    inside = [each for address in depth for each in anatomy.node(address).modules]
    return [Outlet(f"{module}.{end}", node.rule, (*(f"{module}.{name}" for name in before), *inside))]


class ResolvedPlan:
    """A plan on one UNet. Raises ModelError where they do not fit.

    `by_module`: the module that hands on -> its outlet, in forward order.
    """

    def __init__(self, plan: CachePlan, anatomy: Anatomy):
        self.plan, self.anatomy, self.flow = plan, anatomy, Dataflow.of(anatomy)
        self.owned = owned_nodes(plan, anatomy, self.flow)
        self.outlets = {node.address: outlets(node, anatomy) for node in self.owned.values()}
        self.by_module = {outlet.module: outlet for group in self.outlets.values() for outlet in group}
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

    def states(self, reused: Reused) -> dict[str, str]:
        """COMPUTED, REUSED or UNREAD for every unit, and for the sub-units that a rule owns."""
        mine = [node for node in self.owned.values() if node.rule in reused]
        handed_on = {node.address: node.cache for node in mine if node.unit == node.address}
        live = self.flow.live(handed_on)
        read = {unit: REUSED if unit in handed_on else COMPUTED for unit in live}
        states = {unit: read.get(unit, UNREAD) for unit in self.flow.reads}
        for node in self.owned.values():
            if node.unit != node.address:
                # inside a transformer that is itself reused, a sub-unit is not read
                around = states[node.unit]
                own = REUSED if around == COMPUTED and node.rule in reused else around
                states[node.address] = UNREAD if around == REUSED else own
        for node in self.owned.values():
            if node.kind == DEPTH and node.cache == "output" and states[node.address] == REUSED:
                inner, _, number = node.address.rpartition(".")
                earlier = (f"{inner}.{k}" for k in range(int(number)))
                states |= dict.fromkeys(states.keys() & set(earlier), UNREAD)
        return states

    def roles(self, states: Mapping[str, str], stored: frozenset[str]) -> dict[str, int]:
        """Module -> STORE, REUSE or SKIP, for UNet calls with these states; `stored` modules are read later."""
        roles: dict[str, int] = {}
        for address, state in states.items():
            if state == UNREAD and address in self.flow.reads:
                modules = OUTSIDE[address] if address in OUTSIDE else self.anatomy.node(address).modules
                roles |= dict.fromkeys(modules, SKIP)
            for outlet in self.outlets.get(address, ()):
                if state == REUSED:
                    roles |= dict.fromkeys(outlet.shadows, SKIP) | {outlet.module: REUSE}
                elif state == COMPUTED and outlet.module in stored:
                    roles[outlet.module] = STORE
        skipped = {name for name, role in roles.items() if role == SKIP}
        return {name: role for name, role in roles.items() if skipped.isdisjoint(_around(name))}


def _around(module: str) -> list[str]:
    """The modules that it lies in: what is in one that does not run does nothing either."""
    words = module.split(".")
    return [".".join(words[:length]) for length in range(1, len(words))]


def resolve(plan: CachePlan, config: dict[str, Any]) -> ResolvedPlan:
    """Raises ModelError where the plan does not fit a UNet of this config."""
    return ResolvedPlan(plan, Anatomy.of(config))


def misfits(plan: FeatureCacheSpec, configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """In words: what it does not say, and where it does not fit the UNets of these configs that it is for."""
    what = "only a calibration can say; let `asdm inherit` write a model with this plan"
    rules = [(index, rule.uncalibrated) for index, rule in enumerate(plan.rules) if rule.uncalibrated]
    faults = [f"rules[{index}].{key}: {what}" for index, key in rules]
    for name in configs if plan.unet is None else (plan.unet,):
        try:
            resolve(plan, dict(configs[name]))
        except ModelError as error:
            faults.append(str(error) if len(configs) == 1 else f"UNet {name!r}: {error}")
    return faults


class StepPlan:
    """A generation of so many UNet calls. `keys[rule]` are its key steps; None where they are found while it runs.

    They are those of the rules' schedules, unless others are given.
    """

    def __init__(self, resolved: ResolvedPlan, calls: int, keys: tuple[frozenset[int] | None, ...] | None = None):
        self.resolved = resolved
        self.calls = calls
        found = (rule.schedule.key_steps(calls) for rule in resolved.plan.rules)
        self.keys = keys or tuple(None if steps is None else frozenset(steps) for steps in found)
        self._roles: dict[Reused, dict[str, int]] = {}

    def following(self, patterns: Sequence[Reused]) -> StepPlan:
        """A generation whose calls have these patterns, for what calls cost: that depends on nothing else."""
        rules = range(len(self.keys))
        keys = tuple(frozenset(call for call, each in enumerate(patterns) if rule not in each) for rule in rules)
        return StepPlan(self.resolved, len(patterns), keys)

    def digest(self) -> StepPlan:
        """Every pattern of this plan once: a full call, another one that has a past, the rest."""
        rest = sorted(self.reachable - {frozenset()}, key=sorted)
        return self.following([frozenset(), frozenset(), *rest])

    def reused(self, call: int) -> Reused:
        """Rules that are reused at a call, of those whose key steps are known beforehand."""
        return frozenset(rule for rule, keys in enumerate(self.keys) if keys is not None and call not in keys)

    @cached_property
    def reachable(self) -> frozenset[Reused]:
        """Every set of rules that may be reused together at some call."""
        adaptive = [rule for rule, keys in enumerate(self.keys) if keys is None]
        some = [frozenset(each) for size in range(len(adaptive) + 1) for each in combinations(adaptive, size)]
        later = {self.reused(call) for call in range(1, self.calls)}
        return frozenset({self.reused(0)} | {known | each for known in later for each in some})

    @cached_property
    def stored(self) -> frozenset[str]:
        """Modules whose values are read at a later call; no others are kept in memory."""
        states = [self.resolved.states(reused) for reused in self.reachable]
        reused = {address for each in states for address, state in each.items() if state == REUSED}
        return frozenset(outlet.module for address in reused for outlet in self.resolved.outlets[address])

    def roles(self, reused: Reused) -> dict[str, int]:
        """Of every module, at a call at which these rules are reused."""
        if reused not in self._roles:
            self._roles[reused] = self.resolved.roles(self.resolved.states(reused), self.stored)
        return self._roles[reused]


def picture(resolved: ResolvedPlan, steps: Sequence[Reused], name: str) -> Timeline:
    """Nodes by calls, neighbours that fare alike in one row; of sub-units, those that the plan names."""
    states = [resolved.states(reused) for reused in steps]
    inside = [address for address in resolved.anatomy.addresses if address in states[0]]
    outside = [address for address in states[0] if address not in resolved.anatomy]
    rows: dict[str, str] = {}
    group: list[str] = []
    ordered = [*outside[:-1], *inside, *outside[-1:]]
    fares = {address: "".join(each[address] for each in states) for address in ordered}
    for place, address in enumerate(ordered):
        group.append(address)
        if place + 1 == len(ordered) or fares[ordered[place + 1]] != fares[address]:
            rows[group[0] if len(group) == 1 else f"{group[0]} … {group[-1]}"] = fares[address]
            group = []
    full = sum(not reused for reused in steps)
    note = f"{full} of {len(steps)} calls are computed in full."
    return Timeline(f"What each UNet call computes: {name}", rows, dict(LETTERS), note)
