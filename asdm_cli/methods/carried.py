"""What a contestant of `asdm bench` brings along besides one UNet: plans, and UNets that take turns with it."""

from __future__ import annotations

from asdm_cli.errors import ModelError
from asdm_cli.inheritance.course import Nodes
from asdm_cli.models.source import ModelDirectory
from asdm_cli.models.switched import component, nodes_of, run_time_plans
from asdm_cli.recipe.patches import Switch
from asdm_cli.recipe.verbs import Contestant
from asdm_cli.unet import cost
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.blocks import Config


def parameters(config: Config, directory: ModelDirectory | None, switch: Switch | None) -> dict[str, int]:
    """Of a UNet, by block; of several, by name."""
    if directory is None or switch is None:
        return cost.parameters(config)
    configs = {name: directory.config(component(switch, name)) for name in switch.unets}
    return {name: sum(cost.parameters(each).values()) for name, each in configs.items()}


def nodes(
    contestant: Contestant, config: Config, directory: ModelDirectory | None, switch: Switch | None
) -> Nodes | None:
    """Of the recipe's plan, or of the one that the model carries.

    Of several UNets, those of the first by the recipe's plan alone: what each carries is put in force by loading it.
    Raises ModelError, with the contestant's name, where a plan does not fit.
    """
    asked = contestant.plan.resolved() if contestant.plan else None
    try:
        if directory is None or switch is None:
            own = run_time_plans(directory, None) if directory and not asked else {}
            return Nodes(asked, Anatomy.of(config)) if asked else next(iter(own.values()), None)
        if asked:
            return nodes_of(directory, switch, dict.fromkeys(switch.unets, asked))[switch.unets[0]]
        run_time_plans(directory, switch)
        return None
    except ModelError as error:
        raise ModelError(f"contestant {contestant.name!r}: {error}") from None
