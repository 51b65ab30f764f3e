"""`asdm bench` and `asdm eval`: faults before anything slow, one report of many ways to draw, going on, many
processes."""

from __future__ import annotations

import json
import pickle
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from asdm_cli.compare import run as comparison
from asdm_cli.errors import ModelError, RunError
from asdm_cli.recipe.load import dump
from asdm_cli.recipe.verbs import BenchRecipe, EvalRecipe
from asdm_cli.records import Record, Report
from asdm_cli.report.run_directory import Run
from asdm_cli.sampling.image_set import ImageSet
from asdm_cli.unet.flops import macs
from asdm_cli.verbs import compare
from tests import tiny
from tests.carrying import carrying, every
from tests.compare.setups import value
from tests.drawings import drawing as example
from tests.drawings import png, shard
from tests.expanding import run as typed
from tests.forking import ours, together
from tests.verbs.conftest import Drawing

PROMPTS = 5
Drawn = dict[str, bytes]


@pytest.fixture(scope="module")
def other_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pipeline(tmp_path_factory.mktemp("models") / "other", seed=1, **tiny.SHALLOW["sd15"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard(tmp_path_factory.mktemp("data") / "pairs.tar", 8)


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "unet/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_index(folder: Path, lacking: str = "", **changes: Any) -> None:
    file = folder / "model_index.json"
    index = {**json.loads(file.read_text()), **changes}
    index.pop(lacking, None)
    file.write_text(json.dumps(index))


def one(model: Path | str, name: str = "one", **changes: Any) -> dict[str, Any]:
    return {"name": name, "model": str(model), **changes}


def bench(*models: dict[str, Any], **changes: Any) -> BenchRecipe:
    given = {"models": list(models), "device": "cpu", "out": "runs/x", **changes}
    return BenchRecipe.model_validate({"verb": "bench", **given})


def evaluation(data: Path, *models: dict[str, Any], **changes: Any) -> EvalRecipe:
    """A quick one; CLIP stands in for the feature network."""
    usual: dict[str, Any] = {"models": list(models), "prompts": str(data), "limit": PROMPTS, "features": "clip"}
    usual |= {"device": "cpu", "dtype": "float32", "steps": 2, "bootstrap": 50, "grid": 3, "out": "runs/x"}
    return EvalRecipe.model_validate({"verb": "eval", **usual, **changes})


def done(recipe: EvalRecipe | BenchRecipe, folder: Path) -> Report:
    folder.mkdir(exist_ok=True)
    return compare.run(compare.plan(recipe), Run(folder))


def of(report: Report, metric: str, part: str = "") -> dict[str, float]:
    return {each.setup: each.value for each in report.records if each.metric == metric and each.of == part}


def images(run: Path, name: str = "one") -> Drawn:
    return {file.name: file.read_bytes() for file in sorted((run / "samples" / name).glob("*.png"))}


# eval -----------------------------------------------------------------------------------------------------------------


def test_one_recipe_compares_everything_that_there_is(
    data: Path, tiny_pipeline: Path, tiny_small: Path, tiny_experts: Path, tmp_path: Path
) -> None:
    """The original, fewer steps, a pruned model, experts, two UNets in turn, a plan, and a plan on those that take
    turns."""
    turns = {
        "unets": {"small": str(tiny_small)},
        "by": "step",
        "parts": [{"unet": "small", "until": 1}, {"unet": "turns"}],
    }
    both = {**turns, "parts": [{"unet": "small", "until": 1}, {"unet": "both"}]}
    on_one = {"kind": "feature-cache", "unet": "both", **every(2)}
    models = [
        one(tiny_pipeline, "original"),
        one(tiny_small, "pruned", guidance=2.0),
        one(tiny_experts, "experts"),
        one(tiny_pipeline, "turns", **turns),
        one(tiny_pipeline, "plan", plan=every(2)),
        one(tiny_pipeline, "both", **both, patches=[on_one]),
    ]
    settings = {
        "steps": 4,
        "fewer_steps": [2],
        "repeats": 2,
        "metrics": ["kid", "psnr"],
        "reference": "pruned",
        "limit": 2,
    }
    report = done(evaluation(data, *models, **settings), tmp_path / "run")
    names = [*(model["name"] for model in models), "2 steps"]
    assert list(report.setups) == [*names, comparison.VAE, comparison.REAL]
    for metric in ("image_ms", "image_macs_g", "macs_share", "calls"):
        assert list(of(report, metric)) == names, metric
    speeds = [each for each in report.records if each.metric == "image_speedup" and not each.of]
    assert [each.setup for each in speeds] == names[1:]
    assert {(each.against, each.n, each.interval) for each in speeds} == {("original", 2, "95 % bootstrap")}
    assert list(of(report, "kid")) == [*names, comparison.VAE, comparison.REAL]
    psnr = [each for each in report.records if each.metric == "psnr_db"]
    assert [each.setup for each in psnr] == [name for name in names if name != "pruned"]
    assert {(each.against, each.n) for each in psnr} == {("pruned", 2)}
    assert of(report, "calls") == {**dict.fromkeys(names, 4), "2 steps": 2}
    assert of(report, "full_calls") == {"plan": 2, "both": 3}, "of both, one is of the small one"
    shares = of(report, "macs_share")
    assert shares["2 steps"] == pytest.approx(0.5)
    assert 1 > shares["turns"] > shares["both"] > 0
    who, what = report.timelines
    served = {name: [who.letters[letter] for letter in cells] for name, cells in who.rows.items()}
    assert served == {"turns": ["small", *["turns"] * 3], "both": ["small", *["both"] * 3]}
    assert {len(cells) for cells in what.rows.values()} == {4}
    assert len({json.dumps({k: str(v) for k, v in images(tmp_path / "run", name).items()}) for name in names}) == 7
    assert {each.protocol for each in report.records} == set(report.protocols) == {"cost", "quality"}
    assert report.images
    assert list(report.images.folders) == [*names, comparison.VAE, comparison.REAL]
    assert all((tmp_path / "run" / folder / "000001.png").is_file() for folder in report.images.folders.values())


def test_figures_of_two_contestants(data: Path, shallow_pipeline: Path, other_pipeline: Path, tmp_path: Path) -> None:
    wanted = ["kid", "fd", "clip_score", "clip_retrieval", "psnr", "ssim"]
    models = one(shallow_pipeline), one(other_pipeline, "two", steps=3)
    report = done(evaluation(data, *models, metrics=wanted, seed=5), tmp_path / "run")
    keys = {"kid", "fd", "clip_score", "recall_at_1", "recall_at_5", "psnr_db", "ssim"}
    quality = [each for each in report.records if each.protocol == "quality" and not each.of]
    found = {name: {each.metric for each in quality if each.setup == name} for name in report.setups}
    assert found == {
        "one": keys - {"psnr_db", "ssim"},  # the reference is not compared with itself
        "two": keys,
        comparison.VAE: keys - {"psnr_db", "ssim"},
        comparison.REAL: keys - {"fd", "psnr_db", "ssim"},
    }
    assert all(each.low <= each.high and each.interval for each in quality)  # type: ignore[operator]
    splits = {(each.setup, each.of) for each in report.records if each.of.startswith("split/")}
    assert splits >= {("one", "split/novel-label"), ("two", "split/novel-style")}
    for metric in ("image_macs_g", "plain_image_macs_g"):
        assert of(report, metric)["two"] == pytest.approx(1.5 * of(report, metric)["one"])
    assert all(0 < of(report, "plain_image_macs_g")[name] < of(report, "image_macs_g")[name] for name in ("one", "two"))
    assert (report.setups["one"]["steps"], report.setups["two"]["steps"]) == (2, 3)
    card = report.protocols["quality"]
    assert (card["pictures"], card["resolution"], card["dtype"]) == (PROMPTS, "32 x 32", "float32")
    assert str(card["seed_rule"]).startswith("numpy SeedSequence([5, ")
    assert str(card["prompts"]).startswith("pairs.tar (sha256 ")
    told = json.dumps(report.protocols) + json.dumps(report.setups)
    assert not any(str(place.parent) in told for place in (data, shallow_pipeline, other_pipeline))
    assert "torch 2" in told


def test_a_plan_that_a_model_carries_is_drawn_and_counted(data: Path, shallow_pipeline: Path, tmp_path: Path) -> None:
    half = carrying(shallow_pipeline, tmp_path / "half", every(2, "up.1"))
    never = carrying(shallow_pipeline, tmp_path / "never", {"rules": [], "cache_text": False})
    models = one(shallow_pipeline), one(half, "half"), one(never, "never"), one(half, "other", plan=every(1, "up.1"))
    report = done(evaluation(data, *models, metrics=["psnr"], limit=2), tmp_path / "run")
    taken = of(report, "image_macs_g")
    assert taken["half"] < taken["one"] == taken["never"] == taken["other"]
    assert images(tmp_path / "run", "half") != images(tmp_path / "run")
    assert images(tmp_path / "run", "never") == images(tmp_path / "run", "other") == images(tmp_path / "run")
    assert of(report, "psnr_db")["never"] == 100


def test_a_guidance_distilled_unet_is_charged_for_the_rows_that_it_drew(
    data: Path, shallow_pipeline: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(shallow_pipeline, tmp_path / "copy"))
    shutil.rmtree(copy / "unet")
    plain = tiny.shape("sd15", **tiny.SHALLOW["sd15"])
    config = {**plain, "time_cond_proj_dim": 8}
    tiny.unet(config).save_pretrained(copy / "unet")
    models = one(shallow_pipeline), one(copy, "told")
    report = done(evaluation(data, *models, metrics=["psnr"], limit=1), tmp_path / "run")
    assert of(report, "image_macs_g") == pytest.approx(
        {
            "one": 2 * 2 * macs(plain, tokens=tiny.TOKENS).total / 1e9,
            "told": 2 * macs(config, tokens=tiny.TOKENS).total / 1e9,
        }
    )


@pytest.mark.skipif(find_spec("efficientnet_lite_pytorch") is None, reason="the extra `features` is not installed")
def test_figures_of_the_efficientnet(data: Path, shallow_pipeline: Path, tmp_path: Path) -> None:
    wanted = {"features": "efficientnet_lite0", "metrics": ["kid", "is"], "limit": 4}
    report = done(evaluation(data, one(shallow_pipeline), **wanted), tmp_path / "run")
    assert report.protocols["quality"]["feature_network"] == "EfficientNet-Lite0"
    assert 1 <= of(report, "is")["one"] <= 4
    assert "one" in of(report, "kid")


def test_a_text_file_has_figures_without_real_images(shallow_pipeline: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\nan owl\n")
    report = done(evaluation(prompts, one(shallow_pipeline), metrics=["clip_score"]), tmp_path / "run")
    assert list(of(report, "clip_score")) == list(report.setups) == ["one"]
    assert report.images
    assert list(report.images.folders) == ["one"]
    assert report.images.prompts == ["a fox", "an owl"]
    assert not of(report, "image_ms"), "nothing is timed unless it is asked for"


def test_real_images_of_another_size_are_fitted(shallow_pipeline: Path, tmp_path: Path) -> None:
    wide = {0: {"png": png(example(0, 48).resize((96, 48)))}}
    prompts = shard(tmp_path / "large.tar", 3, wide, size=48)
    done(evaluation(prompts, one(shallow_pipeline), metrics=["clip_score"], limit=None), tmp_path / "run")
    for folder in ("real", "real-vae"):
        assert next(ImageSet(tmp_path / "run" / folder, 3).batches()).shape == (3, 3, 32, 32)


def test_a_killed_run_goes_on_from_its_images_and_its_times(
    data: Path, shallow_pipeline: Path, tmp_path: Path, drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At an image, and then where the judging begins."""
    recipe = evaluation(data, one(shallow_pipeline), one(shallow_pipeline, "few", steps=1), metrics=["psnr"], repeats=2)
    whole = done(recipe, tmp_path / "whole")
    assert drawing.indices == [*range(PROMPTS)] * 2
    drawing.indices.clear()
    drawing.before = 4
    with pytest.raises(KeyboardInterrupt):
        done(recipe, tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "MetricSuite", None)
        with pytest.raises(TypeError):
            done(recipe, tmp_path / "killed")
    assert drawing.indices == [0, 1, 2, 3, 3, 4, *range(PROMPTS)]
    monkeypatch.setattr(comparison, "image_times", lambda *_: pytest.fail("these times are known"))
    report = done(recipe, tmp_path / "killed")
    assert len(drawing.indices) == 6 + PROMPTS
    for name in ("one", "few"):
        assert images(tmp_path / "killed", name) == images(tmp_path / "whole", name)
    assert of(report, "psnr_db") == of(whole, "psnr_db")
    assert list(of(report, "image_ms")) == ["one", "few"]


def test_images_that_a_process_did_not_draw_are_missed(
    data: Path, shallow_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "draw", lambda *_args, **_settings: iter([]))
    with pytest.raises(RunError, match="'one': 5 of 5 pictures are missing"):
        done(evaluation(data, one(shallow_pipeline)), tmp_path)


COUNTED = """
import sys
from asdm_cli.cli import main
from asdm_cli.compare import run

draw = run.draw


def counted(*given, **settings):
    for index, image in draw(*given, **settings):
        print(index)
        yield index, image


run.draw = counted
sys.exit(main(sys.argv[1:]))
"""
"""A command that says which images it draws."""


def test_two_processes_draw_the_images_of_one(data: Path, shallow_pipeline: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    models = one(shallow_pipeline, plan=every(2, "up.1")), one(shallow_pipeline, "few", steps=1)
    quick = evaluation(data, *models, metrics=["clip_score"], batch=2, repeats=1, out=str(out))
    done(quick, tmp_path / "one")
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(quick))
    told = ours(COUNTED, "eval", file, cwd=tmp_path, environments=together(2))
    assert [each.code for each in told] == [0, 0], told
    first, second = ([int(word) for word in each.out.split() if word.isdigit()] for each in told)
    assert first
    assert second
    assert sorted(first + second) == sorted([*range(PROMPTS)] * 2), "each has drawn its share"
    for name in ("one", "few"):
        assert len(images(out, name)) == PROMPTS
        assert images(out, name) == images(tmp_path / "one", name)
    assert json.loads((out / "report.json").read_text())["verb"] == "eval"


def test_faults_are_told_before_anything_is_drawn(
    data: Path, tiny_pipeline: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, usual = tmp_path / "prompts.txt", one(tiny_pipeline)
    text.write_text("a fox\n")
    change_config(copy, sample_size=16)
    turns = {"parts": [{"unet": "one", "until": 5}, {"unet": "other"}]}
    xl = tmp_path / "xl"
    tiny.unet(tiny.shape("sdxl")).save_pretrained(xl)
    faults: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
        ([one(tiny_pipeline / "unet", "bare")], {}, "'bare': .*is a bare UNet; whole pictures need a whole pipeline"),
        (
            [one(tmp_path / "none", "a"), one(tmp_path / "none", "b")],
            {},
            r"'a': .*no such directory[\s\S]*'b': .*no such",
        ),
        ([usual, one(tiny_pipeline, "b", plan=every(2, "up.9"))], {}, r"b: rules\[0\]\.nodes: .*up\.9"),
        ([one(tiny_pipeline, **turns, unets={"other": str(xl)})], {}, "'one': unets: "),
        ([usual, one(copy, "large")], {}, r"at different sizes \(one: 32, large: 64\); give `size`"),
        ([usual], {"fewer_steps": [3000]}, "3000 steps: "),
        ([one(tiny_pipeline, "2 steps")], {"fewer_steps": [2]}, "name '2 steps' is taken"),
        ([usual], {"prompts": str(text)}, "kid compare with real pictures, and .*prompts.txt has none"),
        ([usual], {"limit": 1}, "kid need pictures of two prompts or more"),
        ([usual], {"metrics": ["is"]}, "is needs a network that knows classes"),
        ([usual], {"size": 36}, "36 is no multiple of 8"),
        ([usual], {"clip": str(tmp_path)}, "has no config.json; give a transformers CLIP directory"),
        ([usual], {"prompts": str(tmp_path / "none.tar")}, "no such file"),
    ]
    for models, changes, message in faults:
        with pytest.raises(ModelError, match=message):
            compare.plan(evaluation(data, *models, **changes))
    assert compare.plan(evaluation(data, usual, one(copy, "large"), size=48)).size == 48
    monkeypatch.setattr("asdm_cli.metrics.features.find_spec", lambda _name: None)
    with pytest.raises(ModelError, match="inception needs torch_fidelity, which is not installed: pip install"):
        compare.plan(evaluation(data, usual, features="inception"))


def test_a_model_without_clip_needs_one(data: Path, tiny_pipeline: Path, copy: Path) -> None:
    shutil.rmtree(copy / "clip")
    with pytest.raises(ModelError, match="has no folder clip/"):
        compare.plan(evaluation(data, one(copy)))
    for named in (tiny_pipeline, tiny_pipeline / "clip"):
        metrics = compare.plan(evaluation(data, one(copy), clip=str(named))).metrics
        assert metrics
        assert metrics.clip == tiny_pipeline / "clip"


def test_a_dry_run_says_what_would_be_drawn(data: Path, shallow_pipeline: Path) -> None:
    report = compare.plan(evaluation(data, one(shallow_pipeline, plan=every(2, "up.1")), fewer_steps=[1])).report()
    assert list(report.setups) == ["one", "1 step"]
    assert (report.setups["one"]["steps"], report.setups["1 step"]["steps"]) == (2, 1)
    assert f"{PROMPTS} each, at 32 x 32 pixels" in str(report.facts["pictures"])
    assert "8 real pictures" in str(report.facts["prompts"])
    assert list(of(report, "macs_g")) == ["one", "1 step"]


# bench ----------------------------------------------------------------------------------------------------------------


def test_published_costs_of_stable_diffusion_and_bk_base() -> None:
    sd, base = {"name": "sd", "random": "sd15"}, {"name": "base", "random": "sd15", "remove": "base"}
    report = compare.plan(bench(sd, base)).report()
    golden = {"params_m": (859.520964, 579.384964), "macs_g": (401.64, 261.50), "plain_macs_g": (338.61, 223.68)}
    for metric, (whole, less) in golden.items():
        assert of(report, metric) == pytest.approx({"sd": whole, "base": less}, abs=0.01)
    assert [report.setups[name]["model"] for name in ("sd", "base")] == ["random sd15", "random sd15 without base"]


def test_a_bench_of_models_and_shapes(
    tiny_base: Path, tiny_experts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is typed."""

    def near(_name: str, work: Any, *given: Any) -> Any:
        """A process of its own takes seconds; what it is given must find its way there."""
        return work(*pickle.loads(pickle.dumps(given)))

    monkeypatch.setattr("asdm_cli.compare.costs.in_fresh_process", near)
    (tmp_path / "tiny.json").write_text(json.dumps(tiny.shape("sd15")))
    shape = str(tmp_path / "tiny.json")
    models = [
        one(tiny_base, "base"),
        one(tiny_experts, "wide"),
        {"name": "random", "random": shape, "remove": "base", "expand": {"experts": 2, "donor": shape}},
        one(tiny_base, "plan", plan=every(2)),
    ]
    recipe = {"verb": "bench", "models": models, "batches": [1], "repeats": 1, "warmups": 1, "steps": 2}
    recipe["device"] = "cpu"
    said = typed(tmp_path, recipe, "--dry-run")
    assert (said.code, said.out) == (0, ""), said.err
    said = typed(tmp_path, recipe)
    assert said.code == 0, said.err
    held = json.loads((tmp_path / "run/report.json").read_text())
    assert (
        held["setups"]["random"]["model"] == "random tiny.json without base with 2 experts at compressed from tiny.json"
    )
    records = [Record(**each) for each in held["records"]]
    names = ["base", "wide", "random", "plan"]
    for metric in ("params_m", "macs_g", "unet_ms", "weights_mb", "peak_memory_mb"):
        assert [each.setup for each in records if each.metric == metric and not each.of] == names
    params = [value(records, name, "params_m") for name in ("base", "random", "wide")]
    assert params == sorted(set(params))
    assert value(records, "base", "image_macs_g") == value(records, "wide", "image_macs_g"), "one expert a call"
    assert value(records, "plan", "image_macs_g") < value(records, "base", "image_macs_g")
    assert [each.setup for each in records if each.metric == "image_speedup" and not each.of] == ["wide", "plan"]
    assert not [each for each in records if each.metric in ("kid", "psnr_db")]


WRONG: dict[str, dict[str, Any]] = {
    "models[0].expand: goes with 'random' only; expand it first": {"model": "pocket", "expand": {"at": ["mid"]}},
    "models[0].expand.at[0]: nowhere: this UNet has no such address": {"random": "sd15", "expand": {"at": ["nowhere"]}},
    "contestant 'a': expand.at: no block has fewer layers": {"random": "sd15", "expand": {"donor": "sd15"}},
    "random 'sd16': neither a preset (sd15, sd21, sdxl)": {"random": "sd16"},
    "no stock UNet lacks just that": {"random": "sd15", "remove": "down.0.0"},
    "models[0].unets: goes with 'parts' only: who serves what?": {"model": "pocket", "unets": {"b": "pocket"}},
    "models[0].parts: goes with 'model' only": {"random": "sd15", "parts": [{"unet": "a"}]},
    "models[0].plan.rules[0].nodes: up.9: this UNet has no such address": {"random": "sd15", "plan": every(2, "up.9")},
}


@pytest.mark.parametrize("message", WRONG)
def test_contestants_that_do_not_fit(message: str, tmp_path: Path) -> None:
    said = typed(tmp_path, {"verb": "bench", "models": [{"name": "a", **WRONG[message]}]}, "--dry-run")
    assert (said.code, said.out) == (2, "")
    assert message in said.text, said.err


def test_images_of_unlike_size_are_not_compared(tiny_pipeline: Path, copy: Path) -> None:
    change_config(copy, sample_size=16)
    both = one(tiny_pipeline, "small"), one(copy, "large")
    with pytest.raises(ModelError, match=r"'small' draws latents of 8 × 8 and 'large' of 16 × 16.*`size`"):
        compare.plan(bench(*both))
    assert compare.plan(bench(*both, size=64)).notes == ()
    assert "differ in latent shape" in " ".join(compare.plan(bench(*both, images=False)).notes)
    for size in (66, 68):
        with pytest.raises(ModelError, match=r"contestant 'small': .*round"):
            compare.plan(bench(one(tiny_pipeline, "small"), size=size))


def test_without_images_only_the_unet_counts(tiny_pipeline: Path, copy: Path) -> None:
    (setup,) = compare.plan(bench(one(tiny_pipeline), images=False)).setups
    assert not setup.draws
    change_index(copy, _class_name="KandinskyPipeline")
    with pytest.raises(ModelError, match=r"'one': is a KandinskyPipeline; .*images: false"):
        compare.plan(bench(one(copy)))
    assert not compare.plan(bench(one(copy), images=False)).setups[0].draws
    turns = {"unets": {"b": str(tiny_pipeline)}, "parts": [{"unet": "b", "until": 500}, {"unet": "one"}]}
    assert compare.plan(bench(one(tiny_pipeline, **turns))).setups[0].draws
    with pytest.raises(ModelError, match="of several UNets that take turns only images are timed"):
        compare.plan(bench(one(tiny_pipeline, **turns), images=False))
