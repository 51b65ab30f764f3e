"""Models in a recipe's place: what they say, how they are called, and what is answered where they say too little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.load import load
from asdm_cli.recipe.reader import Override
from asdm_cli.recipe.typed import is_recipe, named, typed

SAID: dict[tuple[str, ...], dict[str, Any]] = {
    ("prune", "models/mine"): {"model": "models/mine", "remove": ["base"], "out": "runs/prune-mine-base"},
    ("inherit", "org/name"): {"model": "org/name", "measure": False, "out": "runs/inherit-name"},
    ("bench", "pocket", "runs/base/model"): {"out": "runs/bench-pocket-base"},
    ("eval", "a/x.safetensors"): {"out": "runs/eval-x"},
}


@pytest.mark.parametrize("words", SAID, ids=" ".join)
def test_models_are_a_recipe(words: tuple[str, ...]) -> None:
    verb, *models = words
    changes = [Override(("remove",), ["base"], "--remove")] if verb == "prune" else []
    recipe = load(typed(verb, models, changes), verb, changes).model_dump()
    assert SAID[words].items() <= recipe.items()
    if "models" in recipe:
        assert [each["model"] for each in recipe["models"]] == models


def test_names_tell_models_apart() -> None:
    texts = [
        "pocket",
        "runs/base/model",
        "x/base",
        "cache/models--org--name",
        "org/name@v2",
        "C:\\sd\\v1-5.safetensors",
        "/",
    ]
    assert list(named(texts)) == ["pocket", "base", "base-2", "name", "name-2", "v1-5", "model"]
    assert list(named(texts).values()) == texts
    assert named(["base-2", "x/base", "base"]) == {"base-2": "base-2", "base": "x/base", "base-3": "base"}
    assert list(map(len, named([f"{letter}/{'x' * 70}" for letter in "ab"]))) == [61, 63]


def test_what_is_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("verb: prune")
    (tmp_path / "weights.safetensors").write_text("")
    assert [is_recipe(str(each)) for each in ("no.yaml", "no.yml", tmp_path / "plain")] == [True] * 3
    assert not any(is_recipe(str(each)) for each in ("no", "org/name", tmp_path, tmp_path / "weights.safetensors"))


@pytest.mark.parametrize(
    ("verb", "models", "said"),
    [
        ("prune", ["a", "b"], "asdm prune: takes one model, got 2"),
        ("switch", ["a"], "takes a recipe's FILE; `asdm init switch --model a` writes one to start from"),
        ("bench", ["a", "b.yaml"], "takes one recipe, or models"),
        ("prune", ["a"], "--remove base"),
    ],
)
def test_too_little_or_too_much(verb: str, models: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(typed(verb, models), verb)
    assert said in str(caught.value)
