"""`asdm assemble` with explorations, from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from asdm_cli.measure import explore_run
from asdm_cli.methods import prune
from safetensors.torch import load_file, save_file

from asdm_cli.console import console
from asdm_cli.recipe.verbs import PruneRecipe
from asdm_cli.report.run_directory import Run
from asdm_cli.unet.weights import WEIGHTS
from asdm_cli.verbs import prune
from tests import tiny
from tests.typed import Said, asdm

PROMPTS = ["a fox", "an owl"]
SIDES = ["base", "base", "original", "original"]


@pytest.fixture(autouse=True)
def _loud_again() -> Iterator[None]:
    yield
    console.quiet = False


def assemble(folder: Path, *options: object, **recipe: Any) -> Said:
    """The verb on this recipe, which it writes to `folder`; a run goes to `folder / "run"`."""
    folder.mkdir(exist_ok=True)
    file = folder / "recipe.yaml"
    data = {"verb": "assemble", **recipe, "out": str(folder / "run")}
    file.write_text(yaml.safe_dump(data, sort_keys=False, width=1000))
    return asdm("assemble", file, *options)


@pytest.fixture(scope="module")
def base(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline without base's layers, and with weights of its own, as after some distillation."""
    run = tmp_path_factory.mktemp("base")
    recipe = PruneRecipe(verb="prune", model=str(tiny_pipeline), remove="base", out="unused")
    prune.run(prune.plan(recipe), Run(run))
    file = run / "model/unet" / WEIGHTS
    torch.manual_seed(0)
    save_file({name: value + torch.randn_like(value) / 100 for name, value in load_file(file).items()}, file)
    return run


@pytest.fixture(scope="module")
def donors(tiny_pipeline: Path, base: Path) -> dict[str, str]:
    return {"original": str(tiny_pipeline), "base": str(base)}


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / WEIGHTS)


EXPLORE = {"limit": 2, "steps": 2, "repeats": 2, "warmups": 1, "bootstrap": 20, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def explore(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    budget = {"parameters_m": 0.37}
    return {**EXPLORE, "prompts": str(prompts), "combinations": "all", "budget": budget}


@pytest.fixture(scope="module")
def explored(donors: dict[str, str], explore: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explore")
    told = assemble(folder, donors=donors, explore=explore)
    assert told.code == 0, told.err
    return folder / "run"


def parts(run: Path) -> dict[str, Any]:
    return {part["title"]: part for part in json.loads((run / "report.json").read_text())["parts"]}


def test_explore_ranks_what_the_budget_lets_pass(explored: Path) -> None:
    first, *rows = parts(explored)["Ranking"]["rows"]
    out = parts(explored)["Above the budget"]["rows"]
    assert first["name"] == "original"
    assert "psnr_db" not in first, "it is not compared with itself"
    assert len(rows) + len(out) == 2**4 * 3 - 1, "all but the original itself"
    assert len(rows) >= 5
    assert len(out) >= 5
    assert all(row["params_m"] <= 0.37 for row in rows)
    assert all(row["params_m"] > 0.37 and "parameters_m is above 0.37" in row["why"] for row in out)
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    scores = [row["psnr_db"]["value"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > len(rows) / 2
    assert all(row["psnr_db"]["low"] <= row["psnr_db"]["value"] <= row["psnr_db"]["high"] for row in rows)
    assert rows[0]["front"] == "yes", "the best one is on the front"
    assert all(row["latency_ratio"]["value"] > 0 and row["macs_g"] < first["macs_g"] for row in rows)


def test_explore_writes_a_model_of_each(explored: Path, base: Path) -> None:
    names = {row["name"] for row in parts(explored)["Ranking"]["rows"][1:]}
    assert {each.name for each in (explored / "models").iterdir()} == names
    assert {each.name for each in (explored / "pictures").iterdir()} == {*names, "original"}
    same, own = (weights(each) for each in (explored / "models/b-b-b-b, mid b/unet", base / "model/unet"))
    assert same.keys() == own.keys()
    assert all(torch.equal(same[key], own[key]) for key in own)
    grid = parts(explored)["The same prompts and seeds"]
    assert grid["rows"] == PROMPTS
    assert grid["columns"][0] == "original"
    assert all((explored / cell).is_file() for row in grid["pictures"] for cell in row)


def test_what_is_drawn_in_memory_is_what_the_written_model_draws(
    explored: Path, explore: dict[str, Any], tmp_path: Path
) -> None:
    name = parts(explored)["Ranking"]["rows"][1]["name"]
    settings = {key: explore[key] for key in ("prompts", "steps", "limit", "device", "dtype", "bootstrap")}
    recipe = {"verb": "eval", "models": [{"name": "one", "model": str(explored / "models" / name)}]}
    file = tmp_path / "eval.yaml"
    file.write_text(yaml.safe_dump({**recipe, **settings, "metrics": ["psnr"], "out": str(tmp_path / "eval")}))
    assert asdm("eval", file).code == 0
    pairs = [[folder / f"{index:06}.png" for folder in (tmp_path / "eval/pictures/one", explored / "pictures" / name)]
             for index in range(2)]  # fmt: skip
    assert all(mine.read_bytes() == theirs.read_bytes() for mine, theirs in pairs)


def test_explore_goes_on_where_it_stopped(
    donors: dict[str, str], explore: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [{"name": "mine", "levels": SIDES, "mid": "original"}, {"levels": ["base"] * 4, "mid": "base"}]
    recipe = {"donors": donors, "explore": {**explore, "combinations": listed, "budget": {}}}
    drawn: list[str] = []
    timed: list[str] = []
    draw, turns = explore_run.draw, explore_run.time_interleaved

    def stumble(*given: Any, what: str) -> Any:
        drawn.append(what.removeprefix("drawing with "))
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return draw(*given, what=what)

    monkeypatch.setattr(explore_run, "draw", stumble)
    monkeypatch.setattr(
        explore_run, "time_interleaved", lambda works, **rest: timed.append("once") or turns(works, **rest)
    )
    assemble(tmp_path, **recipe)
    assert not (tmp_path / "run").exists()
    assert assemble(tmp_path, **recipe).code == 0
    assert drawn == ["original", "mine", "mine", "b-b-b-b, mid b"]
    assert timed == ["once"]
    assert {row["name"] for row in parts(tmp_path / "run")["Ranking"]["rows"]} == {"original", "mine", "b-b-b-b, mid b"}


def test_the_same_weights_are_built_once(tiny_pipeline: Path, explore: dict[str, Any], tmp_path: Path) -> None:
    """A pruning that was not trained shares its weights with its model; and equal choices are one."""
    recipe = PruneRecipe(verb="prune", model=str(tiny_pipeline), remove=["down.0.1", "up.3.1"], out="unused")
    (tmp_path / "p").mkdir()
    prune.run(prune.plan(recipe), Run(tmp_path / "p"))
    listed = [{"levels": [a, "o", "o", "o"], "mid": mid} for a in ("o", "p") for mid in ("o", "p")]
    listed += [{"name": "again", "levels": ["p", "o", "o", "o"], "mid": "o"}]
    named = {"o": str(tiny_pipeline), "p": str(tmp_path / "p")}
    told = assemble(tmp_path / "w", donors=named, explore={**explore, "combinations": listed, "budget": {}})
    assert told.code == 0, told.err
    assert "Built once only: o-o-o-o, mid o (is o), again (is p-o-o-o, mid o)" in " ".join(told.err.split())
    assert {each.name for each in (tmp_path / "w/run/models").iterdir()} == {"p-o-o-o, mid o"}


def test_latency_is_a_budget_too(donors: dict[str, str], explore: dict[str, Any], tmp_path: Path) -> None:
    listed = [{"levels": ["base"] * 4, "mid": "base"}]
    budget = {"latency_ratio": 1e-6}
    told = assemble(tmp_path, donors=donors, explore={**explore, "combinations": listed, "budget": budget})
    assert told.code == 0, told.err
    (row,) = parts(tmp_path / "run")["Above the budget"]["rows"]
    assert row["why"] == "latency_ratio is above 1e-06"
    assert row["latency_ratio"]["value"] > 0
    assert not (tmp_path / "run/models").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"combinations": [{"levels": SIDES, "mid": "none"}], "budget": {"macs_g": 1e-9}}, "explore.budget: all 1 "),
        ({"combinations": [{"levels": ["base"] * 5, "mid": "base"}]}, "explore.combinations[0].levels[4]: donor base"),
        ({"combinations": [{"levels": ["base"] * 4, "mid": "x"}]}, "explore.combinations[0].mid: no donor is called"),
    ],
)
def test_explorations_that_cannot_be(
    change: dict[str, Any], message: str, donors: dict[str, str], explore: dict[str, Any], tmp_path: Path
) -> None:
    told = assemble(tmp_path, donors=donors, explore={**explore, **change})
    assert told.code == 2
    assert message in told.err
    assert {each.name for each in tmp_path.iterdir()} == {"recipe.yaml"}


def test_explore_needs_a_pipeline_to_draw_with(tmp_path: Path, explore: dict[str, Any]) -> None:
    tiny.unet(tiny.SHAPES["sd15"]).save_pretrained(tmp_path / "unet")
    told = assemble(tmp_path / "work", donors={"bare": str(tmp_path / "unet")}, explore=explore)
    assert told.code == 2
    assert "donors.bare: is a bare UNet; explore draws pictures, so the first donor is a whole pipeline" in told.err
