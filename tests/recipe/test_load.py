"""What a right recipe becomes, and what happens around the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.load import dump, load
from asdm_cli.recipe.source import MAX_BYTES
from asdm_cli.recipe.verbs import VERBS, BenchRecipe, EvalRecipe, PruneRecipe

SHIPPED = Path(__file__).parents[2] / "recipes"
PRUNE = "verb: prune\nmodel: pocket\nremove: base\nout: runs/x\n"


Writer = Callable[[str | bytes], Path]


@pytest.fixture
def written(tmp_path: Path) -> Writer:
    """A function that writes a recipe file and returns its path."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_shipped_recipes_load_and_cover_every_verb() -> None:
    files = sorted(SHIPPED.rglob("*.yaml"))
    assert len(files) == len([path for path in SHIPPED.rglob("*") if path.is_file()]) >= 6
    assert {load(path).verb for path in files} == set(VERBS)


def test_shipped_recipes_start_with_how_to_run_them() -> None:
    files = sorted(SHIPPED.rglob("*.yaml"))
    assert files
    for path in files:
        command = f"# asdm {load(path).verb} recipes/{path.relative_to(SHIPPED)}"
        assert command in path.read_text().splitlines()[:3]


def test_defaults_and_values(written: Writer) -> None:
    recipe = load(written("verb: eval\nmodels: [{name: no, model: 0x1}]\nguidance: 2e0\nout: x\n"), "eval")
    assert isinstance(recipe, EvalRecipe)
    assert recipe.models[0].name == "no", "YAML 1.1 would have read false"
    assert recipe.models[0].model == "0x1"
    assert recipe.guidance == 2.0
    assert recipe.metrics == ["kid", "clip_score"]


def test_dump_is_read_back_equal(written: Writer) -> None:
    recipe = PruneRecipe(verb="prune", model="1e-4", remove=["*.self", "no", "null"], out="07")
    assert load(written(dump(recipe))) == recipe


@pytest.mark.parametrize("path", sorted(SHIPPED.rglob("*.yaml")), ids=lambda path: path.name)
def test_dump_of_shipped_recipes_is_read_back_equal(path: Path, written: Writer) -> None:
    assert load(written(dump(load(path)))) == load(path)


def test_recipes_are_frozen(written: Writer) -> None:
    recipe = load(written(PRUNE))
    with pytest.raises(ValueError, match="frozen"):
        recipe.out = "elsewhere"  # type: ignore[attr-defined]


def test_byte_order_mark_is_no_fault(written: Writer) -> None:
    assert isinstance(load(written(b"\xef\xbb\xbf" + PRUNE.encode())), PruneRecipe)


def test_aliases_are_read(written: Writer) -> None:
    text = "verb: bench\nmodels:\n  - {name: a, random: sd15, remove: &r [mid]}\n"
    recipe = load(written(text + "  - {name: b, random: sd15, remove: *r}\nout: x\n"))
    assert isinstance(recipe, BenchRecipe)
    assert recipe.models[0].remove == recipe.models[1].remove == ["mid"]


def test_recipe_of_another_verb(written: Writer) -> None:
    with pytest.raises(
        RecipeError, match=r"recipe.yaml:1:7: verb: this is a recipe for 'asdm prune', not for 'asdm bench'$"
    ):
        load(written(PRUNE), "bench")


def test_misspelt_verb_under_a_typed_one_hides_no_other_fault(written: Writer) -> None:
    with pytest.raises(RecipeError) as caught:
        load(written(PRUNE.replace("prune", "prun").replace("remove", "removed")), "prune")
    assert [fault.key for fault in caught.value.faults] == ["remove", "verb", "removed"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "no such file"),
        (lambda path: path.mkdir(), "a directory, not a recipe"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.write_bytes(b"#" * (MAX_BYTES + 1)), "larger than 256 KiB"),
    ],
    ids=["missing", "directory", "pipe", "large"],
)
def test_what_is_no_file_to_read(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "x.yaml")
    with pytest.raises(RecipeError, match=message):
        load(tmp_path / "x.yaml")


def test_a_run_directory_is_taken_for_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(PRUNE)
    with pytest.raises(RecipeError, match=r"did you mean '.*recipe\.yaml'"):
        load(tmp_path)
