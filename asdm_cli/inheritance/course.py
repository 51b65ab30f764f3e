"""What happens at each call of a generation: which nodes are computed, inherited or dead, by module. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

from asdm_cli.inheritance.nodes import Node, Outlet, outlets, own
from asdm_cli.recipe.patches import Rules
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.dataflow import CONV_IN, CONV_OUT, OUTSIDE, TIME, Dataflow

KEEP, INHERIT, DEAD = 1, 2, 3
"""What a module does at a call: compute and keep its value, hand on a value, or nothing. Others just compute."""
COMPUTED, INHERITED, UNREAD = "c", "i", "d"
"""The same of a node, as the picture of a plan shows it."""

Resting = frozenset[int]
"""The rules whose nodes are inherited at a call; the others have a key step there."""


class Nodes:
    """A plan on one UNet. Raises ModelError where they do not fit."""

    def __init__(self, plan: Rules, anatomy: Anatomy):
        self.plan = plan
        self.anatomy = anatomy
        self.flow = Dataflow.of(anatomy)
        self.owned = own(plan, anatomy)
        self.outlets = {node.address: outlets(node, anatomy) for node in self.owned.values()}
        self._courses: dict[int, Course] = {}

    def course(self, calls: int) -> Course:
        """The course of a generation of so many calls, worked out once."""
        if calls not in self._courses:
            self._courses[calls] = Course(self, calls)
        return self._courses[calls]

    @cached_property
    def touched(self) -> frozenset[str]:
        """Every module that does anything but compute at some call of some generation."""
        rules = range(len(self.plan.rules))
        subsets = (frozenset(each) for size in range(len(rules) + 1) for each in combinations(rules, size))
        return frozenset(
            module for resting in subsets for module in self.roles(self.states(resting), keep=frozenset())
        ) | {outlet.module for group in self.outlets.values() for outlet in group}

    @cached_property
    def by_module(self) -> dict[str, Outlet]:
        return {outlet.module: outlet for group in self.outlets.values() for outlet in group}

    @cached_property
    def rule_of(self) -> dict[str, int]:
        """Module that hands on -> its rule, in forward order."""
        return {module: outlet.rule for module, outlet in self.by_module.items()}

    def states(self, resting: Resting) -> dict[str, str]:
        """COMPUTED, INHERITED or UNREAD for every unit, and for the sub-units that a rule owns."""
        inherited = {node.address: node.carry for node in self._resting(resting) if node.unit == node.address}
        live = self.flow.live(inherited)
        states = {unit: _state(unit, live, inherited) for unit in self.flow.reads}
        for node in self.owned.values():
            if node.unit != node.address:
                # inside a transformer that is itself inherited, a sub-unit is not read
                around = states[node.unit]
                states[node.address] = INHERITED if around == COMPUTED and node.rule in resting else around
                if around == INHERITED:
                    states[node.address] = UNREAD
        return states

    def roles(self, states: Mapping[str, str], keep: frozenset[str]) -> dict[str, int]:
        """Module -> KEEP, INHERIT or DEAD, for UNet calls with these states; `keep` are modules that are read later."""
        roles: dict[str, int] = {}
        for address, state in states.items():
            if state == UNREAD and address in self.flow.reads:
                roles |= dict.fromkeys(self._modules(address), DEAD)
            for outlet in self.outlets.get(address, ()):
                if state == INHERITED:
                    roles |= dict.fromkeys(outlet.shadows, DEAD) | {outlet.module: INHERIT}
                elif state == COMPUTED and outlet.module in keep:
                    roles[outlet.module] = KEEP
        return roles

    def read_modules(self, states: Mapping[str, str]) -> frozenset[str]:
        """Modules that hand on a value at calls with these states."""
        return frozenset(
            outlet.module for address, state in states.items() if state == INHERITED for outlet in self.outlets[address]
        )

    def _resting(self, resting: Resting) -> Iterable[Node]:
        return (node for node in self.owned.values() if node.rule in resting)

    def _modules(self, unit: str) -> tuple[str, ...]:
        return OUTSIDE[unit] if unit in (CONV_IN, TIME, CONV_OUT) else self.anatomy.node(unit).modules


@dataclass(frozen=True)
class Pattern:
    """All calls at which the same rules rest."""

    states: Mapping[str, str]
    roles: Mapping[str, int]


class Course:
    """A generation of so many UNet calls. `keys[rule]` are its key steps; None where they are found while it runs.

    They are those of the rules' schedules, unless others are given.
    """

    def __init__(self, nodes: Nodes, calls: int, keys: tuple[frozenset[int] | None, ...] | None = None):
        self.nodes = nodes
        self.calls = calls
        known = (rule.schedule.key_steps(calls) for rule in nodes.plan.rules)
        self.keys = keys or tuple(None if steps is None else frozenset(steps) for steps in known)
        self._patterns: dict[Resting, Pattern] = {}

    def digest(self) -> Course:
        """A course in which every pattern of this one comes once: a full call, another one that has a past, the rest.

        What a call costs depends on its pattern alone, so this is all that need be timed.
        """
        rest = sorted(self.reachable - {frozenset()}, key=sorted)
        patterns = [frozenset[int](), frozenset[int](), *rest]
        rules = range(len(self.keys))
        keys = tuple(frozenset(call for call, each in enumerate(patterns) if rule not in each) for rule in rules)
        return Course(self.nodes, len(patterns), keys)

    @cached_property
    def reachable(self) -> frozenset[Resting]:
        """Every set of rules that may rest together at some call."""
        return frozenset(
            frozenset(rule for rule, rests in enumerate(choice) if rests)
            for call in range(self.calls)
            for choice in product(*(self._choices(rule, call) for rule in range(len(self.keys))))
        )

    @cached_property
    def kept(self) -> frozenset[str]:
        """Modules whose values are read at a later call; no others are kept in memory."""
        return frozenset().union(*(self.nodes.read_modules(self.nodes.states(rest)) for rest in self.reachable))

    def pattern(self, resting: Resting) -> Pattern:
        if resting not in self._patterns:
            states = self.nodes.states(resting)
            self._patterns[resting] = Pattern(states, self.nodes.roles(states, self.kept))
        return self._patterns[resting]

    def resting(self, call: int) -> Resting:
        """Rules that rest at a call, of those whose key steps are known beforehand."""
        return frozenset(rule for rule, keys in enumerate(self.keys) if keys is not None and call not in keys)

    def _choices(self, rule: int, call: int) -> tuple[bool, ...]:
        keys = self.keys[rule]
        if keys is None:
            return (False, True) if call else (False,)
        return (call not in keys,)


def _state(unit: str, live: frozenset[str], inherited: Mapping[str, str]) -> str:
    if unit not in live:
        return UNREAD
    return INHERITED if unit in inherited else COMPUTED
