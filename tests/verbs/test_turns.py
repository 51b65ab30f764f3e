"""Models of several UNets under every command: some draw with them, those that work on one UNet refuse them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import asdm_cli
from asdm_cli.models.directory import find
from asdm_cli.models.patched import patches_of
from asdm_cli.patches import unet_schedule
from asdm_cli.patches.feature_cache import caches_on
from asdm_cli.records import Report
from asdm_cli.report.run_directory import read
from asdm_cli.sampling import generate
from tests.data import tars
from tests.expanding import done, figures, run
from tests.patches.pipes import draw
from tests.turns import CACHE, EVERY_OTHER, PARTS, SCHEDULE, pruned, switching
from tests.typed import asdm

REFUSED = "holds several UNets that take turns (large, small v1.5); do this to one model each, then switch again"
MID = {"rules": [{**EVERY_OTHER["rules"][0], "nodes": "mid"}]}
"""The small UNet has none."""


@pytest.fixture(scope="module")
def small(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pruned(tiny_pipeline, tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def model(tiny_pipeline: Path, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its small UNet reuses features at every other call. Read-only by agreement."""
    return switching(tiny_pipeline, small, tmp_path_factory.mktemp("models") / "both", CACHE)


def prompts(folder: Path) -> str:
    (folder / "prompts.txt").write_text("a fox\ntwo owls\n")
    return str(folder / "prompts.txt")


def test_show(model: Path) -> None:
    said = asdm("show", model)
    assert said.code == 0, said.err
    assert said.out.count("down.0 block") == 2, "both trees"
    for line in (
        "UNets that take turns: large, small v1.5",
        "served by small v1.5 until timestep 400, then large",
        "small v1.5: inherits up.3 (output, order 0); computed: every 2nd",
    ):
        assert line in said.out.splitlines()


def test_generate(model: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    for source in (model, tiny_pipeline):
        said = asdm("generate", source, "a fox", "two owls", "--steps", 3, "--out", tmp_path / source.name)
        assert said.code == 0, said.err
        assert [f"{kind} is in force" in said.text for kind in ("unet-schedule", "feature-cache")] == [
            source == model,
            source == model,
        ]
    first, second = (list((tmp_path / each.name).glob("*.png")) for each in (model, tiny_pipeline))
    assert len(first) == len(second) == 3
    assert (tmp_path / model.name / "000.png").read_bytes() != (tmp_path / tiny_pipeline.name / "000.png").read_bytes()


def test_eval_counts_and_says_who_serves_what(model: Path, tiny_pipeline: Path, small: Path, tmp_path: Path) -> None:
    models = {"both": model, "large": tiny_pipeline, "small": small}
    recipe = {
        "verb": "eval",
        "models": [{"name": name, "model": str(path)} for name, path in models.items()],
        "prompts": prompts(tmp_path),
        "metrics": ["psnr"],
        "steps": 4,
    }
    report = read(done(tmp_path / "eval", recipe))
    macs = figures(report, "image_macs_g")
    assert macs["both"] < (macs["large"] + macs["small"]) / 2, "the small UNet reuses, too"
    assert macs["small"] < macs["large"]
    told = " ".join(report.setups["both"]["patches"])
    assert "served by small v1.5 until timestep 400, then large" in told
    assert "small v1.5: inherits up.3 " in told
    assert "patches" not in report.setups["large"]
    (timeline,) = report.timelines
    assert timeline.rows == {"both": "ssll"}


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one takes seconds each."""
    monkeypatch.setattr("asdm_cli.compare.costs.in_fresh_process", lambda _name, work, *given: work(*given))


@pytest.mark.usefixtures("_in_this_process")
def test_bench_times_images_and_leaves_calls_empty(model: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    plan = {"preset": "deepcache", "interval": 2}
    models = [
        {"name": "both", "model": str(model)},
        {"name": "large", "model": str(tiny_pipeline)},
        {"name": "planned", "model": str(tiny_pipeline), "plan": plan},
        {"name": "both planned", "model": str(model), "plan": plan},
    ]
    quick = {"batches": [1], "repeats": 1, "warmups": 1, "steps": 4}
    report = read(done(tmp_path / "bench", {"verb": "bench", "models": models, **quick}))
    names = [each["name"] for each in models]
    assert list(figures(report, "unet_ms")) == ["large", "planned"]
    assert list(figures(report, "image_ms")) == names
    params, bytes_, macs = (figures(report, metric) for metric in ("params_m", "weights_mb", "image_macs_g"))
    assert params["both"] == params["both planned"] > params["large"]
    assert bytes_["both"] > bytes_["large"]
    assert macs["both planned"] < macs["both"] < macs["large"]
    assert figures(report, "calls") == dict.fromkeys(names, 4)
    assert figures(report, "latents") == dict.fromkeys(names, 8)
    assert {each.against for each in report.records if each.metric == "image_speedup"} == {"both"}
    whole = figures(report, "denoising_speedup", "generation/UNet calls")
    assert list(whole) == ["planned"], "plans of several UNets are told by whole images"


@pytest.mark.usefixtures("_in_this_process")
def test_bench_of_nothing_but_several_unets(model: Path, tmp_path: Path) -> None:
    models = [{"name": "both", "model": str(model), "steps": 2}]
    recipe = {"verb": "bench", "models": models, "batches": [1], "repeats": 1, "warmups": 1}
    dry = run(tmp_path / "bench", recipe, "--dry-run")
    assert dry.code == 0, dry.err
    report = read(done(tmp_path / "bench", recipe))
    assert figures(report, "image_macs_g")["both"] > 0
    assert figures(report, "calls") == {"both": 2}
    assert not figures(report, "unet_ms")
    each = figures(report, "params_m", "unet/large")["both"], figures(report, "params_m", "unet/small v1.5")["both"]
    assert figures(report, "params_m")["both"] == pytest.approx(sum(each))


INHERIT = {"verb": "inherit", "plan": EVERY_OTHER}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"verb": "bench", "images": False}, "contestant 'both': of several UNets that take turns only images are"),
        ({"verb": "bench", "plan": MID}, "both: UNet 'small v1.5': rules[0].nodes:"),
        ({**INHERIT, "deepcache": {"intervals": [3], "branches": [0]}}, "works on one UNet, and 2 take turns here"),
        ({**INHERIT, "plan": MID}, "plan.UNet 'small v1.5': rules[0].nodes:"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_slow(
    recipe: dict[str, Any], message: str, model: Path, tmp_path: Path
) -> None:
    what = {"model": str(model), "prompts": prompts(tmp_path)}
    if recipe["verb"] == "bench":
        plan = {"plan": recipe["plan"]} if "plan" in recipe else {}
        what = {"models": [{"name": "both", "model": str(model), **plan}]}
        recipe = {key: value for key, value in recipe.items() if key != "plan"}
    said = run(tmp_path / "run", {**recipe, **what}, "--dry-run")
    assert (said.code, said.out) == (2, "")
    assert message in said.text


def test_inherit_puts_a_plan_on_every_unet(model: Path, tmp_path: Path) -> None:
    recipe = {
        "verb": "inherit",
        "model": str(model),
        "prompts": prompts(tmp_path),
        "plan": {"preset": "deepcache", "interval": 2},
        "metrics": ["psnr"],
        "steps": 6,
        "fewer_steps": [4],
        "repeats": 1,
        "warmups": 1,
    }
    dry = run(tmp_path / "inherit", recipe, "--dry-run")
    assert dry.code == 0, dry.err
    assert "served by small v1.5 until timestep 400, then large" in dry.text
    report: Report = read(done(tmp_path / "inherit", recipe))
    assert figures(report, "full_calls") == {"the plan": 4}, "two stretches of three calls each"
    assert figures(report, "cache_mb")["the plan"] > 0
    assert figures(report, "macs_share")["the plan"] < 0.8
    written = find(str(tmp_path / "inherit/run"))
    schedule, cache = (spec.written() for spec in patches_of(written))
    assert schedule == SCHEDULE
    assert (cache["kind"], cache.get("unet"), cache["rules"][0]["nodes"]) == ("feature-cache", None, "deepcache.0")
    history = json.loads((written.path / "asdm.json").read_text())["history"]
    assert [step["verb"] for step in history] == ["switch", "inherit"]
    pipe = asdm_cli.load(str(tmp_path / "inherit/run"), "cpu")
    assert list(caches_on(pipe)) == ["large", "small v1.5"]
    base = asdm_cli.load(str(model), "cpu")
    asdm_cli.remove(base)
    with asdm_cli.inherit(base, recipe["plan"]):
        assert torch.equal(draw(base, 6), draw(pipe, 6))


def refusing(model: Path, other: Path, shard: Path) -> dict[str, dict[str, Any]]:
    loss = [{"kind": "output", "weight": 1}]
    distill = {"verb": "distill", "losses": loss, "data": {"train": str(shard)}, "steps": 1}
    good = {"name": "it", "model": str(other)}
    donors, alone = {"a": str(other), "b": str(model)}, [{"unet": "a"}]
    return {
        "prune": {"verb": "prune", "model": str(model), "remove": "up.3.2"},
        "condconv-expand": {"verb": "condconv-expand", "model": str(model), "expand": {"at": "up.3"}},
        "assemble": {"verb": "assemble", "donors": donors, "levels": ["a", "a", "b", "b"], "mid": "a"},
        "teacher": {**distill, "teacher": str(model), "students": [good]},
        "student": {**distill, "teacher": str(other), "students": [{**good, "model": str(model)}]},
        "switch": {"verb": "switch", "unets": {name: {"model": each} for name, each in donors.items()}, "parts": alone},
    }


@pytest.mark.parametrize("name", refusing(Path(), Path(), Path()))
def test_verbs_that_work_on_one_unet_refuse(name: str, model: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    shard = tmp_path / "train.tar"
    tars.write(shard, tars.samples(*range(3)))
    said = run(tmp_path / "run", refusing(model, tiny_pipeline, shard)[name], "--dry-run")
    assert (said.code, said.out) == (2, "")
    assert REFUSED in said.text
    (line,) = (line for line in said.err.splitlines() if "several UNets" in line)
    assert str(model) in line


@contextmanager
def served_by_large(pipe: Any) -> Iterator[None]:
    unet = unet_schedule.schedule_on(pipe)
    assert unet is not None
    with unet.ruled(unet_schedule.alone("large")):
        yield


def test_images_are_laid_out_by_the_largest_unet_alone(
    model: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a model in which one UNet serves everything draws its images bit by bit."""
    pipe, plain = asdm_cli.load(str(model), "cpu"), asdm_cli.load(str(tiny_pipeline), "cpu")
    size = sum(weight.numel() for weight in plain.unet.parameters())
    for most in (size, size + 1):
        monkeypatch.setattr(generate, "SMALL", most)
        assert generate.layout(pipe, 9, 9) == generate.layout(plain, 9, 9)
    settings = generate.SamplingSettings(2, 3.0, 32, 1, batch=8)
    with served_by_large(pipe):
        mine = dict(generate.draw(pipe, ["a fox", "owl"], range(2), settings))
    theirs = dict(generate.draw(plain, ["a fox", "owl"], range(2), settings))
    assert [mine[index].tobytes() == theirs[index].tobytes() for index in range(2)] == [True, True]


def test_unets_with_experts_take_turns_too(tiny_pipeline: Path, small: Path, tmp_path: Path) -> None:
    expand = {"at": ["up.3"], "experts": 2, "start": "noise"}
    experts = done(tmp_path / "experts", {"verb": "condconv-expand", "model": str(small), "expand": expand}) / "model"
    for index, (first, other) in enumerate(((tiny_pipeline, experts), (experts, small))):
        folder = switching(first, other, tmp_path / str(index))
        pipe, unet = asdm_cli.load(str(folder), "cpu"), asdm_cli.load(str(experts), "cpu").unet
        own: Any = asdm_cli.load(str(first), "cpu")
        others = {"small v1.5": unet if other == experts else str(other)}
        with asdm_cli.switch(own, {"large": own.unet, **others}, PARTS):
            assert torch.equal(draw(pipe, 4), draw(own, 4))
