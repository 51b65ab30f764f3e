"""Schedules in recipes: what is taken, and every fault at its own place."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from asdm_cli.recipe.patches import MODES, Center, Explicit, Random, Schedule, Span, Threshold, Uniform
from asdm_cli.recipe.schema import Strict
from asdm_cli.recipe.source import parse
from asdm_cli.recipe.words import faults


class Plan(Strict):
    """A recipe that holds a schedule."""

    schedule: Schedule
    """The schedule."""


def told(text: str) -> list[str]:
    """The faults of a recipe whose `schedule` is this flow mapping, as a person reads them."""
    source = parse(f"schedule: {text}\n", "r.yaml")
    with pytest.raises(ValidationError) as caught:
        Plan.model_validate(source.data)
    return [fault.at("r.yaml") for fault in faults(caught.value, source, Plan)]


def taken(text: str) -> object:
    return Plan.model_validate(parse(f"schedule: {text}\n", "r.yaml").data).schedule


ALL = ", ".join(f"'{mode}'" for mode in MODES)
WRONG = {
    "{mode: unifrom, interval: 2}": [
        f"r.yaml:1:18: schedule.mode: must be one of {ALL}, got 'unifrom' (did you mean 'uniform'?)"
    ],
    "{mode: 3}": [f"r.yaml:1:18: schedule.mode: must be one of {ALL}, got 3"],
    "{interval: 2}": [f"r.yaml:1:11: schedule.mode: must be given: one of {ALL}"],
    "uniform": ["r.yaml:1:11: schedule: must be a mapping of keys, got the text 'uniform'"],
    "{mode: uniform, interval: 0}": ["r.yaml:1:37: schedule.interval: must be at least 1, got 0"],
    "{mode: uniform, interval: 2.5}": ["r.yaml:1:37: schedule.interval: must be a whole number, got 2.5"],
    "{mode: uniform}": ["r.yaml:1:11: schedule.interval: must be given"],
    "{mode: uniform, interval: 2, first: -1}": ["r.yaml:1:47: schedule.first: must be at least 0, got -1"],
    "{mode: early, interval: 2, power: 0.9}": ["r.yaml:1:45: schedule.power: must be at least 1, got 0.9"],
    "{mode: late, interval: 2, power: 11}": ["r.yaml:1:44: schedule.power: must be at most 10, got 11"],
    "{mode: late, interval: 2, powr: 2}": ["r.yaml:1:37: schedule.powr: unknown key (did you mean 'power'?)"],
    "{mode: random, interval: 2, seed: -1}": ["r.yaml:1:45: schedule.seed: must be at least 0, got -1"],
    "{mode: center, interval: 2, center: 9, power: x, form: sign}": [
        "r.yaml:1:57: schedule.power: must be a number, got the text 'x'",
        "r.yaml:1:66: schedule.form: must be one of 'complex', 'signed', got 'sign' (did you mean 'signed'?)",
    ],
    "{mode: center, interval: 2, center: -1}": ["r.yaml:1:47: schedule.center: must be at least 0, got -1"],
    "{mode: threshold, threshold: 0}": ["r.yaml:1:40: schedule.threshold: must be more than 0, got 0"],
    "{mode: threshold, threshold: 0.1, longest: 0}": ["r.yaml:1:54: schedule.longest: must be at least 1, got 0"],
    "{mode: explicit, steps: []}": ["r.yaml:1:35: schedule.steps: needs 1 or more entries"],
    "{mode: explicit, steps: [0, -2]}": ["r.yaml:1:39: schedule.steps[1]: must be at least 0, got -2"],
    "{mode: explicit, steps: [7, 5-9, 7]}": [
        "r.yaml:1:44: schedule.steps[2]: '7' is already entry 0 of the list (counted from 0)"
    ],
    "{mode: explicit, steps: [1, 9-5, 2-3, 40%-200%]}": [
        "r.yaml:1:39: schedule.steps[1]: the range ends before it starts, got '9-5'",
        "r.yaml:1:49: schedule.steps[3]: a run ends at 100%, got '40%-200%'",
    ],
}


@pytest.mark.parametrize("text", WRONG)
def test_faults_with_their_places(text: str) -> None:
    assert told(text) == WRONG[text]


@pytest.mark.parametrize("entry", ["7", "-5", "5-9-12", "5-40%", "5%-40", "a-b", "5 - 9", "1.5-2", "%-%", "40%", "٣-٥"])
def test_malformed_ranges(entry: str) -> None:
    wanted = "must be a call or a range such as '5-9', '20-' or '0%-40%'"
    assert told(f'{{mode: explicit, steps: [0, "{entry}"]}}') == [
        f"r.yaml:1:39: schedule.steps[1]: {wanted}, got '{entry}'"
    ]


@pytest.mark.parametrize("entry", ["40%-40%", "100%-0%", "6-5"])
def test_ranges_without_calls(entry: str) -> None:
    with pytest.raises(ValueError, match="ends before it starts"):
        Span.of(entry)


def test_what_is_taken() -> None:
    assert taken("{mode: uniform, interval: 3}") == Uniform(mode="uniform", interval=3, first=0)
    assert taken("{mode: center, interval: 3, center: 15}") == Center(
        mode="center", interval=3, center=15.0, power=1.4, form="complex", first=0
    )
    assert taken("{mode: random, interval: 3, first: 2}") == Random(mode="random", interval=3, seed=0, first=2)
    assert taken("{mode: threshold, threshold: 5e-2}") == Threshold(mode="threshold", threshold=0.05, longest=8)
    steps: list[int | str] = [7, "5-9", "20-", "0%-33.3%", "60%-"]
    assert taken("{mode: explicit, steps: [7, 5-9, 20-, 0%-33.3%, 60%-]}") == Explicit(mode="explicit", steps=steps)


def test_a_schedule_made_in_code_is_taken_too() -> None:
    made = Uniform(mode="uniform", interval=2)
    assert Plan(schedule=made).schedule == made


def test_the_union_has_every_mode_under_its_name() -> None:
    union = get_args(Schedule)[0]
    members: list[type[Strict]] = [get_args(member)[0] for member in get_args(union)]
    assert members == list(MODES.values())
    assert [get_args(member.model_fields["mode"].annotation) for member in members] == [(mode,) for mode in MODES]


def test_written_back_with_the_mode_first() -> None:
    data = Plan(schedule=Center(mode="center", interval=2)).model_dump(mode="json", exclude_none=True)
    assert next(iter(data["schedule"])) == "mode"
    assert Plan.model_validate(data).schedule == Center(mode="center", interval=2)


def test_editors_learn_every_key() -> None:
    schema: dict[str, Any] = TypeAdapter(Schedule).json_schema()
    assert len(schema["oneOf"]) == len(schema["$defs"]) == len(MODES)
    keys = [(name, key, leaf) for name, of in schema["$defs"].items() for key, leaf in of["properties"].items()]
    assert len(keys) >= 3 * len(MODES)
    assert not [(name, key) for name, key, leaf in keys if not leaf.get("description", "").endswith((".", "..."))]
