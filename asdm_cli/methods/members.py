"""Gate 3 of `asdm switch` for its UNets: who they are, and whether each can stand in the others' place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asdm_cli.errors import AsdmError, ModelError
from asdm_cli.inheritance.course import Nodes
from asdm_cli.models.checked import check_unet
from asdm_cli.models.schedulers import SCHEDULER, own_scheduler, unlike_noise
from asdm_cli.models.source import ModelDirectory, find
from asdm_cli.models.switched import UNET, one_unet, run_time_plans
from asdm_cli.recipe.patches import Rules
from asdm_cli.recipe.verbs import OneUNet, SwitchRecipe
from asdm_cli.report.document import Cell, Column, Interval, Table
from asdm_cli.unet import cost
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.settings import unlike_inputs

SHARED = {
    "scheduler": ("prediction_type",),
    "vae": ("latent_channels", "block_out_channels", "scaling_factor"),
}
"""Settings of other components that a UNet was trained for, besides the noise: with others, it answers another
question."""


@dataclass(frozen=True)
class Member:
    """One of the UNets, with the plan that is in force on it."""

    directory: ModelDirectory
    nodes: Nodes | None

    @property
    def config(self) -> dict[str, Any]:
        return self.directory.config(UNET)

    @property
    def plan(self) -> Rules | None:
        return self.nodes.plan if self.nodes else None


def members(recipe: SwitchRecipe) -> dict[str, Member]:
    """By name, in the recipe's order. Reads configs and headers only. Raises ModelError with all that does not fit."""
    found: dict[str, Member] = {}
    faults: list[str] = []
    for name, asked in recipe.unets.items():
        try:
            found[name] = _member(asked)
        except AsdmError as error:
            faults.append(f"unets.{name}: {error}")
    if not faults:
        faults = [f"unets: {each}" for each in unlike_inputs({name: each.config for name, each in found.items()})]
        faults += _unlike_surroundings(found)
    if faults:
        raise ModelError("\n".join(faults))
    return found


def _member(asked: OneUNet) -> Member:
    directory = one_unet(find(asked.model))
    config = directory.config(UNET)
    check_unet(directory)
    if asked.plan is None:
        return Member(directory, run_time_plans(directory, None).get(UNET))
    return Member(directory, Nodes(asked.plan.resolved(), Anatomy.of(config)))


def _unlike_surroundings(found: Mapping[str, Member]) -> list[str]:
    """Of members that are whole pipelines."""
    (first, leading), *others = found.items()
    whole = {name: each.directory for name, each in found.items() if SCHEDULER in each.directory.components}
    faults = [f"unets: {each}" for each in unlike_noise({name: own_scheduler(each) for name, each in whole.items()})]
    for component, keys in SHARED.items():
        own = leading.directory.config(component) if component in leading.directory.components else {}
        for name, member in others:
            theirs = member.directory.config(component) if own and component in member.directory.components else own
            faults += [
                f"unets.{name}: its {component} has {key} {theirs.get(key)!r}, and {first}'s has {own.get(key)!r}; "
                "UNets that take turns must have been trained for the same"
                for key in keys
                if theirs.get(key) != own.get(key)
            ]
    return faults


def members_table(found: Mapping[str, Member], size: int, tokens: int) -> Table:
    """What each costs on paper; `size` in pixels of a latent."""
    heads = [
        Column("name", "UNet"),
        Column("model", "model"),
        Column("params_m", "parameters (M)", "lower"),
        Column("macs_g", "GMACs a call", "lower", 3),
        Column("plan", "inherits"),
    ]
    rows: list[dict[str, Cell | Interval]] = [
        {
            "name": name,
            "model": member.directory.name,
            "params_m": sum(cost.parameters(member.config).values()) / 1e6,
            "macs_g": cost.macs(member.config, size=size, tokens=tokens).total / 1e9,
            "plan": _plan_told(member.plan),
        }
        for name, member in found.items()
    ]
    return Table("UNets", heads, rows, "On paper: a call on one latent, without what plans save.")


def _plan_told(plan: Rules | None) -> str | None:
    if plan is None:
        return None
    return "; ".join(
        f"{rule.nodes if isinstance(rule.nodes, str) else ', '.join(rule.nodes)}: {rule.schedule}"
        for rule in plan.rules
    )
