"""`make table1` ... `table5` and `costs`: what make would type is right, at every scale and for other models."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from asdm_cli.recipe.load import load
from asdm_cli.recipe.verbs import RunRecipe
from tests.typed import asdm

HOUSE = Path(__file__).parents[1]
TABLES = [f"table{number}" for number in range(1, 6)]
TRAINING = TABLES[:4]


def typed(target: str, *settings: str) -> list[str]:
    """The words after `asdm` that make would run for a target."""
    said = subprocess.run(["make", "-n", target, *settings], cwd=HOUSE, capture_output=True, text=True, check=True)
    lines = [line for line in said.stdout.splitlines() if "/asdm run " in line]
    assert len(lines) == 1, said.stdout
    return shlex.split(lines[0])[1:]


@pytest.mark.parametrize("table", [*TABLES, "costs"])
def test_every_table_is_a_recipe_of_several_stages(table: str) -> None:
    recipe = load(HOUSE / "recipes/tables" / f"{table}.yaml")
    assert isinstance(recipe, RunRecipe)
    assert recipe.out == f"runs/{table}"
    measured = {data["verb"] for data in recipe.stages.values()} & {"bench", "eval", "inherit", "switch"}
    assert measured, "a table has figures"


@pytest.mark.parametrize("table", TABLES)
def test_the_smoke_scale_could_run(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HOUSE)
    words = typed(table, "SCALE=smoke", "PROCESSES=1")
    assert words[words.index("--out") + 1] == f"runs/smoke/{table}", "beside the real ones"
    said = asdm(*words, "--out", tmp_path / "run", "--dry-run")
    assert said.code == 0, said.err
    assert "0 of them finished before" in said.text


@pytest.mark.parametrize("table", TABLES)
def test_another_model_and_its_data_reach_every_stage(table: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    words = typed(table, f"MODEL={tiny_pipeline}", "DATA=shards.tar", f"PROMPTS={prompts}", "CLIP=clip", "PROCESSES=1")
    given = dict(word.removeprefix("inputs.").split("=", 1) for word in words if word.startswith("inputs."))
    assert (given["model"], given["prompts"]) == (str(tiny_pipeline), str(prompts))
    assert ("data" in given) == (table in TRAINING)
    assert given["guidance"] == "7.5"
    if table in (TABLES[0], TABLES[-1]):  # one that trains and one that does not
        said = asdm(words[0], HOUSE / words[1], *words[2:], "--out", tmp_path / "run", "--dry-run")
        told = ["no such file" in said.text, "shards.tar" in said.text]
        assert said.code == 2, "the data and the prompts are not there, and that is all that is wrong"
        assert told == [True, table in TRAINING], said.err


def test_processes_are_started_where_there_are_several() -> None:
    words = typed("table1", "PROCESSES=3")
    assert words[words.index("--launch") + 1].endswith("torchrun --nproc-per-node 3")
    assert "--launch" not in typed("table1", "PROCESSES=1")
