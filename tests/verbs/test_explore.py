"""`asdm assemble` with explorations, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from asdm_cli.compare import run as comparing
from asdm_cli.report.run_directory import read
from asdm_cli.unet.weights import WEIGHTS
from asdm_cli.verbs import explore as exploring
from tests import expanding, tiny
from tests.expanding import done, figures
from tests.typed import Said

PROMPTS = ["a fox", "an owl"]
SIDES = ["base", "base", "original", "original"]
MOST = 0.37
"""Millions of parameters."""


def assemble(folder: Path, donors: dict[str, str], explore: dict[str, Any]) -> Said:
    return expanding.run(folder, {"verb": "assemble", "donors": donors, "explore": explore})


@pytest.fixture(scope="module")
def base(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return expanding.learned(tiny_pipeline, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def donors(tiny_pipeline: Path, base: Path) -> dict[str, str]:
    return {"original": str(tiny_pipeline), "base": str(base)}


@pytest.fixture(scope="module")
def explore(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    quick = {"limit": 2, "steps": 2, "repeats": 2, "warmups": 1, "bootstrap": 20, "device": "cpu", "dtype": "float32"}
    return {**quick, "prompts": str(prompts), "combinations": "all", "budget": {"parameters_m": MOST}}


@pytest.fixture(scope="module")
def explored(donors: dict[str, str], explore: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = {"verb": "assemble", "donors": donors, "explore": explore}
    return done(tmp_path_factory.mktemp("explore"), recipe)


def test_what_the_budget_lets_pass_is_measured_and_written(explored: Path, base: Path) -> None:
    report = read(explored)
    first, *names = report.setups
    over = report.facts["above the budget"]
    assert first == "original"
    assert len(names) + len(over) == 2**4 * 3 - 1, "all but the original itself"
    assert min(len(names), len(over)) >= 5
    assert set(over.values()) == {f"parameters_m is above {MOST:g}"}
    params, psnr, macs = (figures(report, metric) for metric in ("params_m", "psnr_db", "macs_g"))
    assert params.keys() == {first, *names}
    assert all(params[name] <= MOST for name in names)
    assert psnr.keys() == {*names}, "the first is not compared with itself"
    assert len(set(psnr.values())) > len(names) / 2
    bounds = [(each.low, each.value, each.high) for each in report.records if each.metric == "psnr_db"]
    assert all(low <= value <= high for low, value, high in bounds)
    assert all(macs[name] < macs[first] for name in names)
    assert figures(report, "unet_speedup").keys() == {*names}
    assert {each.name for each in (explored / "models").iterdir()} == {*names}
    same, own = (load_file(each / WEIGHTS) for each in (explored / "models/b-b-b-b, mid b/unet", base / "model/unet"))
    assert same.keys() == own.keys()
    assert all(torch.equal(same[key], own[key]) for key in own)
    assert report.images is not None
    assert report.images.prompts == PROMPTS
    assert list(report.images.folders) == [first, *names]
    assert all((explored / folder / "000001.png").is_file() for folder in report.images.folders.values())


def test_what_is_drawn_in_memory_is_what_the_written_model_draws(
    explored: Path, explore: dict[str, Any], tmp_path: Path
) -> None:
    report = read(explored)
    psnr = figures(report, "psnr_db")
    name = max(psnr, key=lambda each: psnr[each])
    settings = {key: explore[key] for key in ("prompts", "steps", "limit", "device", "dtype", "bootstrap")}
    models = [{"name": "one", "model": str(explored / "models" / name)}]
    run = done(tmp_path, {"verb": "eval", "models": models, **settings, "metrics": ["psnr"]})
    for index in range(2):
        mine, theirs = (folder / f"{index:06}.png" for folder in (run / "samples/one", explored / "samples" / name))
        assert mine.read_bytes() == theirs.read_bytes()


def test_explore_goes_on_where_it_stopped(
    donors: dict[str, str], explore: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [{"name": "mine", "levels": SIDES, "mid": "original"}, {"levels": ["base"] * 4, "mid": "base"}]
    asked = {**explore, "combinations": listed, "budget": {}}
    drawn: list[str] = []
    timed: list[str] = []
    draw, calls = comparing.draw, exploring.unet_calls

    def stumble(*given: Any, what: str, **more: Any) -> Any:
        drawn.append(what.removeprefix("drawing with "))
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return draw(*given, what=what, **more)

    monkeypatch.setattr(comparing, "draw", stumble)
    monkeypatch.setattr(exploring, "unet_calls", lambda *given: timed.append("once") or calls(*given))
    assert expanding.run(tmp_path, {"verb": "assemble", "donors": donors, "explore": asked}).code == 130
    assert not (tmp_path / "run").exists()
    told = assemble(tmp_path, donors, asked)
    assert told.code == 0, told.err
    assert drawn == ["original", "mine", "mine", "b-b-b-b, mid b"]
    assert timed == ["once"]
    assert list(read(tmp_path / "run").setups) == ["original", "mine", "b-b-b-b, mid b"]


def test_the_same_weights_are_built_once(tiny_pipeline: Path, explore: dict[str, Any], tmp_path: Path) -> None:
    """A pruning that was not trained shares its weights with its model; and equal choices are one."""
    gone = ["down.0.1", "up.3.1"]
    pruned = done(tmp_path / "p", {"verb": "prune", "model": str(tiny_pipeline), "remove": gone})
    listed = [{"levels": [a, "o", "o", "o"], "mid": mid} for a in ("o", "p") for mid in ("o", "p")]
    listed += [{"name": "again", "levels": ["p", "o", "o", "o"], "mid": "o"}]
    named = {"o": str(tiny_pipeline), "p": str(pruned)}
    told = assemble(tmp_path / "w", named, {**explore, "combinations": listed, "budget": {}})
    assert told.code == 0, told.err
    assert "Built once only: o-o-o-o, mid o (is o), again (is p-o-o-o, mid o)" in told.text
    assert {each.name for each in (tmp_path / "w/run/models").iterdir()} == {"p-o-o-o, mid o"}
    assert list(read(tmp_path / "w/run").setups) == ["o", "p-o-o-o, mid o"]


def test_latency_is_a_budget_too(donors: dict[str, str], explore: dict[str, Any], tmp_path: Path) -> None:
    asked = {"combinations": [{"levels": ["base"] * 4, "mid": None}], "budget": {"latency_ratio": 1e-6}}
    told = assemble(tmp_path, donors, {**explore, **asked})
    assert told.code == 0, told.err
    report = read(tmp_path / "run")
    assert report.facts["above the budget"] == {"b-b-b-b, no mid": "latency_ratio is above 1e-06"}
    assert list(report.setups) == ["original"]
    assert not (tmp_path / "run/models").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"combinations": [{"levels": SIDES, "mid": "none"}], "budget": {"macs_g": 1e-9}}, "explore.budget: all 1 "),
        ({"combinations": [{"levels": ["base"] * 5, "mid": "base"}]}, "explore.combinations[0].levels[4]: donor base"),
        ({"combinations": [{"levels": ["base"] * 4, "mid": "x"}]}, "explore.combinations[0].mid: no donor is called"),
        ({"combinations": [{"levels": ["base"] * 4}]}, "explore.combinations[0].mid: must be given"),
        ({"budget": None}, "explore.budget: must be given for 'all'"),
        ({"prompts": "nowhere.txt"}, "nowhere.txt: no such file"),
    ],
)
def test_explorations_that_cannot_be(
    change: dict[str, Any], message: str, donors: dict[str, str], explore: dict[str, Any], tmp_path: Path
) -> None:
    told = assemble(tmp_path, donors, {**explore, **change})
    assert told.code == 2
    assert message in told.text
    assert {each.name for each in tmp_path.iterdir()} == {"recipe.yaml"}


def test_explore_needs_a_pipeline_to_draw_with(tmp_path: Path, explore: dict[str, Any]) -> None:
    tiny.unet(tiny.SHAPES["sd15"]).save_pretrained(tmp_path / "unet")
    told = assemble(tmp_path / "work", {"bare": str(tmp_path / "unet")}, explore)
    assert told.code == 2
    assert "donors.bare: is a bare UNet; explore draws pictures, so the first donor is a whole pipeline" in told.text
