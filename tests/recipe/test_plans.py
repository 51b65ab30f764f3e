"""Plans as recipes write them: what each preset stands for, and every fault at its own place."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.patches import Explicit, InheritPlan, Preset, Rule, Rules, Uniform, read_plan
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


ALL = "one of 'deepcache', 'encoder-propagation', 'base-mask'"
WRONG = {
    "deepcache": ["r.yaml:1:7: plan: must be a mapping of keys, got the text 'deepcache'"],
    "{}": ["r.yaml:1:7: plan.rules: must be given"],
    "{preset: deepcash}": [
        f"r.yaml:1:16: plan.preset: must be {ALL}, got 'deepcash' (did you mean 'deepcache'?)",
    ],
    "{preset: 3}": [f"r.yaml:1:16: plan.preset: must be {ALL}, got 3"],
    "{preset: rules}": [f"r.yaml:1:16: plan.preset: must be {ALL}, got 'rules'"],
    "{preset: deepcache, order: 3}": ["r.yaml:1:34: plan.order: must be at most 2, got 3"],
    "{preset: deepcache, branch: -1, intervall: 2}": [
        "r.yaml:1:35: plan.branch: must be at least 0, got -1",
        "r.yaml:1:39: plan.intervall: unknown key (did you mean 'interval'?)",
    ],
    "{preset: deepcache, interval: 2, schedule: {mode: uniform, interval: 3}}": [
        "r.yaml:1:50: plan.schedule: either 'interval' or 'schedule', not both"
    ],
    "{preset: base-mask, schedule: {mode: unifrom, interval: 2}}": [
        "r.yaml:1:44: plan.schedule.mode: must be one of 'uniform', 'early', 'late', 'center', 'quadratic', 'random', "
        "'explicit', 'threshold', got 'unifrom' (did you mean 'uniform'?)"
    ],
    "{rules: [], text_once: 1}": ["r.yaml:1:30: plan.text_once: must be true or false, got 1"],
    "{rules: [{nodes: base}]}": ["r.yaml:1:16: plan.rules[0].schedule: must be given"],
    "{rules: [{nodes: [], schedule: {mode: uniform, interval: 2}}]}": [
        "r.yaml:1:24: plan.rules[0].nodes: needs 1 or more entries"
    ],
    "{rules: [{nodes: base, cary: residual, order: -1, coordinate: snr, schedule: {mode: uniform, interval: 2}}]}": [
        "r.yaml:1:53: plan.rules[0].order: must be at least 0, got -1",
        "r.yaml:1:69: plan.rules[0].coordinate: must be one of 'step', 'log-snr', 'angle', got 'snr' "
        "(did you mean 'log-snr'?)",
        "r.yaml:1:30: plan.rules[0].cary: unknown key (did you mean 'carry'?)",
    ],
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_plans_are_told_at_their_place(text: str) -> None:
    assert told(text) == WRONG[text]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"preset": "deepcash"}, f"preset: must be {ALL}, got 'deepcash' (did you mean 'deepcache'?)"),
        ({"preset": "deepcache", "brunch": 1}, "brunch: unknown key (did you mean 'branch'?)"),
        ({"rules": [RULE, {**RULE, "order": 3}]}, "rules[1].order: must be at most 2, got 3"),
        ({"rules": [{**RULE, "nodez": "mid"}]}, "rules[0].nodez: unknown key (did you mean 'nodes'?)"),
        (None, "must be a mapping of keys, got null"),
        ([RULE], "must be a mapping of keys, got a list"),
    ],
)
def test_plans_of_the_python_api_are_told_by_their_source(plan: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_plan(plan, "asdm.json")
    assert str(caught.value).startswith("asdm.json:")
    assert message in str(caught.value)


def test_more_than_eight_rules_are_refused() -> None:
    """Every subset of them may rest together, and what each leaves to compute is worked out."""
    assert len(read_plan({"rules": [RULE] * 8}).rules) == 8
    with pytest.raises(RecipeError, match="at most 8"):
        read_plan({"rules": [RULE] * 9})


FIFTY = Explicit(mode="explicit", steps=["0%-8%", 5, 10, 15, 25, 35])


@pytest.mark.parametrize(
    ("plan", "nodes", "carry", "schedule"),
    [
        ({"preset": "deepcache"}, "deepcache.0", "output", Uniform(mode="uniform", interval=3)),
        ({"preset": "deepcache", "branch": 5}, "deepcache.5", "output", Uniform(mode="uniform", interval=3)),
        ({"preset": "deepcache", "interval": 5}, "deepcache.0", "output", Uniform(mode="uniform", interval=5)),
        ({"preset": "encoder-propagation"}, "encoder", "output", FIFTY),
        ({"preset": "encoder-propagation", "interval": 4}, "encoder", "output", Uniform(mode="uniform", interval=4)),
        ({"preset": "base-mask"}, "base", "residual", Uniform(mode="uniform", interval=2)),
        (
            {"preset": "base-mask", "schedule": {"mode": "explicit", "steps": [0, 4]}},
            "base",
            "residual",
            Explicit(mode="explicit", steps=[0, 4]),
        ),
    ],
)
def test_presets_stand_for_one_rule(plan: dict[str, Any], nodes: str, carry: str, schedule: Any) -> None:
    for order, coordinate in ((0, "step"), (2, "log-snr")):
        rule = Rule(nodes=nodes, schedule=schedule, carry=carry, order=order, coordinate=coordinate)
        assert read_plan({**plan, "order": order, "coordinate": coordinate}) == Rules(rules=[rule])
    assert read_plan(plan).rules[0].order == 0


def test_what_is_read_already_stays() -> None:
    rules = read_plan({"rules": [RULE], "text_once": False})
    assert read_plan(rules) is rules
    assert read_plan(rules.model_dump()) == rules
    preset = Recipe.model_validate({"plan": {"preset": "base-mask"}}).plan
    assert isinstance(preset, Preset)
    assert read_plan(preset) == preset.resolved()
