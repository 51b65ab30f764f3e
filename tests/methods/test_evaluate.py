"""`eval` from recipe to report over tiny pipelines, and everything that it refuses before it draws."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from asdm_cli.errors import ModelError
from asdm_cli.measure import features
from asdm_cli.methods import evaluate
from asdm_cli.recipe.verbs import EvalContestant, EvalRecipe
from asdm_cli.report.document import Grid, Interval, Report, Scatter, Table
from asdm_cli.report.run_directory import Run
from tests.measure.shard import sample, write_shard

THINGS = ("cat", "dog", "fox", "hen", "owl", "pig")
FIGURES = ["clip_score", "clip_retrieval", "psnr", "ssim"]


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six samples of two splits; 40 pixels wide, so that they have to be fitted."""
    samples = {
        f"{i:03}": sample(f"a {thing}", (40 * i, 128, 250 - 40 * i), ("seen", "new")[i % 2], size=40)
        for i, thing in enumerate(THINGS)
    }
    return write_shard(tmp_path_factory.mktemp("shards") / "made-up.tar", samples)


def recipe(model: Path, prompts: Path, **changes: Any) -> EvalRecipe:
    models = [EvalContestant(name="slow", model=str(model)), EvalContestant(name="hasty", model=str(model), steps=1)]
    few = {"steps": 2, "device": "cpu", "bootstrap": 20, "grid": 2, "limit": 5, "metrics": FIGURES}
    return EvalRecipe(**{"verb": "eval", "models": models, "prompts": str(prompts), "out": "runs/x", **few, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def report(tiny_pipeline: Path, shard: Path, folder: Path) -> Report:
    return evaluate.run(evaluate.plan(recipe(tiny_pipeline, shard)), Run(folder))


def table(report: Report, title: str) -> Table:
    (found,) = (part for part in report.parts if part.title == title)
    assert isinstance(found, Table)
    return found


def test_plan_says_what_will_be_drawn(tiny_pipeline: Path, shard: Path) -> None:
    planned = evaluate.plan(recipe(tiny_pipeline, shard)).report()
    (drawn,) = planned.parts
    assert isinstance(drawn, Table)
    assert drawn.title == "What is drawn: 5 pictures each, at 32 x 32 pixels"
    assert [(row["name"], row["steps"], row["guidance"]) for row in drawn.rows] == [("slow", 2, 3.0), ("hasty", 1, 3.0)]
    assert "6 real pictures" in planned.summary


def test_figures_of_every_set_of_pictures(report: Report) -> None:
    worth = table(report, "What the pictures are worth")
    assert [row["name"] for row in worth.rows] == ["slow", "hasty", evaluate.VAE, evaluate.REAL]
    keys = ["clip_score", "recall_at_1", "recall_at_5", "psnr_db", "ssim"]
    assert [column.key for column in worth.columns] == ["name", "steps", "macs_g", *keys]
    assert [[key for key in keys if key in row] for row in worth.rows] == [keys[:3], keys, keys[:3], keys[:3]]
    figures = [cell for row in worth.rows for cell in row.values() if isinstance(cell, Interval)]
    assert len(figures) == 4 * 3 + 2
    assert all(figure.low <= figure.high for figure in figures)
    assert [row["recall_at_5"].value for row in worth.rows] == [1.0] * 4, "there are five prompts"  # type: ignore[union-attr]


def test_cost_is_counted_by_steps(report: Report) -> None:
    slow, hasty, *real = table(report, "What the pictures are worth").rows
    assert (slow["steps"], hasty["steps"]) == (2, 1)
    assert slow["macs_g"] == pytest.approx(2 * hasty["macs_g"])  # type: ignore[operator]
    assert [row["macs_g"] for row in real] == [None, None]


def test_splits_are_told_apart(report: Report) -> None:
    rows = table(report, "The parts of the data apart").rows
    assert [row["split"] for row in rows] == ["new"] * 4 + ["seen"] * 4
    assert all(isinstance(row["clip_score"], Interval) for row in rows)


def test_grid_shows_the_same_prompts_side_by_side(report: Report) -> None:
    (grid,) = (part for part in report.parts if isinstance(part, Grid))
    assert grid.columns == [evaluate.REAL, evaluate.VAE, "slow", "hasty"]
    assert grid.rows == ["a cat", "a dog"]
    files = [file for row in grid.pictures for file in row]
    assert len(files) == 8
    assert all(file is not None and file.is_file() for file in files)


def test_cards_say_how_and_that_the_contestants_differ(report: Report) -> None:
    assert set(report.cards) == {"figures", "pictures of slow", "pictures of hasty"}
    card = report.cards["figures"]
    assert card["pictures"] == 5
    assert card["resolution"] == "32 x 32"
    assert "steps" not in card, "only what all share is said of all"
    assert [report.cards[f"pictures of {name}"]["steps"] for name in ("slow", "hasty")] == [2, 1]
    assert "differ in steps (slow: 2, hasty: 1)" in table(report, "What the pictures are worth").note


def test_report_can_be_written(report: Report, folder: Path) -> None:
    Run(folder).write(report)
    data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert data["verb"] == "eval"
    assert (folder / "report.html").stat().st_size > 1000


def test_going_on_redraws_the_damaged_picture_alone(
    tiny_pipeline: Path, shard: Path, folder: Path, report: Report
) -> None:
    files = sorted((folder / "pictures").rglob("*.png"))
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    damaged = files[3]
    damaged.write_bytes(before[damaged][0][:-20])
    again = evaluate.run(evaluate.plan(recipe(tiny_pipeline, shard)), Run(folder))
    assert again == report
    assert len(files) == 10
    assert damaged.read_bytes() == before[damaged][0]
    assert [file for file in files if file.stat().st_mtime_ns != before[file][1]] == [damaged]


@pytest.mark.usefixtures("report")
def test_distances_to_the_real_pictures(tiny_pipeline: Path, shard: Path, folder: Path) -> None:
    """By the tiny CLIP's features; draws nothing new and looks at each set once."""
    measured = recipe(tiny_pipeline, shard, metrics=["kid", "fd"], features="clip")
    distances = evaluate.run(evaluate.plan(measured), Run(folder))
    worth = table(distances, "What the pictures are worth")
    assert [[key in row for key in ("kid", "fd")] for row in worth.rows] == [[True, True]] * 3 + [[True, False]]
    assert "FD is far too high below 2000 pictures (here 5)" in worth.note
    (scatter,) = (part for part in distances.parts if isinstance(part, Scatter))
    assert [point.label for point in scatter.points] == ["slow", "hasty"]
    assert len(list((folder / "features").iterdir())) == 4
    assert distances.cards["figures"]["feature_network"] == "CLIP image tower"
    assert evaluate.run(evaluate.plan(measured), Run(folder)) == distances


def test_prompts_alone_have_no_real_rows(tiny_pipeline: Path, tmp_path: Path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("a cat\na dog\n")
    alone = [EvalContestant(name="only", model=str(tiny_pipeline), steps=1)]
    report = evaluate.run(
        evaluate.plan(recipe(tiny_pipeline, lines, models=alone, metrics=["clip_score"])), Run(tmp_path / "run")
    )
    assert [row["name"] for row in table(report, "What the pictures are worth").rows] == ["only"]
    assert set(report.cards) == {"figures"}
    assert report.cards["figures"]["steps"] == 1


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\na dog\n")
    return file


@pytest.mark.parametrize("metric", ["kid", "fd"])
def test_distances_need_real_pictures(tiny_pipeline: Path, lines: Path, metric: str) -> None:
    with pytest.raises(ModelError, match=rf"{metric} compare with real pictures, and .*prompts\.txt has none"):
        evaluate.plan(recipe(tiny_pipeline, lines, metrics=[metric]))


def test_distances_need_two_pictures(tiny_pipeline: Path, shard: Path) -> None:
    with pytest.raises(ModelError, match="need two pictures or more; raise `limit`"):
        evaluate.plan(recipe(tiny_pipeline, shard, metrics=["kid"], limit=1))


def test_an_unknown_reference_is_refused_without_the_recipe_check_too(tiny_pipeline: Path, lines: Path) -> None:
    with pytest.raises(ValueError, match="no contestant is called 'nobody'"):
        recipe(tiny_pipeline, lines, reference="nobody")
    unchecked = recipe(tiny_pipeline, lines).model_copy(update={"reference": "nobody"})
    with pytest.raises(ModelError, match="no contestant is called 'nobody'; it is one of slow, hasty"):
        evaluate.plan(unchecked)


@pytest.mark.parametrize(
    ("network", "module"), [("inception", "torch_fidelity"), ("efficientnet_lite0", "efficientnet_lite_pytorch")]
)
def test_a_feature_network_that_is_not_installed(
    tiny_pipeline: Path, shard: Path, monkeypatch: pytest.MonkeyPatch, network: str, module: str
) -> None:
    monkeypatch.setattr(features, "find_spec", lambda _module: None)
    with pytest.raises(ModelError, match=f"{network} needs {module}, which is not installed: pip install"):
        evaluate.plan(recipe(tiny_pipeline, shard, metrics=["kid"], features=network))


def test_inception_score_needs_classes(tiny_pipeline: Path, shard: Path) -> None:
    with pytest.raises(ModelError, match="is needs a network that knows classes"):
        evaluate.plan(recipe(tiny_pipeline, shard, metrics=["is"], features="clip"))


def test_a_model_without_clip(tiny_pipeline: Path, lines: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(tiny_pipeline, tmp_path / "bare", ignore=shutil.ignore_patterns("clip")))
    with pytest.raises(ModelError, match="bare: has no folder clip/; give a CLIP's directory as `clip`"):
        evaluate.plan(recipe(bare, lines))
    given = evaluate.plan(recipe(bare, lines, clip=str(tiny_pipeline)))
    assert given.clip == tiny_pipeline / "clip"
    assert evaluate.plan(recipe(bare, lines, metrics=["psnr"])).clip is None


def test_a_folder_that_is_no_clip(tiny_pipeline: Path, lines: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json; give a transformers CLIP directory"):
        evaluate.plan(recipe(tiny_pipeline, lines, clip=str(tmp_path)))


def test_a_unet_alone_cannot_draw(tiny_pipeline: Path, lines: Path) -> None:
    with pytest.raises(ModelError, match="contestant 'slow' must be a whole StableDiffusionPipeline"):
        evaluate.plan(recipe(tiny_pipeline / "unet", lines))


def test_sizes_must_be_drawable_and_alike(tiny_pipeline: Path, lines: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="size: 33 is no multiple of 8, .* try 40"):
        evaluate.plan(recipe(tiny_pipeline, lines, size=33))
    big = Path(shutil.copytree(tiny_pipeline, tmp_path / "big"))
    config = big / "unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": 16}))
    both = [EvalContestant(name="small", model=str(tiny_pipeline)), EvalContestant(name="big", model=str(big))]
    with pytest.raises(ModelError, match=r"different sizes \(small: 32, big: 64\); give `size`"):
        evaluate.plan(recipe(tiny_pipeline, lines, models=both))
    assert evaluate.plan(recipe(tiny_pipeline, lines, models=both, size=40)).size == 40
