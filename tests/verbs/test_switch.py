"""`asdm switch` from the command line: what it writes, what others make of that, faults, going on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import asdm_cli
from asdm_cli.compare import run as comparing
from asdm_cli.errors import ModelError, RunError
from asdm_cli.patches.base import Stats
from asdm_cli.profiling.macs import Count, Counts
from asdm_cli.recipe.verbs import SwitchRecipe
from asdm_cli.report.run_directory import Run, read
from asdm_cli.search import schedules
from asdm_cli.search.calibration import Calibration
from asdm_cli.verbs import switch
from tests.carrying import carrying, every, fitted
from tests.expanding import figures, picture, pixels
from tests.expanding import run as ran
from tests.typed import Said, asdm
from tests.verbs.conftest import Drawing

PROMPTS = ["a fox", "an owl", "a cup", "a tree"]
PARTS = [{"unet": "small", "until": 500.0}, {"unet": "large"}]
STEPS = 4


@pytest.fixture(scope="module")
def settings(tiny_pipeline: Path, tiny_small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A quick recipe but for its schedules."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    quick = {"fewer_steps": [2], "steps": STEPS, "repeats": 1, "warmups": 1, "bootstrap": 20, "metrics": ["psnr"]}
    unets = {"large": {"model": str(tiny_pipeline)}, "small": {"model": str(tiny_small)}}
    where = {"prompts": str(prompts), "limit": 2, "device": "cpu", "dtype": "float32", "out": "runs/x"}
    return {"verb": "switch", "unets": unets, **quick, **where}


@pytest.fixture
def recipe(settings: dict[str, Any]) -> Callable[..., SwitchRecipe]:
    return lambda **changes: SwitchRecipe.model_validate({**settings, **changes})


@pytest.fixture(scope="module", autouse=True)
def _steady() -> Iterator[None]:
    """Calibrations find the small UNet twice as fast, however busy the machine is."""
    real = schedules.calibrate

    def steady(*given: Any) -> Calibration:
        found = real(*given)
        calls = len(found.timesteps)
        return replace(found, seconds={"large": [1.0] * calls, "small": [0.5] * calls})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedules, "calibrate", steady)
        yield


@pytest.fixture
def _uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply-accumulates are not counted, which takes longer than all else and is looked at elsewhere."""
    found = Counts(STEPS, 2 * STEPS, {"unet": Count(2, 1)}), Stats(("large",) * STEPS)
    monkeypatch.setattr(comparing, "_count", lambda *_: found)


@pytest.fixture(scope="module")
def said(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """The run directory of everything at once, and what the command said."""
    folder = tmp_path_factory.mktemp("switch")
    thirds = [{"unet": "large", "until": 1}, {"unet": "reuse", "until": 2}, {"unet": "small"}]
    more = {
        "parts": PARTS,
        "sweep": [{"name": "thirds", "by": "step", "series": "mine", "parts": thirds}],
        "ratios": {"unets": ["large", "small"], "shares": [0, 0.5, 1]},
        "search": {"budgets": [0.9, 0.6], "prompts": 2},
    }
    return folder / "run", ran(folder, {**settings, **more, "out": str(folder / "run")})


@pytest.fixture(scope="module")
def run(said: tuple[Path, Said]) -> Path:
    assert said[1].code == 0, said[1].err
    return said[0]


def schedule(model: Path) -> dict[str, Any]:
    """What a written model says of who serves."""
    held: dict[str, Any] = json.loads((model / "asdm.json").read_text())["patches"][0]
    assert held.pop("kind") == "unet-schedule"
    return held


def test_stdout_is_the_path_and_the_rest_is_told_to_people(said: tuple[Path, Said], run: Path) -> None:
    assert (said[1].code, said[1].out) == (0, f"{run}\n")
    assert all(words in said[1].text for words in ("Who serves which call", "ssll", "small until timestep 500"))
    found = {each.name for each in run.iterdir()}
    assert found >= {"model", "report.json", "report.html", "recipe.yaml", "samples", "recipes"}
    assert "search" not in found, "pictures of schedules that were not chosen are of no use"


def test_everybody_is_measured(run: Path) -> None:
    report = read(run)
    names = ["large", "2 steps", "small", switch.SCHEDULE, "thirds"]
    names += ["small first 50%", "small last 50%", "searched 0.9", "searched 0.6"]
    assert list(report.setups) == names
    series = {name: facts.get("series", name) for name, facts in report.setups.items()}
    assert list(series.values()) == [
        *("plain", "fewer steps", "one UNet", "by hand", "mine"),
        *("compressed first", "original first", "searched", "searched"),
    ]
    share = figures(report, "macs_share")
    assert share["large"] == 1
    assert share["small last 50%"] == pytest.approx(share["small first 50%"])
    assert share["small first 50%"] == pytest.approx((1 + share["small"]) / 2)
    assert share["thirds"] == pytest.approx((1 + 2 * share["small"]) / 4)
    psnr = figures(report, "psnr_db")
    assert list(psnr) == names[1:], "the first is not compared with itself"
    assert all(each > 0 for each in psnr.values())
    assert figures(report, "image_speedup").keys() == psnr.keys()
    (timeline,) = report.timelines
    assert (timeline.rows[switch.SCHEDULE], timeline.rows["thirds"]) == ("ssll", "l·ss")
    assert (timeline.rows["small first 50%"], timeline.rows["small last 50%"]) == ("ssll", "llss")
    assert "large" not in timeline.rows, "who serves alone needs no picture"


def test_what_was_searched_is_told(run: Path) -> None:
    report = read(run)
    shares, psnr, fixed, tried = (
        {budget: figures(report, metric, f"budget/{budget}") for budget in ("0.9", "0.6")}
        for metric in ("time_share", "psnr_db", "best_fixed_db", "schedules_tried")
    )
    for budget, share in shares.items():
        name = f"searched {budget}"
        assert share.keys() == {name}
        assert share[name] <= float(budget)
        assert psnr[budget][name] >= fixed[budget].get(name, 0)
        assert tried[budget][name] >= 1
    assert fixed["0.9"], "one of the fixed ones keeps to it"
    curves = {each.of: each.at for each in report.records if each.metric == "call_error"}
    assert curves == {"UNet/small": 3, "UNet/reuse": 3, "UNet/extrapolate": 3}
    assert figures(report, "early_error", "calibrated/large") == {"large": 0}
    assert figures(report, "early_error", "calibrated/small")["large"] > 0
    assert report.protocols["search"]["pictures"] == 2
    assert report.protocols["search"]["prompts"] != report.protocols["quality"]["prompts"]


def test_model_carries_the_schedule_of_the_recipe(run: Path, tiny_pipeline: Path, tiny_small: Path) -> None:
    assert schedule(run / "model") == {"parts": PARTS, "unets": ["large", "small"]}
    step = json.loads((run / "model/asdm.json").read_text())["history"][-1]
    assert step["measured_with"] == {"sampler": "own", "steps": STEPS, "guidance": 3.0}
    pipe = asdm_cli.load(str(tiny_pipeline), "cpu")
    before = picture(pipe, 4)
    with asdm_cli.switch(pipe, {"large": pipe.unet, "small": str(tiny_small)}, PARTS):
        wanted = picture(pipe, 4)
    mine = picture(asdm_cli.load(str(run), "cpu"), 4)
    assert torch.equal(mine, wanted)
    assert not torch.equal(mine, before)


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
        wanted = pixels(run / "samples/searched 0.6" / f"{index:06}.png")
        assert pixels(tmp_path / "again/samples" / switch.SCHEDULE / f"{index:06}.png") == wanted


@pytest.mark.usefixtures("_uncounted")
def test_a_search_gives_the_model_its_schedule(recipe: Callable[..., SwitchRecipe], tmp_path: Path) -> None:
    asked = recipe(search={"budgets": [0.8], "prompts": 1, "nulls": False}, offload=True, fewer_steps=[])
    report = switch.run(switch.plan(asked), Run(tmp_path))
    held = schedule(tmp_path / "model")
    (file,) = (tmp_path / "recipes").iterdir()
    assert held["parts"] == yaml.safe_load(file.read_text())["parts"]
    assert held["offload"] is True
    assert {part["unet"] for part in held["parts"]} <= {"large", "small"}, "no call is skipped"
    assert str(report.facts["model"]).startswith("in the written model serve: ")


@pytest.mark.usefixtures("_uncounted")
def test_who_serves_nothing_is_not_written(recipe: Callable[..., SwitchRecipe], tmp_path: Path) -> None:
    parts = [{"unet": "large", "until": 500}, {"unet": "reuse"}]
    switch.run(switch.plan(recipe(parts=parts, fewer_steps=[])), Run(tmp_path))
    assert schedule(tmp_path / "model")["unets"] == ["large"]
    assert not (tmp_path / "model/unets").exists()


def test_dry_run_shows_who_serves_what_and_writes_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    more = {"parts": PARTS, "search": {"prompts": 1}, "out": str(tmp_path / "run")}
    told = ran(tmp_path, {**settings, **more}, "--dry-run")
    assert (told.code, told.out) == (0, "")
    wanted = ("ssll", "searched 0.9", "small until timestep 500", "Who serves which call", "parameters")
    assert all(words in told.text for words in wanted), told.text
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


def test_unets_of_other_training_are_told(
    recipe: Callable[..., SwitchRecipe], tiny_small: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_small, tmp_path / "other")
    for folder, file, key, value in (
        ("scheduler", "scheduler_config.json", "prediction_type", "v_prediction"),
        ("vae", "config.json", "scaling_factor", 1.0),
    ):
        held = json.loads((other / folder / file).read_text())
        (other / folder / file).write_text(json.dumps({**held, key: value}))
    large = recipe(parts=PARTS).unets["large"].model
    told = faults(recipe(parts=PARTS, unets={"large": {"model": large}, "small": {"model": str(other)}}))
    assert told == [
        f"unets: {key} must be the same everywhere: large has {own} ({large}/{at}); small has {others} ({other}/{at})"
        for key, at, own, others in (
            ("scaling_factor of the vae", "vae/config.json", "0.18215", "1.0"),
            ("prediction_type of the scheduler", "scheduler/scheduler_config.json", "'epsilon'", "'v_prediction'"),
        )
    ]


def test_what_a_scheduler_does_not_say_is_its_default(
    recipe: Callable[..., SwitchRecipe], tiny_small: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_small, tmp_path / "other")
    file = other / "scheduler/scheduler_config.json"
    held = json.loads(file.read_text())
    assert held.pop("prediction_type") == "epsilon"
    file.write_text(json.dumps(held))
    large = recipe(parts=PARTS).unets["large"].model
    switch.plan(recipe(parts=PARTS, unets={"large": {"model": large}, "small": {"model": str(other)}}))


def test_a_search_does_not_weigh_answers_beside_guidance_that_is_left_out(
    recipe: Callable[..., SwitchRecipe], tiny_pipeline: Path, tmp_path: Path
) -> None:
    guidance = {"kind": "guidance-schedule", "start": 700}
    asked = {"verb": "inherit", "model": str(tiny_pipeline), "patches": [guidance], "measure": False}
    assert ran(tmp_path, {**asked, "out": str(tmp_path / "guided")}).code == 0
    unets = {**recipe(parts=PARTS).model_dump()["unets"], "large": {"model": str(tmp_path / "guided")}}
    (told,) = faults(recipe(unets=unets, search={"prompts": 1}))
    assert told.startswith("search: weighs answers at every call, and large carries guidance that is left out")


def test_a_plan_that_was_fitted_to_all_calls_is_refused_with_a_way_out(
    recipe: Callable[..., SwitchRecipe], tiny_pipeline: Path, tmp_path: Path
) -> None:
    model = carrying(tiny_pipeline, tmp_path / "fitted", fitted("DDIMScheduler", [900.0, 500.0, 100.0]))
    own = recipe(parts=PARTS).model_dump()["unets"]
    (told,) = faults(recipe(parts=PARTS, unets={**own, "large": {"model": str(model)}}))
    assert told.startswith("unets.large: its plan was fitted to all calls of a generation, and here UNets take turns")
    words = told.rpartition("(asdm ")[2].removesuffix(")").replace("DIR", str(tmp_path / "plain")).split()
    assert asdm(*words).code == 0
    switch.plan(recipe(parts=PARTS, unets={**own, "large": {"model": str(tmp_path / "plain")}}))


def test_a_budget_that_nothing_keeps_to_ends_the_run_before_it_draws(
    recipe: Callable[..., SwitchRecipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "draw", None)
    asked = recipe(search={"budgets": [0.9, 0.1, 0.05], "prompts": 1, "nulls": False})
    message = r"search.budgets: no schedule of these UNets keeps to 0.1, 0.05 of the first.* takes 0.50 "
    with pytest.raises(RunError, match=message):
        switch.run(switch.plan(asked), Run(tmp_path))


# Going on


@pytest.mark.usefixtures("_uncounted")
def test_an_interrupted_run_goes_on(
    settings: dict[str, Any], tmp_path: Path, drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the search's pictures, then in those of the measurement, then in the timing."""
    file = tmp_path / "recipe.yaml"
    more = {"search": {"budgets": [0.8], "prompts": 1}, "fewer_steps": [], "out": str(tmp_path / "run")}
    file.write_text(yaml.safe_dump({**settings, **more}))
    drawing.before = 2
    assert asdm("switch", file).code == 130
    calibrated = tmp_path / ".run.partial/search/calibration.json"
    held = calibrated.read_bytes()
    monkeypatch.setattr(schedules, "calibrate", None)
    with monkeypatch.context() as broken:
        broken.setattr(comparing, "image_times", None)
        assert asdm("switch", file).code == 1
    sought = len([each for each in calibrated.parent.iterdir() if each.is_dir()])
    wanted = 2 + sought - 1 + 3 * 2
    assert len(drawing.indices) == wanted, "all but the first of the search's, and large, small, searched"
    assert calibrated.read_bytes() == held
    assert asdm("switch", file).code == 0, "after an end in the middle of the timing"
    assert len(drawing.indices) == wanted


def test_generate_draws_the_pictures_that_were_measured(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    assert asdm("generate", run, *PROMPTS[:2], "--steps", STEPS, "--device", "cpu", "--out", out).code == 0
    for index in range(2):
        mine = pixels(out / f"{index:03}.png")
        assert mine == pixels(run / "samples" / switch.SCHEDULE / f"{index:06}.png")
        assert mine != pixels(run / "samples/large" / f"{index:06}.png")
