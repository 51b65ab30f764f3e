"""A target becomes the plan that just meets it; what cannot be had is told with what can."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from asdm_cli.errors import RecipeError, RunError
from asdm_cli.recipe.messages import validated
from asdm_cli.recipe.verbs import InheritRecipe, Target
from asdm_cli.search.target import LEAST, Costs, Tried, bisect, chosen, meets, most_calls

CALLS = 20
COSTS = Costs(rest=1.0, step=0.0, full=1.0, reused={"output": 0.0, "last block": 0.5})
SETUP: Any = None


def tried(family: str, full: int, quality: float) -> Tried:
    return Tried(family, full, COSTS.speedup(family, CALLS, full), quality, SETUP)


def test_costs_add_up_to_images() -> None:
    assert COSTS.image("output", CALLS, 10) == 11
    assert COSTS.image("last block", CALLS, 10) == 16
    assert COSTS.speedup("output", CALLS, CALLS) == 1
    assert COSTS.speedup("output", CALLS, 6) == 3


@pytest.mark.parametrize("speedup", [1.01, 1.5, 2.0, 3.0, 7.0])
def test_as_many_calls_as_the_speed_up_allows(speedup: float) -> None:
    full = most_calls(COSTS, "output", CALLS, speedup)
    assert COSTS.speedup("output", CALLS, full) >= speedup > COSTS.speedup("output", CALLS, full + 1)
    assert most_calls(COSTS, "last block", CALLS, 3.0) == 0, "half of a call is always computed"


@pytest.mark.parametrize("psnr_db", range(11, 56, 4))
def test_as_few_calls_as_the_quality_allows(psnr_db: int) -> None:
    found: list[Tried] = []
    target = Target(psnr_db=float(psnr_db))

    def draw(full: int) -> Tried:
        found.append(tried("output", full, 3.0 * full))
        return found[-1]

    bisect(target, CALLS, draw)
    best = chosen(target, found, COSTS, CALLS)
    assert best.full == min(full for full in range(LEAST, CALLS) if 3.0 * full >= psnr_db + 0.5)
    assert len(found) <= 5


def test_where_it_is_late_one_plan_that_meets_the_target_is_enough() -> None:
    found: list[int] = []

    def draw(full: int) -> Tried:
        found.append(full)
        return tried("output", full, 3.0 * full)

    bisect(Target(psnr_db=40.0), CALLS, draw, late=lambda: True)
    assert 3.0 * found[-1] >= 40.5
    assert all(3.0 * full < 40.5 for full in found[:-1]), "and nothing after it"


def test_of_several_families_the_nearest_at_a_speed_and_the_fastest_at_a_quality() -> None:
    some = [tried("output", 10, 40.0), tried("last block", 4, 44.0), tried("output", 12, 46.0)]
    assert chosen(Target(speedup=1.5), some, COSTS, CALLS) == some[2]
    assert chosen(Target(psnr_db=39.0), some, COSTS, CALLS) == some[0]
    assert chosen(Target(psnr_db=43.0), some, COSTS, CALLS) == some[2], "of two as fast the nearer"
    far = [replace(each, quality=1 / each.quality) for each in some]
    assert chosen(Target(perceptual=0.03), far, COSTS, CALLS).quality <= 0.03
    assert chosen(Target(speedup=1.5), some[:2], COSTS, CALLS) == some[1]


def test_a_target_is_met_with_a_margin_where_it_can_be() -> None:
    assert [meets(Target(psnr_db=40.0), quality) for quality in (40.2, 40.6)] == [False, True]
    assert [meets(Target(perceptual=0.05), distance) for distance in (0.049, 0.044)] == [False, True]
    near = [tried("output", 10, 40.2)]
    assert chosen(Target(psnr_db=40.0), near, COSTS, CALLS) == near[0], "rather than nothing"


def test_what_cannot_be_had_is_told_with_what_can() -> None:
    with pytest.raises(RunError, match=r"30 times as fast cannot be had .* with 2 of 20 it is 7.00 times"):
        chosen(Target(speedup=30.0), [], COSTS, CALLS)
    with pytest.raises(RunError, match=r"60 dB cannot be had .* nearest is 46 at 1\.\d\d times the speed \(output, 12"):
        chosen(Target(psnr_db=60.0), [tried("output", 12, 46.0), tried("output", 10, 40.0)], COSTS, CALLS)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"target": "2x", "plan": "last-block"}, "target: finds the plan"),
        ({"target": "2x", "patches": [{"kind": "guidance-schedule"}]}, "target: finds a plan alone"),
        ({"target": "twice"}, "target: must be"),
        ({"target": {"speedup": 2.0, "psnr_db": 30.0}}, "target: must be one of"),
        ({"target": "0.5x"}, "target: must be more than 1"),
        ({"target": "2x", "measure": False}, "target: is only there to be measured"),
        ({"plan": "last-block", "minutes": 3.0}, "minutes: goes with 'target'"),
        ({"target": {"perceptual": 0.1}}, "metrics: must have 'perceptual'"),
        ({"target": "35dB", "metrics": ["kid"]}, "metrics: must have 'psnr'"),
    ],
)
def test_targets_that_are_none_are_told_at_their_place(given: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        validated(InheritRecipe, {"verb": "inherit", "model": "pocket", "out": "x", **given}, "r.yaml")


@pytest.mark.parametrize(
    ("text", "key", "value"), [("2x", "speedup", 2.0), ("1.5x", "speedup", 1.5), ("35dB", "psnr_db", 35.0)]
)
def test_targets_in_short(text: str, key: str, value: float) -> None:
    recipe = InheritRecipe.model_validate({"verb": "inherit", "model": "pocket", "out": "x", "target": text})
    assert recipe.target == Target(**{key: value})
