"""What `$name` stands for in the stages of a pipeline file, and what a recipe reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.load import Scope, load, references, resolve, stage_recipe
from asdm_cli.recipe.schema import referenced_paths
from asdm_cli.recipe.verbs import PruneRecipe

SCOPE = Scope({"model": "pocket", "steps": 4, "names": ["a", "b"]}, {"made": "runs/made-1"})
words = st.text(max_size=12)
data = st.recursive(
    words | st.integers() | st.none() | st.booleans(), lambda x: st.lists(x) | st.dictionaries(words, x)
)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("plain", "plain"),
        ("$model", "pocket"),
        ("$steps", 4),
        ("$names", ["a", "b"]),
        ("$made", "runs/made-1"),
        ("$made/students/base 4", "runs/made-1/students/base 4"),
        ("$model/unet", "pocket/unet"),
        ("$$model", "$model"),
        ("a $model", "a $model"),
        ("$gone", "$gone"),
        ("$steps/x", "$steps/x"),
        ("$", "$"),
    ],
)
def test_what_a_text_stands_for(text: str, meant: Any) -> None:
    assert SCOPE.value(text) == meant
    assert resolve({"a": [text]}, SCOPE) == {"a": [meant]}


@given(data)
def test_what_names_nothing_stays_as_it_is(data: Any) -> None:
    if not list(references(data)) and "$$" not in str(data):
        assert resolve(data, SCOPE) == data


def test_references_are_found_wherever_they_stand() -> None:
    found = list(references({"a": "$x", "b": [{"c": "$y/in ner"}, "$$no"], "d": 3, "e": "$!"}))
    assert found == [(("a",), "x", ""), (("b", 0, "c"), "y", "in ner"), (("e",), "!", "")]


def test_a_stage_is_its_verb_s_recipe() -> None:
    made = stage_recipe({"verb": "prune", "model": "$made", "remove": "base"}, SCOPE, "runs/x")
    assert made == PruneRecipe(verb="prune", model="runs/made-1", remove="base", out="runs/x")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("verb: prune\nmodel: a\nremove: base\nout: x", ["a"]),
        ("verb: assemble\ndonors: {a: p, b: q}\nlevels: [a, b]\nmid: a\nout: x", ["p", "q"]),
        ("verb: eval\nmodels: [{name: a, model: p}]\nprompts: q\nout: x", ["q", "p", "own", "own"]),
        (
            "verb: distill\nteacher: t\nstudents: [{name: a, model: p}]\ndata: {train: [d, e], held_out: h}\n"
            "steps: 9\nout: x",
            ["t", "p", "d", "e", "h"],
        ),
        (
            "verb: switch\nunets: {a: {model: p}, b: {model: q}}\nparts: [{unet: a}]\nclip: c\nout: x",
            ["pocket", "p", "q", "c", "own"],
        ),
        ("verb: bench\nmodels: [{name: a, random: sd15, expand: {donor: d}}]\nout: x", ["sd15", "d"]),
        ("verb: condconv-expand\nmodel: m\nfold: {prompts: p}\nout: x", ["m", "p"]),
    ],
)
def test_what_a_recipe_reads(text: str, read: list[str], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    assert sorted(referenced_paths(load(tmp_path / "r.yaml"))) == sorted(read)


@pytest.mark.parametrize(
    ("place", "right"), [("$taught", True), ("$taught/model", True), ("$taught/students/a", False)]
)
def test_a_student_alone_is_its_stage_s_model(place: str, right: bool, tmp_path: Path) -> None:
    taught = {"verb": "distill", "teacher": "pocket", "students": [{"name": "a", "model": "pocket"}], "steps": 3}
    pruned = {"verb": "prune", "model": place, "remove": "base"}
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps({"verb": "run", "stages": {"taught": taught, "pruned": pruned}, "out": "x"}))
    if right:
        assert load(file)
        return
    with pytest.raises(RecipeError, match="there is no such model; the stage writes"):
        load(file)
