"""Who serves what, as it is written: what is refused, where, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.patches import described, read_switch, read_switching

A, B = {"unet": "a", "until": 400}, {"unet": "b"}
WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({"parts": []}, ["it: parts: needs 1 or more entries"]),
    "begins with nothing": (
        {"parts": [{"unet": "reuse", "until": 400}, B]},
        ["it: parts[0].unet: 'reuse' needs a prediction: begin with a UNet"],
    ),
    "no end": (
        {"parts": [{"unet": "a"}, {"unet": "extrapolate"}, B]},
        [f"it: parts[{index}].until: must be given: only the last part goes to the end" for index in (0, 1)],
    ),
    "an end too many": (
        {"parts": [A]},
        ["it: parts[0].until: the last part goes to the end; leave it out, or say who comes after"],
    ),
    "rising timesteps": (
        {"parts": [A, {"unet": "b", "until": 500}, B]},
        ["it: parts[1].until: timesteps fall from part to part; it was 400"],
    ),
    "falling steps": (
        {"by": "step", "parts": [{"unet": "a", "until": 4}, {"unet": "b", "until": 3}, B]},
        ["it: parts[1].until: steps rise from part to part; it was 4"],
    ),
    "falling log-snr": (
        {"by": "log-snr", "parts": [{"unet": "a", "until": 0}, {"unet": "b", "until": -1}, B]},
        ["it: parts[1].until: log-snrs rise from part to part; it was 0"],
    ),
    "a share of more than all": (
        {"by": "fraction", "parts": [{"unet": "a", "until": 1.5}, B]},
        ["it: parts[0].until: a fraction lies between 0 and 1"],
    ),
    "before the beginning": (
        {"by": "step", "parts": [{"unet": "a", "until": -1}, B]},
        ["it: parts[0].until: a step lies between 0 and inf"],
    ),
    "by what": (
        {"by": "sigma", "parts": [A, B]},
        ["it: by: must be one of 'timestep', 'log-snr', 'fraction', 'step', got 'sigma'"],
    ),
    "several": (
        {"by": "step", "parts": [{"unet": "reuse"}, {"unet": "a", "until": 3}, {"unet": "b", "until": 2}]},
        [
            "it: parts[0].until: must be given: only the last part goes to the end",
            "it: parts[2].until: the last part goes to the end; leave it out, or say who comes after",
            "it: parts[2].until: steps rise from part to part; it was 3",
            "it: parts[0].unet: 'reuse' needs a prediction: begin with a UNet",
        ],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_at_its_place(name: str) -> None:
    rules, expected = WRONG[name]
    with pytest.raises(RecipeError) as caught:
        read_switching(rules, "it")
    assert str(caught.value).splitlines() == expected


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"parts": [B]}, "b"),
        ({"parts": [A, B]}, "a until timestep 400, then b"),
        ({"by": "log-snr", "parts": [{"unet": "a", "until": -1.5}, B]}, "a until log-snr -1.5, then b"),
        (
            {"by": "fraction", "parts": [{"unet": "a", "until": 0}, {"unet": "reuse", "until": 1}, B]},
            "a until fraction 0, then reuse until fraction 1, then b",
        ),
        ({"by": "step", "parts": [{**A, "until": 3}, {"unet": "b", "until": 3}, B]}, "a until step 3, then b until"),
    ],
)
def test_what_is_right_is_told_in_words(rules: dict[str, Any], told: str) -> None:
    assert described(read_switching(rules, "it")).startswith(told)


def test_a_model_names_its_unets() -> None:
    held = {"by": "step", "parts": [{"unet": "a", "until": 3}, {"unet": "c"}], "unets": ["a", "b", "a", "extrapolate"]}
    with pytest.raises(RecipeError) as caught:
        read_switch(held, "it")
    assert str(caught.value) == "it: unets[2]: 'a' is already entry 0 of the list (counted from 0)"
    held["unets"] = ["a", "b", "extrapolate"]
    with pytest.raises(RecipeError) as caught:
        read_switch({**held, "plans": {"d": {"rules": []}}}, "it")
    assert str(caught.value).splitlines() == [
        "it: parts[1].unet: no UNet is called 'c'",
        "it: unets[2]: 'extrapolate' is the null model's name; call the UNet something else",
        "it: plans.d: no UNet is called 'd'",
    ]
    held |= {"parts": [{"unet": "a", "until": 3}, {"unet": "b"}], "unets": ["a", "b"]}
    assert read_switch(held, "it").rules == read_switching({"by": "step", "parts": held["parts"]}, "it")
