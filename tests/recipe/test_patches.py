"""Schedules, plans and who serves what: what is taken, what stands for what, and every fault at its own place."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.messages import faults, one_of
from asdm_cli.recipe.patches import (
    KINDS,
    CachePlan,
    CacheRule,
    Explicit,
    InheritPlan,
    Schedule,
    Span,
    Uniform,
    read_plan,
    read_switching,
)
from asdm_cli.recipe.reader import parse
from asdm_cli.recipe.schema import Strict
from tests.turns import read_patches

RULE = {"nodes": "base", "schedule": {"mode": "uniform", "interval": 2}}


class Recipe(Strict):
    """A recipe that holds a plan and a schedule."""

    plan: InheritPlan | None = None
    """The plan."""
    it: Schedule | None = None
    """The schedule."""


MODES = (
    "one of 'uniform', 'early', 'late', 'center', 'quadratic', 'random', 'explicit', 'growing', 'threshold', "
    "'stability', 'calibrated'"
)
PRESETS = "one of 'last-block', 'deepcache', 'encoder-propagation', 'base-mask', 'zeus', 'spectrum', 'sada', 't-gate'"
RANGE = "must be a call or a range such as '5-9', '20-' or '0%-40%'"
WRONG: dict[str, list[str]] = {
    "it: {mode: unifrom, interval: 2}": [f"12: it.mode: must be {MODES}, got 'unifrom' (did you mean 'uniform'?)"],
    "it: {mode: 3}": [f"12: it.mode: must be {MODES}, got 3"],
    "it: {interval: 2}": [f"5: it.mode: must be given: {MODES}"],
    "it: uniform": ["5: it: must be a mapping of keys, got the text 'uniform'"],
    "it: {mode: late, interval: 2, powr: 2}": ["31: it.powr: unknown key (did you mean 'power'?)"],
    "it: {mode: center, interval: 2, center: 9, power: x, form: sign}": [
        "51: it.power: must be a number, got the text 'x'",
        "60: it.form: must be one of 'complex', 'signed', got 'sign' (did you mean 'signed'?)",
    ],
    "it: {mode: threshold, threshold: 0}": ["34: it.threshold: must be more than 0, got 0"],
    "it: {mode: explicit, steps: [7, 5-9, 7]}": [
        "38: it.steps[2]: '7' is already entry 0 of the list (counted from 0)"
    ],
    "it: {mode: explicit, steps: [1, 9-5, 2-3, 40%-200%, 5-40%]}": [
        "33: it.steps[1]: the range ends before it starts, got '9-5'",
        "43: it.steps[3]: a run ends at 100%, got '40%-200%'",
        f"53: it.steps[4]: {RANGE}, got '5-40%'",
    ],
    "plan: deepcash": [f"7: plan: must be {PRESETS}, got 'deepcash' (did you mean 'deepcache'?)"],
    "plan: 3": ["7: plan: must be a mapping of keys, got 3"],
    "plan: {}": ["7: plan.rules: must be given"],
    "plan: {preset: deepcash}": [f"16: plan.preset: must be {PRESETS}, got 'deepcash' (did you mean 'deepcache'?)"],
    "plan: {preset: deepcache, branch: -1, order: 3, intervall: 2}": [
        "35: plan.branch: must be at least 0, got -1",
        "46: plan.order: must be at most 2, got 3",
        "49: plan.intervall: unknown key (did you mean 'interval'?)",
    ],
    "plan: {preset: base-mask, interval: 2, branch: 1, schedule: {mode: uniform, interval: 3}}": [
        "48: plan.branch: goes with 'deepcache', and 'preset' is base-mask",
        "61: plan.schedule: either 'interval' or 'schedule', not both",
    ],
    "plan: {preset: base-mask, schedule: {mode: unifrom, interval: 2}}": [
        f"44: plan.schedule.mode: must be {MODES}, got 'unifrom' (did you mean 'uniform'?)"
    ],
    "plan: {rules: [{nodes: []}]}": [
        "16: plan.rules[0].schedule: must be given",
        "24: plan.rules[0].nodes: needs 1 or more entries",
    ],
    "plan: {rules: [{nodes: base, carry: residual}], text_once: true}": [
        "16: plan.rules[0].schedule: must be given",
        "30: plan.rules[0].carry: unknown key (did you mean 'cache'?)",
        "49: plan.text_once: unknown key (did you mean 'cache_text'?)",
    ],
    "plan: {rules: [{nodes: base, cach: residual, axis: snr, schedule: {mode: uniform, interval: 2}}]}": [
        "30: plan.rules[0].cach: unknown key (did you mean 'cache'?)",
        "52: plan.rules[0].axis: must be one of 'step', 'log-snr', 'angle', got 'snr' (did you mean 'log-snr'?)",
    ],
}


@pytest.mark.parametrize("text", WRONG)
def test_faults_of_a_recipe_with_their_places(text: str) -> None:
    source = parse(text, "r.yaml")
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(source.data)
    told = RecipeError("r.yaml", faults(caught.value, source, Recipe))
    assert str(told).splitlines() == [f"r.yaml:1:{each}" for each in WRONG[text]]


@pytest.mark.parametrize(
    "entry", ["7", "-5", "5-9-12", "5%-40", "a-b", "5 - 9", "1.5-2", "%-%", "40%", "٣-٥", "40%-40%", "100%-0%", "6-5"]
)
def test_what_is_no_range(entry: str) -> None:
    with pytest.raises(ValueError, match=r"must be a call or a range|ends before it starts"):
        Span.of(entry)


FIFTY = Explicit(mode="explicit", steps=["0%-8%", 5, 10, 15, 25, 35])


def every(interval: int) -> Uniform:
    return Uniform(mode="uniform", interval=interval)


@pytest.mark.parametrize(
    ("plan", "nodes", "cache", "schedule"),
    [
        ({"preset": "deepcache"}, "deepcache.0", "output", every(3)),
        ({"preset": "deepcache", "branch": 5, "interval": 5}, "deepcache.5", "output", every(5)),
        ({"preset": "encoder-propagation"}, "encoder", "output", FIFTY),
        ({"preset": "encoder-propagation", "interval": 4}, "encoder", "output", every(4)),
        ({"preset": "base-mask"}, "base", "residual", every(2)),
        ({"preset": "base-mask", "schedule": FIFTY.model_dump()}, "base", "residual", FIFTY),
    ],
)
def test_presets_stand_for_one_rule(plan: dict[str, Any], nodes: str, cache: Any, schedule: Any) -> None:
    for order, axis in ((0, "step"), (2, "log-snr")):
        rule = CacheRule(nodes=nodes, schedule=schedule, cache=cache, order=order, axis=axis)  # type: ignore[arg-type]
        assert read_plan({**plan, "order": order, "axis": axis}) == CachePlan(rules=[rule])
    assert read_plan(plan).rules[0].order is None
    assert read_plan("deepcache") == read_plan({"preset": "deepcache"})


A, B = {"unet": "a", "until": 400}, {"unet": "b"}
TURNS = {"kind": "unet-schedule", "unets": ["a", "b"], "parts": [A, B]}
OTHERS: dict[str, tuple[Any, Any, list[str]]] = {
    "another preset": (read_plan, {"preset": 3}, [f"preset: must be {PRESETS}, got 3"]),
    "an unknown key": (
        read_plan,
        {"rules": [{**RULE, "nodez": "mid"}]},
        ["rules[0].nodez: unknown key (did you mean 'nodes'?)"],
    ),
    "no plan": (read_plan, None, ["must be a mapping of keys, got null"]),
    "a list": (read_plan, [RULE], ["must be a mapping of keys, got a list"]),
    "more than eight rules": (
        read_plan,
        {"rules": [RULE] * 9},
        ["rules: must have at most 8 entries"],
    ),
    "an end too many": (
        read_switching,
        {"parts": [A]},
        ["parts[0].until: the last part goes to the end; leave it out, or say who comes after"],
    ),
    "rising timesteps": (
        read_switching,
        {"parts": [A, {"unet": "b", "until": 500}, B]},
        ["parts[1].until: timesteps fall from part to part; it was 400"],
    ),
    "before the beginning": (
        read_switching,
        {"by": "step", "parts": [{"unet": "a", "until": -1}, B]},
        ["parts[0].until: a step lies between 0 and inf"],
    ),
    "several at once": (
        read_switching,
        {"by": "step", "parts": [{"unet": "reuse"}, {"unet": "a", "until": 3}, {"unet": "b", "until": 2}]},
        [
            "parts[0].until: must be given: only the last part goes to the end",
            "parts[2].until: the last part goes to the end; leave it out, or say who comes after",
            "parts[2].until: steps rise from part to part; it was 3",
            "parts[0].unet: 'reuse' needs a prediction: begin with a UNet",
        ],
    ),
    "a UNet twice": (
        read_patches,
        [TURNS | {"unets": ["a", "b", "a"]}],
        ["patches[0].unets[2]: 'a' is already entry 0 of the list (counted from 0)"],
    ),
    "UNets that are not there": (
        read_patches,
        [TURNS | {"parts": [A, {"unet": "c"}], "unets": ["a", "b", "extrapolate"]}],
        [
            "patches[0].parts[1].unet: no UNet is called 'c'",
            "patches[0].unets[2]: 'extrapolate' is the null model's name; call the UNet something else",
        ],
    ),
    "a kind misspelt": (
        read_patches,
        [TURNS | {"kind": "unet-shedule"}],
        ["patches[0].kind: must be KINDS, got 'unet-shedule' (did you mean 'unet-schedule'?)"],
    ),
    "patches of several kinds": (
        read_patches,
        [{"unets": ["a"]}, 3, {"kind": "feature-cache", "rules": [], "unets": "a"}, {"kind": "deepcache-package"}],
        [
            "patches[0].kind: must be given: KINDS",
            "patches[1]: must be a mapping of keys, got 3",
            "patches[2].unets: unknown key (did you mean 'unet'?)",
            "patches[3].interval: must be given",
            "patches[3].steps: must be given",
        ],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_faults_of_what_stands_in_no_recipe_are_told_by_its_source(name: str) -> None:
    read, data, told = OTHERS[name]
    with pytest.raises(RecipeError) as caught:
        read(data, "asdm.json")
    known = one_of(list(KINDS))  # a plug-in, or another test, may have added one
    assert str(caught.value).splitlines() == [f"asdm.json: {each}".replace("KINDS", known) for each in told]
