"""Plans as recipes write them: what each preset stands for, and every fault at its own place."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.plans import InheritPlan, Preset, Rule, Rules, read_plan
from asdm_cli.recipe.schedules import Explicit, Uniform
from asdm_cli.recipe.schema import Strict
from asdm_cli.recipe.source import parse
from asdm_cli.recipe.words import faults

EVERY_2ND = {"mode": "uniform", "interval": 2}
RULE = {"nodes": "base", "schedule": EVERY_2ND}


class Recipe(Strict):
    """A recipe that holds a plan."""

    plan: InheritPlan
    """The plan."""


def told(text: str) -> list[str]:
    """The faults of a recipe whose `plan` is this flow mapping, as a person reads them."""
    source = parse(f"plan: {text}\n", "r.yaml")
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(source.data)
    return [fault.at("r.yaml") for fault in faults(caught.value, source, Recipe)]
