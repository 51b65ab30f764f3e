"""`asdm switch` from the command line: what it writes, what others make of that, faults, going on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from PIL import Image

import asdm_cli
from asdm_cli.console import console
from asdm_cli.errors import ModelError, RunError
from asdm_cli.measure import calibration, drawing, ways
from asdm_cli.measure.inherit_run import Cost
from asdm_cli.measure.trajectory import Count, Trajectory
from asdm_cli.methods import switch
from asdm_cli.recipe.verbs import SwitchRecipe
from asdm_cli.report.run_directory import Run
from tests.carrying import carrying, every
from tests.turns import pruned
from tests.typed import Said, asdm

PROMPTS = ["a fox", "an owl", "a cup", "a tree"]
PARTS = [{"unet": "small", "until": 500}, {"unet": "large"}]
STEPS = 4


@pytest.fixture(autouse=True)
def _loud_again() -> Iterator[None]:
    yield
    console.quiet = False


@pytest.fixture(scope="module")
def small(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pruned(tiny_pipeline, tmp_path_factory.mktemp("small") / "run")


@pytest.fixture(scope="module")
def settings(tiny_pipeline: Path, small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A quick recipe but for its schedules."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    quick = {"fewer_steps": [2], "steps": STEPS, "repeats": 1, "warmups": 1, "bootstrap": 20, "metrics": ["psnr"]}
    unets = {"large": {"model": str(tiny_pipeline)}, "small": {"model": str(small)}}
    where = {"prompts": str(prompts), "limit": 2, "device": "cpu", "dtype": "float32", "out": "runs/x"}
    return {"verb": "switch", "unets": unets, **quick, **where}


@pytest.fixture
def recipe(settings: dict[str, Any]) -> Callable[..., SwitchRecipe]:
    return lambda **changes: SwitchRecipe.model_validate({**settings, **changes})


@pytest.fixture(scope="module", autouse=True)
def _steady() -> Iterator[None]:
    """Calibrations find the small UNet twice as fast, however busy the machine is."""
    real = calibration.calibrate

    def steady(*given: Any) -> calibration.Calibration:
        found = real(*given)
        calls = len(found.timesteps)
        return replace(found, seconds={"large": [1.0] * calls, "small": [0.5] * calls})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "calibrate", steady)
        yield


@pytest.fixture
def _uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply-accumulates are not counted, which takes longer than all else and is looked at elsewhere."""
    found = Cost(Trajectory(STEPS, 2 * STEPS, {"unet": Count(2, 1)}), (), None, served=("large",) * STEPS)
    monkeypatch.setattr(ways, "cost", lambda *_: found)


@pytest.fixture(scope="module")
def said(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """The run directory of everything at once, and what the command said."""
    folder = tmp_path_factory.mktemp("switch")
    file = folder / "recipe.yaml"
    sweep = [
        {
            "name": "thirds",
            "by": "step",
            "series": "mine",
            "parts": [{"unet": "large", "until": 1}, {"unet": "reuse", "until": 2}, {"unet": "small"}],
        }
    ]
    more = {
        "parts": PARTS,
        "sweep": sweep,
        "ratios": {"unets": ["large", "small"], "shares": [0, 0.5, 1]},
        "search": {"budgets": [0.9, 0.6], "prompts": 2},
    }
    file.write_text(yaml.safe_dump({**settings, **more, "out": str(folder / "run")}))
    return folder / "run", asdm("switch", file)


@pytest.fixture(scope="module")
def run(said: tuple[Path, Said]) -> Path:
    assert said[1].code == 0, said[1].err
    return said[0]


@pytest.fixture(scope="module")
def parts(run: Path) -> dict[str, Any]:
    report = json.loads((run / "report.json").read_text())
    return {part["title"]: part for part in report["parts"]}


def rows(parts: dict[str, Any], title: str = "Speed and fidelity", key: str = "name") -> dict[str, dict[str, Any]]:
    return {row[key]: row for row in parts[title]["rows"]}


def pixels(file: Path) -> bytes:
    with Image.open(file) as picture:
        return picture.tobytes()


def draw(pipe: Any) -> numpy.ndarray:
    noise = torch.Generator().manual_seed(0)
    return pipe("a fox", num_inference_steps=STEPS, generator=noise, output_type="np").images


def test_stdout_is_the_path_and_the_rest_is_told_to_people(said: tuple[Path, Said]) -> None:
    path, told = said
    assert (told.code, told.out) == (0, f"{path}\n")
    assert all(words in told.text for words in ("Speed and fidelity", "Who serves which call", "At equal cost, "))
    found = {each.name for each in path.iterdir()}
    assert found >= {"model", "report.json", "report.html", "recipe.yaml", "pictures", "recipes", "calibration.json"}
    assert "search" not in found, "pictures of schedules that were not chosen are of no use"


def test_everybody_is_in_the_table(parts: dict[str, Any]) -> None:
    found = rows(parts)
    assert list(found) == [
        *("large", "2 steps", "small", switch.SCHEDULE, "thirds"),
        *("small first 50%", "small last 50%", "searched 0.9", "searched 0.6"),
    ]
    served = {name: row["served"] for name, row in found.items()}
    assert served["large"] == "4 large"
    assert served["2 steps"] == "2 large"
    assert served["small"] == "4 small"
    assert served[switch.SCHEDULE] == "2 small, 2 large"
    assert served["thirds"] == "1 large, 1 reuse, 2 small"
    assert served["small last 50%"] == "2 large, 2 small"
    share = {name: row["unet_macs_share"] for name, row in found.items()}
    assert share["large"] == 1
    assert share["small last 50%"] == pytest.approx(share["small first 50%"])
    assert share["small first 50%"] == pytest.approx((1 + share["small"]) / 2)
    assert share["thirds"] == pytest.approx((1 + 2 * share["small"]) / 4)
    assert "psnr_db" not in found["large"], "it is not compared with itself"
    assert len([row for row in found.values() if row.get("psnr_db", {}).get("value", 0) > 0]) == len(found) - 1


def test_report_has_the_fronts_the_orders_and_the_search(run: Path, parts: dict[str, Any]) -> None:
    (plot,) = [part for part in parts.values() if part["kind"] == "scatter"]
    series = {point["series"] for point in plot["points"]}
    assert series >= {"fewer steps", "searched"}
    assert series <= {"fewer steps", "one UNet", "by hand", "mine", "compressed first", "original first", "searched"}
    assert [row["share"] for row in parts["Both orders"]["rows"]] == ["50%"]
    timeline = parts["Who serves which call"]
    lines = dict(zip(timeline["rows"], timeline["cells"], strict=True))
    assert lines[switch.SCHEDULE] == "ssll"
    assert lines["thirds"] == "l·ss"
    assert timeline["letters"] | {"·": "reuse", "l": "large", "s": "small"} == timeline["letters"]
    assert "large" not in lines, "who serves alone needs no picture"
    chosen = {row["budget"]: row for row in parts["Searched schedules"]["rows"]}
    assert list(chosen) == [0.9, 0.6]
    assert all(row["share"] <= budget for budget, row in chosen.items())
    assert all(row["psnr_db"] >= (row["fixed_db"] or 0) for row in chosen.values())
    assert set(parts["Errors at single calls"]["lines"]) == {"small", "reuse", "extrapolate"}
    assert next(row["early"] for row in parts["What UNets cost and err"]["rows"]) == 0
    grid = parts["The same prompts and seeds"]
    assert grid["rows"] == PROMPTS[:2]
    assert all((run / cell).is_file() for row in grid["pictures"] for cell in row)


def test_model_carries_the_schedule_of_the_recipe(run: Path, tiny_pipeline: Path, small: Path) -> None:
    held = json.loads((run / "model/asdm.json").read_text())
    assert held["switch"] == {
        "by": "timestep",
        "parts": PARTS,
        "unets": ["large", "small"],
        "plans": {},
        "idle": "stay",
    }
    assert held["history"][-1]["measured_with"] == {"sampler": "own", "steps": STEPS, "guidance": 3.0}
    pipe = asdm_cli.load(str(tiny_pipeline), "cpu")
    before = draw(pipe)
    with asdm_cli.switch(pipe, {"large": pipe.unet, "small": str(small)}, PARTS):
        wanted = draw(pipe)
    mine = draw(asdm_cli.load(str(run), "cpu"))
    assert numpy.array_equal(mine, wanted)
    assert not numpy.array_equal(mine, before)


def test_generate_draws_the_pictures_that_were_measured(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    assert asdm("generate", run, *PROMPTS[:2], "--steps", STEPS, "--device", "cpu", "--out", out).code == 0
    for index in range(2):
        assert pixels(out / f"{index:03}.png") == pixels(run / "pictures" / switch.SCHEDULE / f"{index:06}.png")
        assert pixels(out / f"{index:03}.png") != pixels(run / "pictures/large" / f"{index:06}.png")


@pytest.mark.usefixtures("_uncounted")
def test_chosen_schedules_are_recipes_that_draw_the_same(run: Path, tmp_path: Path) -> None:
    files = sorted((run / "recipes").iterdir())
    assert [file.name for file in files] == ["switch-budget-0.6.yaml", "switch-budget-0.9.yaml"]
    for file in files:
        assert file.read_text().startswith(f"# asdm switch {run}/recipes/{file.name}\n")
        assert asdm("check", file).code == 0
    held = yaml.safe_load(files[0].read_text())
    assert held["out"] == f"{run}-budget-0.6"
    assert not {"search", "sweep", "ratios"} & held.keys()
    assert held["by"] == "timestep"
    assert asdm("switch", files[0], "--out", tmp_path / "again").code == 0
    for index in range(2):
        wanted = pixels(run / "pictures/searched 0.6" / f"{index:06}.png")
        assert pixels(tmp_path / "again/pictures" / switch.SCHEDULE / f"{index:06}.png") == wanted


@pytest.mark.usefixtures("_uncounted")
def test_a_search_gives_the_model_its_schedule(recipe: Callable[..., SwitchRecipe], tmp_path: Path) -> None:
    asked = recipe(search={"budgets": [0.8], "prompts": 1, "nulls": False}, idle="cpu", fewer_steps=[])
    report = switch.run(switch.plan(asked), Run(tmp_path))
    held = json.loads((tmp_path / "model/asdm.json").read_text())["switch"]
    (file,) = (tmp_path / "recipes").iterdir()
    assert (held["by"], held["parts"]) == tuple(yaml.safe_load(file.read_text())[key] for key in ("by", "parts"))
    assert held["idle"] == "cpu"
    assert {part["unet"] for part in held["parts"]} <= {"large", "small"}, "no call is skipped"
    assert "In the written model serve: " in report.summary


@pytest.mark.usefixtures("_uncounted")
def test_who_serves_nothing_is_not_written(recipe: Callable[..., SwitchRecipe], tmp_path: Path) -> None:
    parts = [{"unet": "large", "until": 500}, {"unet": "reuse"}]
    switch.run(switch.plan(recipe(parts=parts, fewer_steps=[])), Run(tmp_path))
    assert json.loads((tmp_path / "model/asdm.json").read_text())["switch"]["unets"] == ["large"]
    assert not (tmp_path / "model/unets").exists()


def test_comparing_alone_writes_no_model(recipe: Callable[..., SwitchRecipe], tmp_path: Path) -> None:
    ratios = {"unets": ["small", "large"], "shares": [0.5]}
    report = switch.run(
        switch.plan(recipe(ratios=ratios, fewer_steps=[], metrics=["psnr"], converged=6)), Run(tmp_path)
    )
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "recipes").exists()
    assert "No model is written" in report.summary
    assert [row["name"] for row in _table(report).rows] == ["large", "small", "large first 50%", "large last 50%"]
    assert "psnr_converged_db" in _table(report).rows[0], "the first UNet is compared with the solution too"


def _table(report: Any) -> Any:
    return next(part for part in report.parts if part.title == "Speed and fidelity")


def test_plans_are_in_force_and_are_written(
    recipe: Callable[..., SwitchRecipe], settings: dict[str, Any], tiny_pipeline: Path, tmp_path: Path
) -> None:
    """The first carries its plan, the other one is given it."""
    first = carrying(tiny_pipeline, tmp_path / "first", every(2))
    other = {**settings["unets"]["small"], "plan": {"preset": "deepcache", "interval": 2}}
    unets = {"large": {"model": str(first)}, "small": other}
    asked = recipe(unets=unets, parts=PARTS, fewer_steps=[], search={"budgets": [0.9], "prompts": 1})
    (tmp_path / "run").mkdir()
    report = switch.run(switch.plan(asked), Run(tmp_path / "run"))
    held = json.loads((tmp_path / "run/model/asdm.json").read_text())["switch"]
    assert [held["plans"][name]["rules"][0]["nodes"] for name in ("large", "small")] == ["up.3", "deepcache.0"]
    kept = {row["name"]: row["cache_mb"] for row in _table(report).rows}
    assert all(kept[name] > 0 for name in ("large", "small", switch.SCHEDULE))


def test_dry_run_shows_who_serves_what_and_writes_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    more = {"parts": PARTS, "search": {"prompts": 1}, "out": str(tmp_path / "run")}
    file.write_text(yaml.safe_dump({**settings, **more}))
    told = asdm("switch", file, "--dry-run")
    assert (told.code, told.out) == (0, "")
    assert "ssll" in told.err
    wanted = ("searched 0.9", "small until timestep 500, then large", "Who serves which call", "parameters")
    assert all(words in told.text for words in wanted)
    assert [each.name for each in tmp_path.iterdir()] == ["recipe.yaml"]


# Gate 3


def faults(recipe: SwitchRecipe) -> list[str]:
    with pytest.raises(ModelError) as caught:
        switch.plan(recipe)
    return str(caught.value).splitlines()


def test_unets_that_are_not_there_are_told_all_at_once(recipe: Callable[..., SwitchRecipe], run: Path) -> None:
    unets = {
        "a": {"model": "nowhere"},
        "b": {"model": str(run)},
        "c": {"model": str(run / "model/unet"), "plan": every(2, "up.9")},
    }
    told = faults(recipe(unets=unets, parts=[{"unet": "a"}]))
    starts = ["unets.a: nowhere: no such directory", "unets.b: ", "unets.c: rules[0].nodes: "]
    assert len(told) == len(starts), told
    assert all(line.startswith(start) for line, start in zip(told, starts, strict=True)), told
    assert "holds several UNets" in told[1]


def test_unets_of_other_training_are_told(recipe: Callable[..., SwitchRecipe], small: Path, tmp_path: Path) -> None:
    import shutil

    other = shutil.copytree(small, tmp_path / "other")
    for folder, file, key, value in (
        ("scheduler", "scheduler_config.json", "prediction_type", "v_prediction"),
        ("vae", "config.json", "scaling_factor", 1.0),
    ):
        held = json.loads((other / folder / file).read_text())
        (other / folder / file).unlink()
        (other / folder / file).write_text(json.dumps({**held, key: value}))
    large = recipe(parts=PARTS).unets["large"].model
    told = faults(recipe(parts=PARTS, unets={"large": {"model": large}, "small": {"model": str(other)}}))
    assert len(told) == 2
    assert told[0].startswith(
        "unets.small: its scheduler has prediction_type 'v_prediction', and large's has 'epsilon'"
    )
    assert told[1].startswith("unets.small: its vae has scaling_factor 1.0, and large's has 0.18215; ")


def test_unets_of_another_text_width_are_told(recipe: Callable[..., SwitchRecipe], small: Path, tmp_path: Path) -> None:
    from tests import tiny

    tiny.unet(tiny.shape("sd15", cross_attention_dim=24)).save_pretrained(tmp_path / "wide")
    unets = {"large": {"model": str(small)}, "small": {"model": str(tmp_path / "wide")}}
    (told,) = faults(recipe(unets=unets, parts=PARTS))
    assert told.startswith("unets: cross_attention_dim must be the same in all UNets")


def test_names_are_taken_once(recipe: Callable[..., SwitchRecipe]) -> None:
    sweep = [{"name": name, "parts": [{"unet": "small"}]} for name in ("small", "searched 0.9", "2 steps", "free")]
    told = faults(recipe(sweep=sweep, search={"prompts": 1}))
    assert told == [
        f"name '{name}' is taken by another way to draw; choose another"
        for name in sorted(["2 steps", "searched 0.9", "small"])
    ]


def test_a_budget_that_nothing_keeps_to_ends_the_run_before_it_draws(
    recipe: Callable[..., SwitchRecipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways.Studio, "draw", stop)
    asked = recipe(search={"budgets": [0.9, 0.1, 0.05], "prompts": 1, "nulls": False})
    with pytest.raises(
        RunError, match=r"search.budgets: no schedule of these UNets keeps to 0.1, 0.05 of the first.* takes 0.50 "
    ):
        switch.run(switch.plan(asked), Run(tmp_path))


# Going on


class Stopped(Exception):
    pass


def stop(*_: object, **__: object) -> Any:
    raise Stopped


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The index of every picture that is drawn from now on."""
    indices: list[int] = []
    real = drawing.pictures

    def counted(*args: Any, **more: Any) -> Iterator[tuple[int, Image.Image]]:
        for index, picture in real(*args, **more):
            indices.append(index)
            yield index, picture

    monkeypatch.setattr(drawing, "pictures", counted)
    return indices


@pytest.mark.usefixtures("_uncounted")
def test_an_interrupted_run_goes_on(
    settings: dict[str, Any], tmp_path: Path, count: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the search's pictures, then in those of the measurement, then in the timing."""
    file = tmp_path / "recipe.yaml"
    more = {"search": {"budgets": [0.8], "prompts": 1}, "fewer_steps": [], "out": str(tmp_path / "run")}
    file.write_text(yaml.safe_dump({**settings, **more}))
    counted = drawing.pictures

    def killed(after: int) -> Any:
        def pictures(*args: Any, **more: Any) -> Iterator[tuple[int, Image.Image]]:
            for index, picture in counted(*args, **more):
                if len(count) == after:
                    raise KeyboardInterrupt
                yield index, picture

        return pictures

    with monkeypatch.context() as broken:
        broken.setattr(drawing, "pictures", killed(2))
        assert asdm("switch", file).code == 130
    held = (tmp_path / ".run.partial/calibration.json").read_bytes()
    monkeypatch.setattr(calibration, "calibrate", stop)
    count.clear()
    with monkeypatch.context() as broken:
        broken.setattr(ways, "take_turns", stop)
        assert asdm("switch", file).code == 1
    sought = len(list((tmp_path / ".run.partial/search").iterdir()))
    assert len(count) == sought - 1 + 3 * 2, "all but the first of the search's, and large, small, searched"
    count.clear()
    assert asdm("switch", file).code == 0, "after an end in the middle of the timing"
    assert count == []
    assert (tmp_path / "run/calibration.json").read_bytes() == held


@pytest.mark.parametrize(
    ("changes", "drawn"),
    [({"parts": [{**PARTS[0], "until": 700}, PARTS[1]]}, 2), ({"steps": 5}, 6), ({}, 0)],
    ids=["parts", "steps", "nothing"],
)
def test_pictures_of_another_schedule_are_not_gone_on_with(
    recipe: Callable[..., SwitchRecipe],
    tmp_path: Path,
    count: list[int],
    changes: dict[str, Any],
    drawn: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ways, "judge_of", stop)
    for asked, wanted in (({}, 6), (changes, drawn)):
        count.clear()
        with pytest.raises(Stopped):
            switch.run(switch.plan(recipe(**{"parts": PARTS, "fewer_steps": [], **asked})), Run(tmp_path))
        assert len(count) == wanted
