"""A target becomes the plan that just meets it; what cannot be had is told with what can."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from asdm_cli.compare.pareto import FEWER
from asdm_cli.errors import RecipeError, RunError
from asdm_cli.recipe.messages import validated
from asdm_cli.recipe.verbs import InheritRecipe, Target
from asdm_cli.search.target import (
    LEAST,
    OUTPUT,
    TIMED,
    TRIES,
    Costs,
    Search,
    Tried,
    best_few,
    between,
    bisect,
    meets,
    most_calls,
    ranked,
    some,
)

CALLS = 20
COSTS = Costs(CALLS, rest=1.0, step=0.0, full=1.0, reused={OUTPUT: 0.0, "last block": 0.5})
STEPPING = replace(COSTS, step=0.2)


@dataclass(frozen=True)
class Drawn:
    """As much of a set-up as a search looks at."""

    steps: int = CALLS
    kind: str = ""
    strength: float | None = None

    @property
    def calls(self) -> int:
        return self.steps


class Imagined(Search):
    """Draws nothing: what is left of the plain model's steps is an error, and of a step's a quarter of it where it is
    forecast; what is timed takes `slower` times as long as it was added up to."""

    slower: dict[str, float]

    def _drawn(self, family: str, steps: int, full: int) -> Tried:
        calls, full = steps, steps if family == FEWER else full
        drawn: Any = Drawn(steps)
        return Tried(family, full, self.known.speedup(family, calls, full), near(steps, full), drawn)

    def _timed(self, those: Sequence[Tried]) -> list[Tried]:
        assert len(those) <= TIMED
        timed = [replace(each, timed=each.speedup / self.slower.get(each.family, 1.0)) for each in those]
        self.tried = [each for each in self.tried if each not in those] + timed
        return timed


def near(steps: int, full: int) -> float:
    return -20 * math.log10((1 / steps - 1 / CALLS) + (1 / full - 1 / steps) / 4 + 1e-6)


def imagined(target: Target, known: Costs = COSTS, **slower: float) -> Imagined:
    unused: Any = None
    plain: Any = Drawn()
    made = Imagined(unused, plain, target, unused, unused, unused, unused, known, lambda one: one.quality)
    made.slower = slower
    return made


def found(search: Search) -> Tried:
    search.plans(OUTPUT)
    search.fewer()
    search.between()
    return search.best()


def tried(family: str, full: int, quality: float) -> Tried:
    drawn: Any = Drawn(full if family == FEWER else CALLS)
    return Tried(family, full, COSTS.speedup(family, drawn.calls, full), quality, drawn)


def test_costs_add_up_to_images() -> None:
    assert COSTS.image(OUTPUT, CALLS, 10) == 11
    assert COSTS.image("last block", CALLS, 10) == 16
    assert COSTS.speedup(OUTPUT, CALLS, CALLS) == 1
    assert COSTS.speedup(OUTPUT, CALLS, 6) == 3
    assert COSTS.speedup(FEWER, 6, 6) == 3
    assert STEPPING.speedup(FEWER, 6, 6) > STEPPING.speedup(OUTPUT, CALLS, 6), "steps cost something themselves"


@pytest.mark.parametrize("speedup", [1.01, 1.5, 2.0, 3.0, 7.0])
def test_as_many_calls_as_the_speed_up_allows(speedup: float) -> None:
    """So a budget of time is one of calls: what a plan of one rule takes is told by nothing else."""
    full = most_calls(COSTS, OUTPUT, CALLS, speedup)
    assert COSTS.speedup(OUTPUT, CALLS, full) >= speedup > COSTS.speedup(OUTPUT, CALLS, full + 1)
    assert most_calls(COSTS, "last block", CALLS, 3.0) == 0, "half of a call is always computed"


@pytest.mark.parametrize("psnr_db", range(11, 56, 4))
def test_as_few_calls_as_the_quality_allows(psnr_db: int) -> None:
    drawn: list[Tried] = []
    target = Target(psnr_db=float(psnr_db))

    def draw(full: int) -> Tried:
        drawn.append(tried(OUTPUT, full, 3.0 * full))
        return drawn[-1]

    bisect(target, LEAST, CALLS - 1, draw)
    (best,) = best_few(target, drawn)
    assert best.full == min(full for full in range(LEAST, CALLS) if 3.0 * full >= psnr_db + 0.5)
    assert len(drawn) <= 5


def test_where_it_is_late_one_plan_that_meets_the_target_is_enough() -> None:
    drawn: list[int] = []

    def draw(full: int) -> Tried:
        drawn.append(full)
        return tried(OUTPUT, full, 3.0 * full)

    bisect(Target(psnr_db=40.0), LEAST, CALLS - 1, draw, late=lambda: True)
    assert 3.0 * drawn[-1] >= 40.5
    assert all(3.0 * full < 40.5 for full in drawn[:-1]), "and nothing after it"


WANTED = [
    *(Target(speedup=speedup) for speedup in (1.2, 1.5, 2.0, 3.0, 4.0)),
    *(Target(psnr_db=db) for db in (22.0, 26.0, 30.0, 34.0)),
]


@pytest.mark.parametrize("step", [0.0, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("target", WANTED, ids=lambda target: target.words)
def test_the_best_of_all_steps_and_calls_is_found_but_for_a_decibel(target: Target, step: float) -> None:
    known = replace(COSTS, step=step)
    every = imagined(target, known)
    for steps in range(LEAST, CALLS + 1):
        for full in range(LEAST, steps + 1 if steps < CALLS else steps):
            every.draw(FEWER if full == steps else OUTPUT, steps, full)
    fast = [each for each in every.tried if each.speedup >= (target.speedup or 0)]
    best = ranked(target, [each for each in fast if meets(target, each.quality)])[0]
    mine = found(search := imagined(target, known))
    assert len(search.tried) <= 16, "which tries few"
    if target.speedup:
        assert mine.speedup >= target.speedup
        assert mine.quality >= best.quality - 1
    else:
        assert meets(target, mine.quality)
        assert mine.speedup >= 0.95 * best.speedup


def test_fewer_steps_are_what_is_found_where_a_plan_saves_nothing() -> None:
    alike = replace(COSTS, step=1.0, full=0.01)
    mine = found(search := imagined(Target(speedup=2.0), alike))
    assert mine.family == FEWER
    assert [each.family for each in search.tried] == [FEWER], "no plan is as fast"


def test_what_turns_out_slower_than_it_was_added_up_to_is_exchanged_for_less() -> None:
    target = Target(speedup=2.0)
    mine = found(search := imagined(target, output=1.1))
    assert mine.family == OUTPUT
    assert mine.timed is not None
    assert mine.timed >= 2.0
    assert mine.speedup > 2.0 * 1.1
    assert len([each for each in search.tried if each.family == OUTPUT]) <= 1 + TRIES
    assert found(search := imagined(target, output=3.0)).family == FEWER, "rather than a plan of hardly any calls"
    assert (beside := search.beside()) is None or beside.faster >= 2.0, "what is shown beside it is as fast"


def test_what_is_not_near_enough_on_the_pictures_that_are_reported_is_exchanged_for_more() -> None:
    first = found(imagined(target := Target(psnr_db=30.0)))
    search = imagined(target)
    search.held = lambda one: one.quality - 2.0
    mine = found(search)
    assert mine.held is not None
    assert mine.held >= 30.0
    assert (mine.family, first.family) == (OUTPUT, OUTPUT)
    assert first.full < mine.full <= first.full + TRIES
    held = [each for each in search.tried if each.held is not None]
    assert [each.held is not None and each.held >= 30.0 for each in held] == [False] * (len(held) - 1) + [True]
    search = imagined(target)
    search.held = lambda one: one.quality - 7.0
    mine = found(search)
    assert mine.nearness >= 30.0
    assert len([each for each in search.tried if each.held is not None]) <= 3, "by what was drawn before"
    drawn = [(each.family, each.setup.steps, each.full) for each in search.tried]
    assert len(set(drawn)) == len(drawn)
    search = imagined(target)
    search.held = lambda one: one.quality / 2
    assert (mine := found(search)).held == max(each.held or 0 for each in search.tried), "the nearest of what there is"
    assert mine.row("psnr")["measured PSNR dB"] == round(mine.quality / 2, 2)


def test_where_the_pictures_that_are_reported_are_easier_less_is_enough() -> None:
    first = found(imagined(target := Target(psnr_db=30.0)))
    search = imagined(target)
    search.held = lambda one: one.quality + 6.0
    mine = found(search)
    assert mine.held is not None
    assert mine.held >= 30.0
    assert mine.quality < 30.0 <= first.quality
    assert mine.faster > first.faster
    faster = [each for each in search.tried if each.faster > mine.faster]
    assert all(each.quality + 6.0 < 30.5 for each in faster), "of what was tried nothing that is near enough is faster"
    unlike = imagined(target)
    unlike.held = lambda one: one.quality + (6.0 if one.quality >= 30.0 else 0.0)
    mine = found(unlike)
    assert mine.held is not None
    assert mine.held >= 30.0, "what only seemed near enough is not taken"


def test_of_what_is_fast_enough_the_pictures_that_are_reported_tell_the_nearest() -> None:
    for gain, family in ((0.0, OUTPUT), (9.0, "last block")):
        search = imagined(Target(speedup=1.5))
        search.tried = [tried(OUTPUT, 12, 46.0), tried("last block", 4, 44.0), tried(FEWER, 15, 45.0)]
        search.held = lambda one, gain=gain: one.quality + (gain if one.family == "last block" else 0.0)  # type: ignore[misc]
        mine = search.best()
        assert mine.family == family
        assert [each.faster >= 1.5 for each in search.tried if each.held is not None] == [True] * 2, "no slow one"


def test_beside_fewer_steps_stands_the_best_plan_that_is_fast_enough() -> None:
    search = imagined(Target(speedup=1.5))
    slow, fast = tried(OUTPUT, 12, 44.0), tried(OUTPUT, 8, 40.0)
    search.tried = [replace(slow, timed=1.4), fast, tried(FEWER, 13, 46.0)]
    assert search.beside() == fast
    search.tried = [replace(slow, timed=1.4), tried(FEWER, 13, 46.0)]
    assert search.beside() is None


def test_numbers_lie_evenly_between() -> None:
    assert [some(range(*ends)) for ends in ((4, 4), (4, 6), (4, 13))] == [[], [4, 5], [7, 10]]
    assert between(5, 40) == [20, 10]
    assert between(19, 20) == between(20, 20) == []
    assert between(18, 20) == [19]


def test_of_several_families_the_nearest_at_a_speed_and_the_fastest_at_a_quality() -> None:
    some = [tried(OUTPUT, 10, 40.0), tried("last block", 4, 44.0), tried(OUTPUT, 12, 46.0)]
    assert best_few(Target(speedup=1.5), some) == [some[2], some[1]]
    assert best_few(Target(psnr_db=39.0), some) == [some[0], some[1]]
    assert best_few(Target(psnr_db=43.0), some) == [some[2], some[1]], "of two as fast the nearer"
    far = [replace(each, quality=1 / each.quality) for each in some]
    assert best_few(Target(perceptual=0.03), far)[0].quality <= 0.03
    assert best_few(Target(speedup=1.5), some[:2]) == [some[1], some[0]]


def test_a_target_is_met_with_a_margin_where_it_can_be() -> None:
    assert [meets(Target(psnr_db=40.0), quality) for quality in (40.2, 40.6)] == [False, True]
    assert [meets(Target(perceptual=0.05), distance) for distance in (0.049, 0.044)] == [False, True]
    one = [tried(OUTPUT, 10, 40.2)]
    assert best_few(Target(psnr_db=40.0), one) == one, "rather than nothing"


def test_what_cannot_be_had_is_told_with_what_can() -> None:
    with pytest.raises(RunError, match=r"60 dB cannot be had .* nearest is 46 at 1\.\d\d times the speed \(output, 12"):
        best_few(Target(psnr_db=60.0), [tried(OUTPUT, 12, 46.0), tried(OUTPUT, 10, 40.0)])


def test_a_row_has_what_was_predicted_and_what_was_timed() -> None:
    one = replace(tried(OUTPUT, 10, 40.0), timed=1.8)
    row = one.row("psnr")
    assert (row["predicted speed-up"], row["timed speed-up"], row["predicted PSNR dB"]) == (1.91, 1.8, 40.0)
    assert tried(FEWER, 10, 0.03).row("perceptual")["plan"] == "none"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"target": "2x", "plan": "last-block"}, "target: finds the plan"),
        ({"target": "2x", "patches": [{"kind": "guidance-schedule"}]}, "target: finds a plan alone"),
        ({"target": "twice"}, "target: write 2x for twice as fast, or 35dB"),
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
