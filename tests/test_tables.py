"""`make table1` ... `compression` and `costs`: what make would type is right, at every scale and for other models."""

from __future__ import annotations

import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from asdm_cli.metrics import features
from asdm_cli.recipe.load import load
from asdm_cli.recipe.verbs import RunRecipe
from asdm_cli.verbs.run import stages
from tests import drawings
from tests.typed import asdm

HOUSE = Path(__file__).parents[1]
TABLES = [*(f"table{number}" for number in range(1, 6)), "compression"]
TRAINING = [*TABLES[:4], "compression"]
SEEDED = ["table1", "table2", "compression"]
JUDGED = [*SEEDED, "table3"]


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
@pytest.mark.parametrize("scale", ["smoke", "short"])
def test_a_smaller_scale_could_run(scale: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HOUSE)
    words = typed(table, f"SCALE={scale}", "PROCESSES=1")
    assert (f"runs/smoke/{table}" in words) == (scale == "smoke"), "beside the real ones"
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
    if table in ("table1", "table5"):  # one that trains and one that does not
        said = asdm(words[0], HOUSE / words[1], *words[2:], "--out", tmp_path / "run", "--dry-run")
        told = ["no such file" in said.text, "shards.tar" in said.text]
        assert said.code == 2, "the data and the prompts are not there, and that is all that is wrong"
        assert told == [True, table in TRAINING], said.err


@pytest.mark.parametrize("table", TABLES)
def test_the_published_protocol_could_run(
    table: str, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a model, shards and COCO's prompts of one's own, with FID's network: every stage's checks."""
    if find_spec("torch_fidelity") is None:  # then its place is taken; nothing of it runs before the first stage
        monkeypatch.setattr(features, "find_spec", lambda _module: True)
    data, coco = (drawings.shard(tmp_path / f"{name}.tar", 6) for name in ("train", "coco"))
    own = [f"MODEL={tiny_pipeline}", f"DATA={data}", f"PROMPTS={coco}", f"CLIP={tiny_pipeline / 'clip'}"]
    words = typed(table, *own, f"HELD_OUT={coco}", "PROCESSES=1")
    said = asdm(words[0], HOUSE / words[1], *words[2:], "--out", tmp_path / "run", "--dry-run")
    assert said.code == 0, said.err
    recipe = load(HOUSE / words[1], "run", [words[at + 1] for at, word in enumerate(words) if word == "--set"])
    assert isinstance(recipe, RunRecipe)
    asked = [stage.recipe.model_dump() for stage in stages(recipe)]
    drawn = [each for each in asked if "metrics" in each]
    assert drawn
    assert all((each["guidance"], each["per_prompt"]) == (7.5, 1) for each in drawn), "BK-SDM's"
    judged = [each for each in drawn if each["verb"] == "eval"]
    assert bool(judged) == (table in JUDGED)
    for each in judged:
        assert (each["sampler"], each["steps"], each["limit"], each["features"]) == ("pndm", 25, 30000, "inception")
        assert {"fd", "is", "clip_score"} < {*each["metrics"]}
    compared = [each for stage, each in zip(stages(recipe), asked, strict=True) if stage.name == "worth"]
    assert bool(compared) == bool(judged)
    for each in compared:
        assert {row["series"] for row in each["models"]} >= {"output alone"}
        assert each["fewer_steps"], "what a user would do instead"


def test_the_bundled_model_is_measured_as_the_figures_say() -> None:
    """512 pictures, half of them of held-out captions; three seeds of what the paper is about."""
    for table in TRAINING:
        recipe = load(HOUSE / "recipes/tables" / f"{table}.yaml")
        assert isinstance(recipe, RunRecipe)
        assert (recipe.inputs["limit"], recipe.inputs["per_prompt"]) == (256, 2)
        assert {"label_accuracy", "label_agreement", "kid", "psnr"} <= {*recipe.inputs["metrics"]}  # type: ignore[misc]
        assert {len(members) for members in recipe.seeds.values()} == ({3} if table in SEEDED else set())
    levels = load(HOUSE / "recipes/tables/table5.yaml")
    assert isinstance(levels, RunRecipe)
    assert [levels.inputs[key] for key in ("limit", "front_limit", "front_per_prompt")] == [64, 256, 2]
    homes = {}
    for table in TRAINING:
        recipe = load(HOUSE / "recipes/tables" / f"{table}.yaml")
        homes[table] = {each.name: each.home for each in stages(recipe)}  # type: ignore[arg-type]
    assert len({each["students"] for each in homes.values()}) == 1, "the students of table 1 are trained once"
    assert all(homes["table1"][name] == homes["table2"][name] for name in ("seed-1", "seed-2"))
    alone = {"chosen", "chosen-seed-1", "chosen-seed-2", "drawn", "half-way", "whole-way", "as-long-experts"}
    trained = {
        name
        for name, stage in load(HOUSE / "recipes/tables/compression.yaml").stages.items()
        if stage["verb"] == "distill"
    }
    shared = {home for table in TABLES[:3] for home in homes[table].values()}
    assert {name for name in trained if homes["compression"][name] not in shared} == alone, "all else is trained once"


def test_a_path_may_have_spaces() -> None:
    words = typed("table1", "MODEL=my models/sd", "DATA=a b.tar", "PROMPTS=some prompts.txt", "CLIP=a clip")
    for pair in ("model=my models/sd", "data=a b.tar", "prompts=some prompts.txt", "clip=a clip", "guidance=7.5"):
        assert f"inputs.{pair}" in words


def test_a_record_is_kept_of_the_bundled_model_unless_its_figures_say_nothing() -> None:
    def keeps(*settings: str) -> bool:
        said = subprocess.run(
            ["make", "-n", "table5", *settings], cwd=HOUSE, capture_output=True, text=True, check=True
        )
        return "scripts.results keep table5 runs/table5" in said.stdout

    assert keeps()
    assert keeps("SCALE=short")
    assert not keeps("SCALE=smoke")
    assert not keeps("MODEL=mine")


def test_processes_are_started_where_there_are_several() -> None:
    words = typed("table1", "PROCESSES=3")
    assert words[words.index("--launch") + 1].endswith("torchrun --nproc-per-node 3")
    assert "--launch" not in typed("table1", "PROCESSES=1")
