"""What a right recipe becomes, what the command line changes in it, and that nothing else ever comes of a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.load import dump, load
from asdm_cli.recipe.reader import MAX_BYTES, Override, parse
from asdm_cli.recipe.verbs import VERBS, BenchRecipe, EvalRecipe, PruneRecipe

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
PRUNE = "verb: prune\nmodel: pocket\nremove: base\nout: runs/x\n"
BENCH = "verb: bench\nmodels:\n  - {name: a, model: pocket}\n  - {name: b, random: sd15}\nout: x\n"
Writer = Callable[[str | bytes], Path]


@pytest.fixture
def written(tmp_path: Path) -> Writer:
    """A function that writes a recipe file and returns its path."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_recipes_are_written_back_equal(path: Path, written: Writer) -> None:
    assert load(written(dump(load(path)))) == load(path)


def test_shipped_recipes_cover_every_verb() -> None:
    assert len(SHIPPED) >= 25
    assert {load(path).verb for path in SHIPPED} == set(VERBS)


def test_yaml_is_read_as_people_mean_it(written: Writer) -> None:
    text = "verb: eval\nmodels: [{name: no, model: &m 0x1}, {name: b, model: *m}]\nguidance: 2e0\nout: x\n"
    recipe = load(written(b"\xef\xbb\xbf" + text.encode()), "eval")
    assert isinstance(recipe, EvalRecipe)
    assert recipe.models[0].name == "no", "YAML 1.1 would have read false"
    assert recipe.models[0].model == recipe.models[1].model == "0x1"
    assert recipe.guidance == 2.0
    odd = PruneRecipe(verb="prune", model="1e-4", remove=["*.self", "no", "null"], out="07")
    assert load(written(dump(odd))) == odd
    with pytest.raises(ValueError, match="frozen"):
        odd.out = "elsewhere"  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {x: 1, y: {z: 2}}\nb: {<<: *a, x: 3}\nc: {x: 4, <<: *a}",
        "a: &a {x: 1}\nb: &b {x: 2, y: 3}\nc: {<<: [*a, *b]}\nd: {<<: [*b, *a], y: 4}",
        "a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: &c {<<: *b, z: 3}\nd: {<<: *c, x: 4, y: 5}",
        "a: &a {x: {<<: {y: 1}, z: 2}}\nb: {<<: *a}\nc: [{<<: *a, w: 3}]",
    ],
)
def test_mappings_are_merged_as_yaml_merges_them(text: str) -> None:
    assert parse(text, "recipe").data == yaml.safe_load(text)


def test_a_merged_value_stands_where_it_was_written() -> None:
    source = parse("a: &a {x: 1,\n  y: [2]}\nb: {<<: *a, x: 3}", "recipe")
    places = {key: (mark.line, mark.column) for key, mark in source.values.items()}
    assert (places["b", "x"], places["b", "y", 0]) == ((3, 16), (2, 7))


def test_verbs_that_do_not_fit(written: Writer) -> None:
    with pytest.raises(
        RecipeError, match=r"recipe.yaml:1:7: verb: this is a recipe for 'asdm prune', not for 'asdm bench'$"
    ):
        load(written(PRUNE), "bench")
    with pytest.raises(RecipeError) as caught:
        load(written(PRUNE.replace("prune", "prun").replace("remove", "removed")), "prune")
    assert [fault.key for fault in caught.value.faults] == ["remove", "verb", "removed"], "all at once"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "no such file"),
        (lambda path: path.mkdir(), "a directory, not a recipe$"),
        (lambda path: (path.mkdir(), (path / "recipe.yaml").touch()), r"did you mean '.*recipe\.yaml'"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.write_bytes(b"[" * MAX_BYTES), r"x.yaml:1:1: nested far more than 32 levels deep"),
        (lambda path: path.write_bytes(b"#" * (MAX_BYTES + 1)), "larger than 64 KiB"),
    ],
    ids=["missing", "directory", "run", "pipe", "deep", "large"],
)
def test_what_is_no_file_to_read(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "x.yaml")
    with pytest.raises(RecipeError, match=message):
        load(tmp_path / "x.yaml")


def test_overrides_are_yaml_and_later_ones_win(written: Writer) -> None:
    texts = ["steps=5", "guidance=1e1", "models.1.remove=[mid, up.0]", "images=false", "out=a b", "steps=7"]
    recipe = load(written(BENCH + "guidance: 0\n"), "bench", texts)
    assert isinstance(recipe, BenchRecipe)
    assert (recipe.steps, recipe.guidance, recipe.images, recipe.out) == (7, 10.0, False, "a b")
    assert (recipe.models[1].remove, recipe.models[0].name) == (["mid", "up.0"], "a")
    assert load(written(BENCH), "bench", [Override(("out",), "007", "--out")]).out == "007", "options are text"


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("steps=0", "steps: must be at least 1, got 0"),
        ("models.1.name=a", "models[1].name: 'a' is already entry 0 of the list (counted from 0)"),
        ("models.2.name=c", "models[2].name: the list has 2 entries, counted from 0; there is no '2'"),
        ("models.b.name=c", "models.b.name: the list has 2 entries, counted from 0; there is no 'b'"),
        ("models.0.modl=c", "models[0].modl: unknown key (did you mean 'model'?)"),
        ("out.folder=c", "out.folder: leads nowhere: what should hold 'folder' is a plain value"),
        ("size.x.y=3", "size: must be a whole number, got a mapping"),
        ("images=yes", "images: must be true or false, got the text 'yes'"),
        ("batches=[1, x]", "batches[1]: must be a whole number, got the text 'x'"),
        ("verb=prune", "verb: this is a recipe for 'asdm prune', not for 'asdm bench'"),
    ],
)
def test_faults_are_placed_at_the_option(written: Writer, override: str, fault: str) -> None:
    path = written(BENCH)
    with pytest.raises(RecipeError) as caught:
        load(path, "bench", [override])
    assert str(caught.value) == f"{path}: --set {fault}"
    with pytest.raises(RecipeError, match=r": --dtype dtype: must be one of .*did you mean 'float16'"):
        load(path, "bench", [Override(("dtype",), "flot16", "--dtype")])


@pytest.mark.parametrize(
    "text", ["steps", "=3", "models..name=x", ".a=1", "0.a=1", "steps=[1", "steps=*x", "a=\x07", "a=!x 1"]
)
def test_what_is_no_override(text: str) -> None:
    with pytest.raises(RecipeError, match="--set: "):
        Override.parse(text)


FUZZ = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = [path.read_text() for path in SHIPPED]
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
keys = st.sampled_from([key for recipe in VERBS.values() for key in recipe.model_fields])


def load_or_refuse(path: Path, verb: str | None = None, overrides: tuple[str, ...] = ()) -> None:
    """Loading gives a recipe or a RecipeError; nothing else, and no hang. What loaded survives dump and load."""
    try:
        recipe = load(path, verb, overrides)
    except RecipeError:
        return
    path.write_text(dump(recipe), encoding="utf-8")
    assert load(path) == recipe


@FUZZ
@given(data=st.data())
def test_texts_with_holes_and_noise(data: st.DataObject, tmp_path: Path) -> None:
    text = data.draw(st.sampled_from(TEXTS))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 20)))
    noise = data.draw(st.text(alphabet="ab01 \n\t:-,[]{}&*!|>'\"#%@`~?\\é\x00\ufeff", max_size=6))
    (tmp_path / "recipe.yaml").write_text(text[:start] + noise + text[end:], encoding="utf-8")
    load_or_refuse(tmp_path / "recipe.yaml")


@FUZZ
@given(verb=st.sampled_from(sorted(VERBS)), data=st.dictionaries(keys, values, max_size=8))
def test_right_keys_with_any_values(verb: str, data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**data, "verb": verb}), encoding="utf-8")
    load_or_refuse(tmp_path / "recipe.yaml", verb)


@FUZZ
@given(
    text=st.sampled_from(TEXTS),
    path_to=st.lists(keys | st.integers(0, 3).map(str), min_size=1, max_size=3),
    value=st.text(max_size=10),
)
def test_any_overrides(text: str, path_to: list[str], value: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    load_or_refuse(tmp_path / "recipe.yaml", None, (f"{'.'.join(path_to)}={value}",))
