"""`eval` from recipe to report on tiny models: faults, figures, going on after an interruption, many processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from asdm_cli.report.document import Grid, Interval, Scatter, Table
from PIL import Image

from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.directory import find
from asdm_cli.models.metadata import record
from asdm_cli.recipe.load import dump
from asdm_cli.recipe.patches import read_plan
from asdm_cli.recipe.verbs import EvalContestant, EvalRecipe
from asdm_cli.report.run_directory import Run
from asdm_cli.sampling.generate import Share
from asdm_cli.sampling.image_set import ImageSet
from asdm_cli.unet.flops import macs
from asdm_cli.verbs import evaluate
from tests import tiny
from tests.carrying import carrying, every
from tests.drawings import drawing as example
from tests.drawings import png, shard
from tests.forking import ours, together

PROMPTS = 7
COUNTED = """
import sys
from asdm_cli.cli import main
from asdm_cli.verbs import evaluate

pictures = evaluate.draw


def counted(*given, **settings):
    for index, picture in pictures(*given, **settings):
        print(index)
        yield index, picture


evaluate.draw = counted
sys.exit(main(sys.argv[1:]))
"""
"""A command that says which pictures it draws."""
Drawn = dict[str, bytes]


@pytest.fixture(scope="module")
def other_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pipeline(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard(tmp_path_factory.mktemp("data") / "pairs.tar", 10)


@pytest.fixture
def recipe(tiny_pipeline: Path, data: Path) -> Callable[..., EvalRecipe]:
    """A quick recipe of one contestant, `one`; CLIP stands in for the feature network."""

    def make(**changes: Any) -> EvalRecipe:
        usual: dict[str, Any] = {
            "models": [EvalContestant(name="one", model=str(tiny_pipeline))],
            "prompts": str(data),
            "limit": PROMPTS,
            "features": "clip",
            "device": "cpu",
            "dtype": "float32",
            "steps": 2,
            "bootstrap": 50,
            "grid": 3,
            "out": "runs/x",
        }
        return EvalRecipe(verb="eval", **{**usual, **changes})

    return make


def drawn(run: Path, name: str = "one") -> Drawn:
    return {file.name: file.read_bytes() for file in sorted((run / "pictures" / name).glob("*.png"))}


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The index of every picture that is drawn from now on."""
    indices: list[int] = []
    real = evaluate.draw

    def counted(*args: Any, **settings: Any) -> Iterator[tuple[int, Image.Image]]:
        for index, picture in real(*args, **settings):
            indices.append(index)
            yield index, picture

    monkeypatch.setattr(evaluate, "draw", counted)
    return indices


def test_report_of_two_contestants(
    recipe: Callable[..., EvalRecipe], tiny_pipeline: Path, other_pipeline: Path, tmp_path: Path
) -> None:
    models = [
        EvalContestant(name="one", model=str(tiny_pipeline)),
        EvalContestant(name="two", model=str(other_pipeline), steps=3),
    ]
    wanted = ["kid", "fd", "clip_score", "clip_retrieval", "psnr", "ssim"]
    plan = evaluate.plan(recipe(models=models, metrics=wanted))
    report = evaluate.run(plan, Run(tmp_path))
    figures, splits, scatter, grid = report.parts
    assert isinstance(figures, Table)
    rows = {row["name"]: row for row in figures.rows}
    assert list(rows) == ["one", "two", "real, VAE reconstruction", "real pictures"]
    columns = [column.key for column in figures.columns]
    assert columns[3:] == ["kid", "fd", "clip_score", "recall_at_1", "recall_at_5", "psnr_db", "ssim"]
    assert set(rows["two"]) == set(columns)
    assert set(rows["one"]) == set(columns) - {"psnr_db", "ssim"}, "the reference is not compared with itself"
    assert set(rows["real pictures"]) == set(columns) - {"fd", "psnr_db", "ssim"}
    intervals = [cell for row in figures.rows for cell in row.values() if isinstance(cell, Interval)]
    assert len(intervals) == 5 + 7 + 5 + 4
    assert all(cell.low <= cell.high for cell in intervals)
    assert rows["two"]["macs_g"] == pytest.approx(1.5 * rows["one"]["macs_g"])  # type: ignore[operator]
    assert "differ in steps (one: 2, two: 3)" in figures.note
    assert "pictures of one" in figures.note
    assert "trust KID" in figures.note
    assert "steps" not in report.cards["figures"]
    assert report.cards["pictures of two"]["steps"] == 3
    assert isinstance(splits, Table)
    assert {(row["name"], row["split"]) for row in splits.rows} >= {("one", "novel-label"), ("two", "novel-style")}
    assert len(splits.rows) == 8
    assert isinstance(scatter, Scatter)
    assert [point.label for point in scatter.points] == ["one", "two"]
    assert isinstance(grid, Grid)
    assert grid.columns == ["real pictures", "real, VAE reconstruction", "one", "two"]
    files = [file for row in grid.pictures for file in row if file]
    assert len(files) == 3 * 4
    assert all(file.is_file() for file in files)


def test_a_plan_that_a_model_carries_is_drawn_and_counted(
    recipe: Callable[..., EvalRecipe], tiny_pipeline: Path, tmp_path: Path
) -> None:
    half = carrying(tiny_pipeline, tmp_path / "half", every(2))
    never = carrying(tiny_pipeline, tmp_path / "never", {"rules": [], "text_once": False})
    models = [EvalContestant(name=each.name, model=str(each)) for each in (tiny_pipeline, half, never)]
    plan = evaluate.plan(recipe(models=models, metrics=["psnr"], limit=2))
    table = evaluate.run(plan, Run(tmp_path / "run")).parts[0]
    assert isinstance(table, Table)
    plain, inherited, same = table.rows
    assert inherited["macs_g"] < plain["macs_g"]  # type: ignore[operator]
    assert same["macs_g"] == plain["macs_g"]
    assert drawn(tmp_path / "run", "half") != drawn(tmp_path / "run", "tiny")
    assert drawn(tmp_path / "run", "never") == drawn(tmp_path / "run", "tiny")


def test_a_guidance_distilled_unet_is_charged_for_the_rows_that_it_drew(
    recipe: Callable[..., EvalRecipe], tiny_pipeline: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    shutil.rmtree(model / "unet")
    config = tiny.shape("sd15", time_cond_proj_dim=8)
    tiny.unet(config).save_pretrained(model / "unet")
    models = [EvalContestant(name="one", model=str(tiny_pipeline)), EvalContestant(name="told", model=str(model))]
    plan = evaluate.plan(recipe(models=models, metrics=["psnr"], limit=1))
    figures = evaluate.run(plan, Run(tmp_path / "run")).parts[0]
    assert isinstance(figures, Table)
    rows = {row["name"]: row for row in figures.rows}
    assert rows["told"]["macs_g"] == pytest.approx(2 * macs(config, tokens=tiny.TOKENS).total / 1e9)
    assert rows["one"]["macs_g"] == pytest.approx(2 * 2 * macs(tiny.SHAPES["sd15"], tokens=tiny.TOKENS).total / 1e9)


def test_card_says_how_the_figures_were_made(
    recipe: Callable[..., EvalRecipe], data: Path, tmp_path: Path, tiny_pipeline: Path
) -> None:
    card = evaluate.run(evaluate.plan(recipe(seed=5)), Run(tmp_path)).cards["figures"]
    assert card["pictures"] == PROMPTS
    assert card["real_pictures"] == 10
    assert (card["resolution"], card["sampler"], card["steps"]) == ("32 x 32", "own: DDIMScheduler", 2)
    assert (card["guidance"], card["device"], card["dtype"]) == (3.0, "cpu", "float32")
    assert str(card["seed_rule"]).startswith("numpy SeedSequence([5, ")
    assert (card["feature_network"], card["feature_resize"]) == ("CLIP image tower", "32, bicubic, antialiased")
    assert str(card["prompts"]).startswith("pairs.tar (sha256 ")
    everything = " ".join(str(value) for value in card.values())
    assert str(data.parent) not in everything
    assert str(tiny_pipeline.parent) not in everything
    assert "torch 2" in everything


@pytest.mark.skipif(find_spec("efficientnet_lite_pytorch") is None, reason="the extra `features` is not installed")
def test_figures_of_the_efficientnet(recipe: Callable[..., EvalRecipe], tmp_path: Path) -> None:
    wanted = recipe(features="efficientnet_lite0", metrics=["kid", "is"], limit=4)
    table = evaluate.run(evaluate.plan(wanted), Run(tmp_path)).parts[0]
    assert isinstance(table, Table)
    assert [column.title for column in table.columns[3:]] == ["KID (EfficientNet-Lite0)", "IS (EfficientNet-Lite0)"]
    one = table.rows[0]
    assert isinstance(one["is"], Interval)
    assert 1 <= one["is"].value <= 4


def test_text_file_has_figures_without_real_pictures(recipe: Callable[..., EvalRecipe], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\nan owl\n")
    plan = evaluate.plan(recipe(prompts=str(prompts), metrics=["clip_score"]))
    report = evaluate.run(plan, Run(tmp_path / "run"))
    table, grid = report.parts
    assert isinstance(table, Table)
    assert [row["name"] for row in table.rows] == ["one"]
    assert isinstance(grid, Grid)
    assert grid.columns == ["one"]
    assert grid.rows == ["a fox", "an owl"]


def test_only_missing_and_damaged_pictures_are_drawn_again(
    recipe: Callable[..., EvalRecipe], tmp_path: Path, count: list[int]
) -> None:
    plan = evaluate.plan(recipe(metrics=["clip_score"]))
    evaluate.run(plan, Run(tmp_path))
    assert count == list(range(PROMPTS))
    whole = drawn(tmp_path)
    folder = tmp_path / "pictures/one"
    (folder / "000002.png").unlink()
    (folder / "000005.png").write_bytes(whole["000005.png"][:-20])
    count.clear()
    evaluate.run(plan, Run(tmp_path))
    assert count == [2, 5]
    assert drawn(tmp_path) == whole


def test_an_interrupted_run_goes_on_and_ends_with_the_same_pictures(
    recipe: Callable[..., EvalRecipe], tmp_path: Path, count: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = evaluate.plan(recipe(metrics=["clip_score"]))
    evaluate.run(plan, Run(tmp_path / "whole"))
    count.clear()
    counted = evaluate.draw

    def killed(*args: Any, **settings: Any) -> Iterator[tuple[int, Image.Image]]:
        for index, picture in counted(*args, **settings):
            if index == 3:
                raise KeyboardInterrupt
            yield index, picture

    with monkeypatch.context() as broken:
        broken.setattr(evaluate, "draw", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(plan, Run(tmp_path / "killed"))
    assert sorted(drawn(tmp_path / "killed")) == ["000000.png", "000001.png", "000002.png"]
    count.clear()
    evaluate.run(plan, Run(tmp_path / "killed"))
    assert count == [3, 4, 5, 6]
    assert drawn(tmp_path / "killed") == drawn(tmp_path / "whole")


@pytest.mark.parametrize("change", ["seed", "weights", "prompts", "plan"])
def test_pictures_of_another_origin_are_not_gone_on_with(
    recipe: Callable[..., EvalRecipe], tmp_path: Path, count: list[int], change: str, tiny_pipeline: Path
) -> None:
    model, data = tmp_path / "model", tmp_path / "pairs.tar"
    shutil.copytree(tiny_pipeline, model)
    usual: dict[str, Any] = {
        "models": [EvalContestant(name="one", model=str(model))],
        "prompts": str(shard(data, 4)),
        "metrics": ["clip_score"],
    }
    evaluate.run(evaluate.plan(recipe(**usual)), Run(tmp_path / "run"))
    if change == "weights":
        os.utime(model / "unet/diffusion_pytorch_model.safetensors", (1, 1))
    if change == "plan":
        record(find(str(model)), model, "inherit", read_plan(every(2)))
    if change == "prompts":
        shard(data, 4, {1: {"txt": b"another"}})
    seed = 1 if change == "seed" else 0
    count.clear()
    evaluate.run(evaluate.plan(recipe(**usual, seed=seed)), Run(tmp_path / "run"))
    assert count == [0, 1, 2, 3]


def test_pictures_that_a_process_did_not_draw_are_missed(
    recipe: Callable[..., EvalRecipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "draw", lambda *_args, **_settings: iter([]))
    with pytest.raises(RunError, match="'one': 7 of 7 pictures are missing"):
        evaluate.run(evaluate.plan(recipe()), Run(tmp_path))


def test_real_pictures_of_another_size_are_fitted(recipe: Callable[..., EvalRecipe], tmp_path: Path) -> None:
    wide = {0: {"png": png(example(0, 48).resize((96, 48)))}}
    prompts = shard(tmp_path / "large.tar", 5, wide, size=48)
    evaluate.run(evaluate.plan(recipe(prompts=str(prompts), metrics=["clip_score"])), Run(tmp_path / "run"))
    for folder in ("real", "real-vae"):
        pictures = next(ImageSet(tmp_path / "run" / folder, 5).batches())
        assert pictures.shape == (5, 3, 32, 32)


@pytest.mark.parametrize("batch", [1, 4, 6, 16])
def test_shares_cover_everything_once(batch: int) -> None:
    shares = [Share(rank, 3).of(range(50), batch) for rank in range(3)]
    assert sorted(index for share in shares for index in share) == list(range(50))
    for share in shares:
        assert share == Share(shares.index(share), 3).of(share, batch), "by index alone"


def test_two_processes_draw_the_pictures_of_one(recipe: Callable[..., EvalRecipe], tmp_path: Path) -> None:
    quick = recipe(metrics=["clip_score"], batch=2, out=str(tmp_path / "two"))
    evaluate.run(evaluate.plan(quick), Run(tmp_path / "one"))
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(quick))
    told = ours(COUNTED, "eval", file, cwd=tmp_path, environments=together(2))
    assert [each.code for each in told] == [0, 0], told
    first, second = ([int(word) for word in each.out.split() if word.isdigit()] for each in told)
    assert first
    assert second
    assert sorted(first + second) == list(range(PROMPTS)), "each has drawn its share"
    assert len(drawn(tmp_path / "two")) == PROMPTS
    assert drawn(tmp_path / "two") == drawn(tmp_path / "one")


def test_faults_are_told_before_anything_is_drawn(
    recipe: Callable[..., EvalRecipe], tmp_path: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("a fox\n")
    bare = EvalContestant(name="bare", model=str(tiny_pipeline / "unet"))
    faults: list[tuple[dict[str, Any], str]] = [
        ({"models": [bare]}, "contestant 'bare' must be a whole StableDiffusionPipeline"),
        ({"models": [EvalContestant(name="x", model=str(tmp_path / "none"))]}, "no such directory"),
        ({"prompts": str(text)}, "kid compare with real pictures, and .*prompts.txt has none"),
        ({"limit": 1}, "kid need two pictures or more"),
        ({"metrics": ["is"]}, "is needs a network that knows classes"),
        ({"size": 36}, "36 is no multiple of 8"),
        ({"clip": str(tmp_path)}, "has no config.json; give a transformers CLIP directory"),
        ({"prompts": str(tmp_path / "none.tar")}, "no such file"),
    ]
    for changes, message in faults:
        with pytest.raises(ModelError, match=message):
            evaluate.plan(recipe(**changes))
    monkeypatch.setattr("asdm_cli.metrics.features.find_spec", lambda _name: None)
    with pytest.raises(ModelError, match="inception needs torch_fidelity, which is not installed: pip install"):
        evaluate.plan(recipe(features="inception"))


def test_contestants_of_different_sizes_need_a_size(
    recipe: Callable[..., EvalRecipe], tiny_pipeline: Path, tmp_path: Path
) -> None:
    larger = tmp_path / "larger"
    shutil.copytree(tiny_pipeline, larger)
    config = larger / "unet/config.json"
    config.write_text(config.read_text().replace('"sample_size": 8', '"sample_size": 16'))
    models = [EvalContestant(name=each.name, model=str(each)) for each in (tiny_pipeline, larger)]
    with pytest.raises(ModelError, match=r"at different sizes \(tiny: 32, larger: 64\); give `size`"):
        evaluate.plan(recipe(models=models))
    assert evaluate.plan(recipe(models=models, size=48)).size == 48


def test_a_model_without_clip_needs_one(recipe: Callable[..., EvalRecipe], tiny_pipeline: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(tiny_pipeline, plain, ignore=shutil.ignore_patterns("clip"))
    models = [EvalContestant(name="plain", model=str(plain))]
    with pytest.raises(ModelError, match="has no folder clip/"):
        evaluate.plan(recipe(models=models))
    for named in (tiny_pipeline, tiny_pipeline / "clip"):
        assert evaluate.plan(recipe(models=models, clip=str(named))).metrics.clip == tiny_pipeline / "clip"


def test_plan_shows_what_is_drawn(recipe: Callable[..., EvalRecipe]) -> None:
    report = evaluate.plan(recipe()).report()
    (table,) = report.parts
    assert isinstance(table, Table)
    assert table.rows == [{"name": "one", "model": "tiny", "steps": 2, "guidance": 3.0}]
    assert f"{PROMPTS} pictures each, at 32 x 32 pixels" in table.title
    assert "10 real pictures" in report.summary
