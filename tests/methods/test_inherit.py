"""`asdm inherit` from the command line: what it writes, what others make of that, faults, going on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from PIL import Image

import asdm_cli
from asdm_cli.console import console
from asdm_cli.errors import ModelError
from asdm_cli.measure import drawing, players, ways
from asdm_cli.methods import inherit
from asdm_cli.recipe.verbs import InheritRecipe
from asdm_cli.report.run_directory import Run
from tests.apart import shared
from tests.carrying import every
from tests.forking import plain
from tests.typed import Said, asdm

PLAN = every(2, "up.3", order=1)
LEVELS = {"levels": {"last": {"nodes": "up.3"}, "cross": {"nodes": "*.cross"}}, "intervals": [2, 3]}
PROMPTS = ["a fox", "an owl"]
PLAIN_DRAWS = """
import sys
import numpy, torch
from diffusers import StableDiffusionPipeline

for folder in sys.argv[1:3]:
    pipe = StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, safety_checker=None)
    noise = torch.Generator().manual_seed(0)
    drawn = pipe("a fox", num_inference_steps=4, generator=noise, output_type="np").images
    numpy.save(f"{sys.argv[3]}/{len(folder)}.npy", drawn)
assert not any(name.startswith("asdm") for name in sys.modules)
"""


@pytest.fixture(autouse=True)
def _loud_again() -> Iterator[None]:
    yield
    console.quiet = False


@pytest.fixture(scope="module")
def settings(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A quick recipe but for its plans."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    quick = {"fewer_steps": [2], "steps": 4, "repeats": 1, "bootstrap": 20, "metrics": ["psnr"]}
    model = {"model": str(tiny_pipeline), "prompts": str(prompts), "device": "cpu", "dtype": "float32"}
    return {"verb": "inherit", **quick, **model, "out": "runs/x"}


@pytest.fixture(scope="module")
def said(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """The run directory of a plan, and what the command said."""
    folder = tmp_path_factory.mktemp("inherit")
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({**settings, "plan": PLAN, "out": str(folder / "run")}))
    return folder / "run", asdm("inherit", file)


@pytest.fixture(scope="module")
def run(said: tuple[Path, Said]) -> Path:
    return said[0]


def pixels(file: Path) -> bytes:
    with Image.open(file) as picture:
        return picture.tobytes()


def draw(pipe: Any) -> numpy.ndarray:
    noise = torch.Generator().manual_seed(0)
    return pipe("a fox", num_inference_steps=4, generator=noise, output_type="np").images


def test_stdout_is_the_path_and_the_rest_is_told_to_people(said: tuple[Path, Said], tiny_pipeline: Path) -> None:
    path, told = said
    assert (told.code, told.out) == (0, f"{path}\n")
    assert "Speed and fidelity" in told.err
    assert {each.name for each in path.iterdir()} >= {"model", "report.json", "report.html", "recipe.yaml", "pictures"}
    assert not shared(path, tiny_pipeline)


def test_report_compares_the_plan_with_fewer_steps(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    parts = {part["title"]: part for part in report["parts"]}
    rows = {row["name"]: row for row in parts["Speed and fidelity"]["rows"]}
    assert list(rows) == ["plain", "2 steps", inherit.PLAN]
    assert [row["steps"] for row in rows.values()] == [4, 2, 4]
    assert rows["plain"]["unet_macs_share"] == 1
    assert rows["2 steps"]["unet_macs_share"] == pytest.approx(0.5)
    assert 0 < rows[inherit.PLAN]["unet_macs_share"] < 1
    assert rows[inherit.PLAN]["cache_mb"] > 0
    assert "psnr_db" not in rows["plain"], "it is not compared with itself"
    assert 0 < rows["2 steps"]["psnr_db"]["value"] < rows[inherit.PLAN]["psnr_db"]["value"] < 100
    timeline = parts["What each UNet call computes"]
    lines = dict(zip(timeline["rows"], timeline["cells"], strict=True))
    assert lines == {"time … up.3.2.resnet": "cdcd", "up.3.2.attn": "cici", "conv_out": "cccc"}
    grid = parts["The same prompts and seeds"]
    assert (grid["columns"], grid["rows"]) == (list(rows), PROMPTS)
    assert all((run / cell).is_file() for row in grid["pictures"] for cell in row)
    assert report["cards"]["figures"]["pictures"] == 2


def test_model_carries_the_plan_and_its_history(run: Path) -> None:
    held = json.loads((run / "model/asdm.json").read_text())
    assert [step["verb"] for step in held["history"]] == ["inherit"]
    (rule,) = held["inherit"]["rules"]
    assert (rule["nodes"], rule["order"], rule["schedule"]["interval"]) == ("up.3", 1, 2)


def test_plain_diffusers_draws_the_plain_models_pictures(run: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    model = run / "model"
    assert len(str(model)) != len(str(tiny_pipeline))
    told = plain(PLAIN_DRAWS, model, tiny_pipeline, tmp_path, cwd=tmp_path)
    assert told.code == 0, told.err[-2000:]
    mine, theirs = (numpy.load(tmp_path / f"{len(str(folder))}.npy") for folder in (model, tiny_pipeline))
    assert numpy.array_equal(mine, theirs)
    assert not numpy.array_equal(mine, draw(asdm_cli.load(str(run), "cpu")))


def test_load_draws_by_the_plan(run: Path, tiny_pipeline: Path) -> None:
    plain = asdm_cli.load(str(tiny_pipeline), "cpu")
    before = draw(plain)
    with asdm_cli.inherit(plain, PLAN):
        wanted = draw(plain)
    assert numpy.array_equal(draw(asdm_cli.load(str(run), "cpu")), wanted)
    assert not numpy.array_equal(wanted, before)


def test_generate_draws_by_the_plan(run: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    for name, model in (("mine", run), ("plain", tiny_pipeline)):
        out = tmp_path / name
        assert asdm("generate", model, *PROMPTS, "--steps", 4, "--device", "cpu", "--out", out).code == 0
    for index in range(2):
        drawn = [pixels(tmp_path / name / f"{index:03}.png") for name in ("mine", "plain")]
        wanted = [pixels(run / "pictures" / name / f"{index:06}.png") for name in (inherit.PLAN, "plain")]
        assert drawn == wanted
        assert drawn[0] != drawn[1]


def test_a_pruned_model_keeps_the_history_and_not_the_plan(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "prune.yaml"
    file.write_text(yaml.safe_dump({"verb": "prune", "model": str(run), "remove": "base", "out": str(tmp_path / "x")}))
    assert asdm("prune", file).code == 0
    held = json.loads((tmp_path / "x/model/asdm.json").read_text())
    assert [step["verb"] for step in held["history"]] == ["inherit", "prune"]
    assert "inherit" not in held
    assert draw(asdm_cli.load(str(tmp_path / "x"), "cpu")).shape == (1, 32, 32, 3)


def test_dry_run_shows_rules_and_calls_and_writes_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    plan = {"preset": "deepcache", "branch": 1, "interval": 2}
    file.write_text(yaml.safe_dump({**settings, "plan": plan, "out": str(tmp_path / "run")}))
    told = asdm("inherit", file, "--dry-run")
    assert (told.code, told.out) == (0, "")
    assert all(words in told.err for words in ("Rules", "deepcache.1", "every 2", "What each UNet call computes"))
    assert [each.name for each in tmp_path.iterdir()] == ["recipe.yaml"]


# Gate 3


@pytest.fixture
def recipe(settings: dict[str, Any]) -> Callable[..., InheritRecipe]:
    return lambda **changes: InheritRecipe.model_validate({**settings, **changes})


def faults(recipe: InheritRecipe) -> list[str]:
    with pytest.raises(ModelError) as caught:
        inherit.plan(recipe)
    return str(caught.value).splitlines()


def test_plans_that_do_not_fit_are_told_all_at_once(recipe: Callable[..., InheritRecipe]) -> None:
    twice = {"rules": [*every(2, "up.3")["rules"], *every(3, "up.3.1")["rules"]]}
    sweep = [
        {"name": "good", "plan": every(2)},
        {"name": "no such place", "plan": every(2, ["up.3", "up.9"])},
        {"name": "owns nothing", "plan": twice},
        {"name": "plain", "plan": every(2)},
        {"name": "2 steps", "plan": every(3)},
    ]
    product = {
        "levels": {"fine": {"nodes": "up.3"}, "deep": {"nodes": "deepcache.99"}},
        "intervals": [2, 3],
        "modes": ["uniform", "late"],
    }
    told = faults(recipe(plan=every(2, "nowhere"), sweep=sweep, product=product))
    starts = [
        "plan.rules[0].nodes: ",
        "sweep[1].plan.rules[0].nodes: ",
        "sweep[2].plan.rules[1].nodes: every node it names belongs to an earlier rule",
        "product.levels.deep.rules[0].nodes: deepcache.99: this UNet has the branches 0 to 11",
        "name '2 steps' is taken by another way to draw",
        "name 'plain' is taken by another way to draw",
    ]
    assert len(told) == len(starts), told
    assert all(line.startswith(start) for line, start in zip(told, starts, strict=True)), told
    assert "up.9" in told[1]


def test_the_converged_pictures_have_a_name_of_their_own(recipe: Callable[..., InheritRecipe]) -> None:
    sweep = [{"name": "converged", "plan": every(2)}]
    assert len(inherit.plan(recipe(sweep=sweep)).players) == 3
    assert faults(recipe(sweep=sweep, converged=6)) == [
        "name 'converged' is taken by another way to draw; choose another"
    ]


def test_deepcache_must_be_installed(recipe: Callable[..., InheritRecipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(players, "find_spec", lambda _: None)
    (told,) = faults(recipe(plan=PLAN, deepcache={"intervals": [2]}))
    assert told.startswith("the DeepCache package is not installed; pip install ")
    assert inherit.plan(recipe(plan=PLAN))


def test_what_is_not_there_is_told(recipe: Callable[..., InheritRecipe], tiny_pipeline: Path, tmp_path: Path) -> None:
    (told,) = faults(recipe(plan=PLAN, model=str(tiny_pipeline / "unet")))
    assert "must be a whole StableDiffusionPipeline" in told
    (told,) = faults(recipe(plan=PLAN, prompts=str(tmp_path / "none.txt")))
    assert "none.txt: no such file" in told


def test_ways_to_draw(recipe: Callable[..., InheritRecipe]) -> None:
    pytest.importorskip("DeepCache")
    sweep = [{"name": "short", "steps": 3, "plan": PLAN, "series": "mine"}]
    asked = recipe(plan=PLAN, sweep=sweep, product=LEVELS, deepcache={"intervals": [2], "branches": [0, 1]})
    found = {player.name: player for player in inherit.plan(asked).players}
    assert list(found) == [
        *("plain", "2 steps", inherit.PLAN, "short", "last, uniform 2", "last, uniform 3"),
        *("cross, uniform 2", "cross, uniform 3", "DeepCache 0, every 2", "DeepCache 1, every 2"),
    ]
    assert (found["short"].steps, found["short"].series) == (3, "mine")
    assert found["DeepCache 1, every 2"].package == (2, 1)
    assert {name for name, player in found.items() if player.nodes is None and player.package is None} == {
        "plain",
        "2 steps",
    }


@pytest.mark.parametrize(("steps", "wanted"), [(50, [40, 32, 25, 18, 10]), (4, [3, 2, 1]), (1, [])])
def test_fewer_steps_are_chosen_where_none_are_named(
    recipe: Callable[..., InheritRecipe], steps: int, wanted: list[int]
) -> None:
    found = inherit.plan(recipe(plan=PLAN, fewer_steps=None, steps=steps)).players
    assert [player.steps for player in found if player.series == players.FEWER] == wanted


# Going on


class Stopped(Exception):
    pass


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


def drawn(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): pixels(file) for file in sorted((folder / "pictures").rglob("*.png"))}


def test_an_interrupted_run_goes_on_and_ends_with_the_same_pictures(
    settings: dict[str, Any], run: Path, tmp_path: Path, count: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**settings, "plan": PLAN, "out": str(tmp_path / "run")}))
    counted = drawing.pictures

    def killed(*args: Any, **more: Any) -> Iterator[tuple[int, Image.Image]]:
        for index, picture in counted(*args, **more):
            if len(count) == 4:
                raise KeyboardInterrupt
            yield index, picture

    with monkeypatch.context() as broken:
        broken.setattr(drawing, "pictures", killed)
        assert asdm("inherit", file).code == 130
    assert len(drawn(tmp_path / ".run.partial")) == 3
    with monkeypatch.context() as broken:
        broken.setattr(ways, "take_turns", stop)
        assert asdm("inherit", file).code == 1
    assert not (tmp_path / "run").exists()
    assert sorted(count[4:]) == [0, 1, 1], "only what was missing"
    count.clear()
    assert asdm("inherit", file).code == 0, "after an end in the middle of the timing"
    assert count == []
    assert drawn(tmp_path / "run") == drawn(run)
    assert (tmp_path / "run/model/asdm.json").read_text() == (run / "model/asdm.json").read_text()


def stop(*_: object, **__: object) -> Any:
    raise Stopped


@pytest.mark.parametrize(
    ("changes", "indices"),
    [({"plan": every(3)}, [0, 1]), ({"steps": 5}, [0, 1] * 2), ({"fewer_steps": [3]}, [0, 1]), ({}, [])],
    ids=["plan", "steps", "fewer steps", "nothing"],
)
def test_pictures_of_another_plan_are_not_gone_on_with(
    recipe: Callable[..., InheritRecipe],
    tmp_path: Path,
    count: list[int],
    changes: dict[str, Any],
    indices: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ways, "judge_of", stop)
    for asked, wanted in (({}, [0, 1] * 3), (changes, indices)):
        count.clear()
        with pytest.raises(Stopped):
            inherit.run(inherit.plan(recipe(**{"plan": PLAN, **asked})), Run(tmp_path))
        assert count == wanted


def test_every_way_to_draw_in_one_report(recipe: Callable[..., InheritRecipe], tmp_path: Path) -> None:
    pytest.importorskip("DeepCache")
    asked = recipe(
        sweep=[{"name": "order 0", "plan": every(2), "series": "ablation"}],
        product=LEVELS,
        deepcache={"intervals": [2]},
        converged=6,
        sampler="ddim",
    )
    report = inherit.run(inherit.plan(asked), Run(tmp_path))
    parts = {part.title: part for part in report.parts}
    levels: Any = parts["Level, mode and interval"]
    assert [(row["nodes"], row["mode"]) for row in levels.rows] == [("last", "uniform"), ("cross", "uniform")]
    assert all({column.key for column in levels.columns} == set(row) for row in levels.rows)
    figures: Any = parts["Speed and fidelity"]
    assert "psnr_converged_db" in figures.rows[0], "the plain model is compared with the solution too"
    plots = [part for part in report.parts if type(part).__name__ == "Scatter"]
    assert len(plots) == 2
    for plot in plots:
        assert {point.series for point in plot.points} >= {"asdm", "DeepCache", "fewer steps", "ablation"}
    assert not (tmp_path / "model").exists(), "a sweep only compares"
