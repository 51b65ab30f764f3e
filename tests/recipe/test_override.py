"""--set key.path=value: changes what it says, and is checked like the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.load import load
from asdm_cli.recipe.override import Override, parse_override
from asdm_cli.recipe.verbs import BenchRecipe

BENCH = "verb: bench\nmodels:\n  - {name: a, model: pocket}\n  - {name: b, random: sd15}\nguidance: 0\nout: x\n"


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    path = tmp_path / "bench.yaml"
    path.write_text(BENCH.replace("guidance: 0\n", ""))
    return path


def test_values_are_yaml(bench: Path) -> None:
    recipe = load(bench, "bench", ["steps=5", "guidance=1e1", "models.1.remove=[mid, up.0]", "images=false", "out=a b"])
    assert isinstance(recipe, BenchRecipe)
    assert (recipe.steps, recipe.guidance, recipe.images, recipe.out) == (5, 10.0, False, "a b")
    assert recipe.models[1].remove == ["mid", "up.0"]
    assert recipe.models[0].name == "a"


def test_later_ones_win(bench: Path) -> None:
    assert load(bench, "bench", ["steps=5", "steps=7"]).steps == 7  # type: ignore[attr-defined]


def test_options_are_text_as_they_stand(bench: Path) -> None:
    assert load(bench, "bench", [Override(("out",), "007", "--out")]).out == "007"  # type: ignore[attr-defined]


def test_an_override_repairs_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bench.yaml"
    path.write_text(BENCH)
    with pytest.raises(RecipeError, match="guidance: must be at least 1"):
        load(path)
    load(path, "bench", ["guidance=2"])


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("steps=0", "--set steps: must be at least 1, got 0"),
        ("models.1.name=a", "--set models[1].name: 'a' is already entry 0 of the list (counted from 0)"),
        ("models.2.name=c", "--set models[2].name: the list has 2 entries, counted from 0; there is no '2'"),
        ("models.b.name=c", "--set models.b.name: the list has 2 entries, counted from 0; there is no 'b'"),
        ("models.0.modl=c", "--set models[0].modl: unknown key (did you mean 'model'?)"),
        ("out.folder=c", "--set out.folder: leads nowhere: what should hold 'folder' is a plain value"),
        ("size.x.y=3", "--set size: must be a whole number, got a mapping"),
        ("stepps=3", "--set stepps: unknown key (did you mean 'steps'?)"),
        ("images=yes", "--set images: must be true or false, got the text 'yes'"),
        ("batches=[1, x]", "--set batches[1]: must be a whole number, got the text 'x'"),
        ("verb=prune", "--set verb: this is a recipe for 'asdm prune', not for 'asdm bench'"),
    ],
)
def test_faults_are_placed_at_the_option(bench: Path, override: str, fault: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(bench, "bench", [override])
    assert str(caught.value) == f"{bench}: {fault}"


def test_a_fault_of_an_option_names_the_option(bench: Path) -> None:
    with pytest.raises(RecipeError, match=r": --dtype dtype: must be one of .*did you mean 'float16'"):
        load(bench, "bench", [Override(("dtype",), "flot16", "--dtype")])


@pytest.mark.parametrize(
    "text", ["steps", "=3", "models..name=x", ".a=1", "0.a=1", "steps=[1", "steps=*x", "a=\x07", "a=!x 1"]
)
def test_what_is_no_override(text: str) -> None:
    with pytest.raises(RecipeError, match="--set: "):
        parse_override(text)
