"""Whether UNets, rules and plans go together: all faults at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from asdm_cli.errors import ModelError
from asdm_cli.inheritance.course import Nodes
from asdm_cli.inheritance.pipelines import check_class
from asdm_cli.recipe.messages import did_you_mean
from asdm_cli.recipe.patches import NULLS, Rules, Switching, reserved, unknown_unets
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.settings import unlike_inputs

Known = MutableMapping[tuple[str, str], Nodes]
"""What was worked out for a plan on a UNet, by the UNet's name and the plan as text."""


def check(unets: Mapping[str, Any], rules: Switching, plans: Mapping[str, Rules | Nodes]) -> None:
    """ModelError for UNets that cannot stand in one another's place, and for names that are not theirs."""
    for name, unet in unets.items():
        check_class(f"unets: {name}", unet)
    faults = [f"unets: {reserved(name)}" for name in unets if name in NULLS]
    if not unets:
        faults.append("unets: none is given; name one or more")
    if unets:
        faults += [
            f"unets: {each}" for each in unlike_inputs({name: dict(unet.config) for name, unet in unets.items()})
        ]
    formats = {name: str(unet.dtype).removeprefix("torch.") for name, unet in unets.items()}
    if len(set(formats.values())) > 1:
        each = ", ".join(f"{name} is in {form}" for name, form in formats.items())
        faults.append(f"unets: all must be in one number format: {each}")
    faults += _unknown(unets, rules) + _strangers(unets, plans)
    if faults:
        raise ModelError("\n".join(faults))


def check_rules(names: Iterable[str], rules: Switching) -> None:
    """ModelError where the rules name what is no UNet."""
    if faults := _unknown(names, rules):
        raise ModelError("\n".join(faults))


def fitted(unets: Mapping[str, Any], plans: Mapping[str, Rules | Nodes], known: Known) -> dict[str, Nodes]:
    """Each plan on its UNet, those already `known` not worked out again. Raises ModelError, with its name."""
    found: dict[str, Nodes] = {}
    faults = _strangers(unets, plans)
    for name in (name for name in plans if name in unets):
        plan = plans[name]
        try:
            found[name] = plan if isinstance(plan, Nodes) else _nodes(name, plan, dict(unets[name].config), known)
        except ModelError as error:
            faults.append(f"plans.{name}: {error}")
        twins = [other for other in found if other != name and unets[other] is unets[name]]
        if name in found and any(found[other].plan != found[name].plan for other in twins):
            faults.append(
                f"plans.{name}: is the same UNet as {', '.join(twins)}, which has another plan; load it twice"
            )
    if faults:
        raise ModelError("\n".join(faults))
    return found


def _nodes(name: str, plan: Rules, config: dict[str, Any], known: Known) -> Nodes:
    key = name, plan.model_dump_json()
    if key not in known:
        known[key] = Nodes(plan, Anatomy.of(config))
    return known[key]


def _unknown(names: Iterable[str], rules: Switching) -> list[str]:
    return [f"parts[{place[0]}].unet: {what}" for place, what in unknown_unets(rules.parts, list(names), ())]


def _strangers(unets: Mapping[str, Any], plans: Mapping[str, Any]) -> list[str]:
    return [
        f"plans.{name}: no UNet is called '{name}'{did_you_mean(name, list(unets))}"
        for name in plans
        if name not in unets
    ]
