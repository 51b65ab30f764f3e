"""Models of several UNets under every command: some draw with them, those that work on one UNet refuse them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import asdm_cli
from asdm_cli.console import console
from asdm_cli.measure import memory
from asdm_cli.measure.generate import layout
from asdm_cli.models.source import find
from asdm_cli.models.switched import read_switch
from asdm_cli.report.document import Report
from asdm_cli.report.render_json import from_json
from asdm_cli.switching.pipelines import alone, scheduled, switched
from tests.data import tars
from tests.inheritance.pipes import draw
from tests.turns import EVERY_OTHER, SWITCH, pruned, switch, switching
from tests.typed import Said, asdm

REFUSED = "holds several UNets that take turns (large, small v1.5); do this to one model each, then switch again"


@pytest.fixture(autouse=True)
def _loud_again() -> Iterator[None]:
    yield
    console.quiet = False


@pytest.fixture(scope="module")
def small(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pruned(tiny_pipeline, tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def model(tiny_pipeline: Path, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its small UNet inherits at every other call. Read-only by agreement."""
    return switching(tiny_pipeline, small, tmp_path_factory.mktemp("models") / "both")


def run(folder: Path, recipe: dict[str, Any], *options: object) -> Said:
    """A verb on this recipe, whose run goes to `folder / "run"`."""
    folder.mkdir(exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({"out": str(folder / "run"), **recipe}, sort_keys=False))
    return asdm(recipe["verb"], file, *options)


def report(folder: Path) -> Report:
    return from_json(json.loads((folder / "run" / "report.json").read_text()))


def rows(folder: Path, title: str) -> dict[str, dict[str, Any]]:
    table: Any = next(part for part in report(folder).parts if getattr(part, "title", "") == title)
    return {row["name"]: row for row in table.rows}


def prompts(folder: Path) -> str:
    (folder / "prompts.txt").write_text("a fox\ntwo owls\n")
    return str(folder / "prompts.txt")


def test_show(model: Path) -> None:
    said = asdm("show", model)
    assert said.code == 0, said.err
    assert said.out.count("down.0 block") == 2, "both trees"
    assert "UNets that take turns: large (unet), small v1.5 (unets/small v1.5)" in said.out
    assert "served by small v1.5 until timestep 400, then large" in said.out
    assert "small v1.5: inherits up.3 (output, order 0); computed: every 2nd" in said.out


def test_generate(model: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    for source in (model, tiny_pipeline):
        said = asdm("generate", source, "a fox", "two owls", "--steps", 3, "--out", tmp_path / source.name)
        assert said.code == 0, said.err
        assert ("large, small v1.5 take turns" in said.text) == (source == model)
        assert ("draws by the plan that it carries" in said.text) == (source == model)
    first, second = (list((tmp_path / each.name).glob("*.png")) for each in (model, tiny_pipeline))
    assert len(first) == len(second) == 3
    assert (tmp_path / model.name / "000.png").read_bytes() != (tmp_path / tiny_pipeline.name / "000.png").read_bytes()


def test_eval_counts_and_says_who_serves_what(model: Path, tiny_pipeline: Path, small: Path, tmp_path: Path) -> None:
    names = {"both": model, "large": tiny_pipeline, "small": small}
    recipe = {
        "verb": "eval",
        "models": [{"name": name, "model": str(path)} for name, path in names.items()],
        "prompts": prompts(tmp_path),
        "metrics": ["psnr"],
        "steps": 4,
    }
    said = run(tmp_path / "eval", recipe)
    assert said.code == 0, said.err
    found = rows(tmp_path / "eval", "What the pictures are worth")
    macs = {name: found[name]["macs_g"] for name in names}
    assert macs["both"] < (macs["large"] + macs["small"]) / 2, "the small UNet inherits, too"
    assert macs["small"] < macs["large"]
    card = report(tmp_path / "eval").cards["pictures of both"]
    assert card["switches"] == "small v1.5 until timestep 400, then large"
    assert "small v1.5: " in str(card["inherits"])
    assert "switches" not in report(tmp_path / "eval").cards["pictures of large"]


def test_bench_times_images_and_leaves_calls_empty(
    model: Path, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "measure_in_fresh_process", memory.build_and_measure)  # which takes seconds each
    plan = {"preset": "deepcache", "interval": 2}
    recipe = {
        "verb": "bench",
        "models": [
            {"name": "both", "model": str(model)},
            {"name": "large", "model": str(tiny_pipeline)},
            {"name": "planned", "model": str(tiny_pipeline), "plan": plan},
            {"name": "both planned", "model": str(model), "plan": plan},
        ],
        "batches": [1],
        "repeats": 1,
        "warmups": 1,
        "steps": 4,
    }
    said = run(tmp_path / "bench", recipe)
    assert said.code == 0, said.err
    cost = rows(tmp_path / "bench", "Cost")
    assert [cost[name]["unet_ms"] is None for name in cost] == [True, False, False, True]
    assert all(cost[name]["image_ms"] is not None for name in cost)
    assert cost["both"]["unet_params_m"] == cost["both planned"]["unet_params_m"] > cost["large"]["unet_params_m"]
    assert cost["both"]["weights_mb"] > cost["large"]["weights_mb"]
    assert cost["both planned"]["image_macs_g"] < cost["both"]["image_macs_g"] < cost["large"]["image_macs_g"]
    told = " ".join(report(tmp_path / "bench").cards["bench"]["contestants"])
    assert "4 UNet calls with 8 latents (2 by small v1.5, 2 by large) per image" in told
    assert "speed-ups are against large" in report(tmp_path / "bench").summary
    assert "An image of both planned: speed-up" in report(tmp_path / "bench").summary
    whole = rows(tmp_path / "bench", "A generation under the plans")
    assert list(whole) == ["planned"], "plans of several UNets are told by whole images"


def test_bench_of_nothing_but_several_unets(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "measure_in_fresh_process", memory.build_and_measure)
    contestant = {"name": "both", "model": str(model), "steps": 2}
    recipe = {"verb": "bench", "models": [contestant], "batches": [1], "repeats": 1, "warmups": 1}
    dry = run(tmp_path / "bench", recipe, "--dry-run")
    assert dry.code == 0, dry.err
    assert "images of 2 steps; large, small v1.5 take turns" in dry.text
    said = run(tmp_path / "bench", recipe)
    assert said.code == 0, said.err
    assert [row["image_macs_g"] > 0 for row in rows(tmp_path / "bench", "Cost").values()] == [True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": False}, "contestant 'both': of several UNets that take turns only images are timed"),
        (
            {"plan": {"rules": [{**EVERY_OTHER["rules"][0], "nodes": "mid"}]}},
            r"contestant 'both': UNet 'small v1.5': rules[0].nodes:",
        ),
    ],
)
def test_bench_says_what_it_cannot_do(changes: dict[str, Any], message: str, model: Path, tmp_path: Path) -> None:
    contestant = {"name": "both", "model": str(model), **({"plan": changes.pop("plan")} if "plan" in changes else {})}
    said = run(tmp_path / "bench", {"verb": "bench", "models": [contestant], **changes}, "--dry-run")
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
        "repeats": 2,
        "warmups": 1,
    }
    dry = run(tmp_path / "inherit", recipe, "--dry-run")
    assert dry.code == 0, dry.err
    assert "carries the plan, on each of its UNets (large, small v1.5) instead of the one it has now" in dry.text
    said = run(tmp_path / "inherit", recipe)
    assert said.code == 0, said.err
    found = rows(tmp_path / "inherit", "Speed and fidelity")
    assert found["plain"]["full_calls"] == "6/6"
    assert found["the plan"]["full_calls"] == "4/6", "two stretches of three calls each"
    assert found["the plan"]["cache_mb"] > 0
    assert found["the plan"]["unet_macs_share"] < 0.8
    written = find(str(tmp_path / "inherit" / "run"))
    assert read_switch(written) == switch(plans={})
    assert [step["verb"] for step in json.loads((written.path / "asdm.json").read_text())["history"]] == [
        "switch",
        "inherit",
    ]
    pipe = asdm_cli.load(str(tmp_path / "inherit" / "run"), "cpu")
    unet = switched(pipe)
    assert unet is not None
    assert list(unet.engines) == ["large", "small v1.5"]
    base = asdm_cli.load(str(model), "cpu")
    asdm_cli.remove(base)
    with asdm_cli.inherit(base, recipe["plan"]):
        assert torch.equal(draw(base, 6), draw(pipe, 6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deepcache": {"intervals": [3], "branches": [0]}}, "deepcache: the package works on one UNet"),
        (
            {"plan": {"rules": [{**EVERY_OTHER["rules"][0], "nodes": "mid"}]}},
            "plan.UNet 'small v1.5': rules[0].nodes:",
        ),
    ],
)
def test_inherit_says_what_does_not_fit(changes: dict[str, Any], message: str, model: Path, tmp_path: Path) -> None:
    recipe = {"verb": "inherit", "model": str(model), "prompts": prompts(tmp_path), "plan": EVERY_OTHER, **changes}
    said = run(tmp_path / "inherit", recipe, "--dry-run")
    assert (said.code, said.out) == (2, "")
    assert message in said.text


def refusing(model: Path, other: Path, shard: Path) -> dict[str, dict[str, Any]]:
    loss = [{"kind": "output", "weight": 1}]
    distill = {"verb": "distill", "losses": loss, "data": {"train": str(shard)}, "steps": 1}
    good = {"name": "it", "model": str(other)}
    return {
        "prune": {"verb": "prune", "model": str(model), "remove": "up.3.2"},
        "condconv-expand": {"verb": "condconv-expand", "model": str(model), "expand": {"at": "up.3"}},
        "assemble": {
            "verb": "assemble",
            "donors": {"a": str(other), "b": str(model)},
            "levels": ["a", "a", "b", "b"],
            "mid": "a",
        },
        "teacher": {**distill, "teacher": str(model), "students": [good]},
        "student": {**distill, "teacher": str(other), "students": [{**good, "model": str(model)}]},
    }


@pytest.mark.parametrize("name", refusing(Path(), Path(), Path()))
def test_verbs_that_work_on_one_unet_refuse(name: str, model: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    shard = tmp_path / "train.tar"
    tars.write(shard, tars.samples(*range(3)))
    recipe = refusing(model, tiny_pipeline, shard)[name]
    said = run(tmp_path / "run", recipe, "--dry-run")
    assert (said.code, said.out) == (2, "")
    assert REFUSED in said.text
    (line,) = (line for line in said.err.splitlines() if "several UNets" in line)
    assert str(model) in line


def test_pictures_are_laid_out_by_the_largest_unet_alone(
    model: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a model in which one UNet serves everything draws its pictures bit by bit."""
    from asdm_cli.measure import generate

    pipe, plain = asdm_cli.load(str(model), "cpu"), asdm_cli.load(str(tiny_pipeline), "cpu")
    size = sum(weight.numel() for weight in plain.unet.parameters())
    for most in (size, size + 1):
        monkeypatch.setattr(generate, "SMALL", most)
        assert layout(pipe, 9, 9) == layout(plain, 9, 9)
    settings: dict[str, Any] = {"steps": 2, "guidance": 3.0, "size": 32, "seed": 1, "batch": 8}
    with scheduled(pipe, alone("large")):
        mine = dict(generate.pictures(pipe, ["a fox", "owl"], range(2), **settings))
    theirs = dict(generate.pictures(plain, ["a fox", "owl"], range(2), **settings))
    assert [mine[index].tobytes() == theirs[index].tobytes() for index in range(2)] == [True, True]


def test_the_switch_of_these_tests_has_a_part_for_each() -> None:
    assert [part["unet"] for part in SWITCH["parts"]] == ["small v1.5", "large"]


def test_unets_with_experts_take_turns_too(tiny_pipeline: Path, small: Path, tmp_path: Path) -> None:
    expand = {"at": ["up.3"], "experts": 2, "start": "noise"}
    recipe = {"verb": "condconv-expand", "model": str(small), "expand": expand}
    assert run(tmp_path / "experts", recipe).code == 0
    experts = tmp_path / "experts" / "run" / "model"
    for index, (first, other) in enumerate(((tiny_pipeline, experts), (experts, small))):
        folder = switching(first, other, tmp_path / str(index), plans={})
        pipe, unet = asdm_cli.load(str(folder), "cpu"), asdm_cli.load(str(experts), "cpu").unet
        own: Any = asdm_cli.load(str(first), "cpu")
        others = {"small v1.5": unet if other == experts else str(other)}
        with asdm_cli.switch(own, {"large": own.unet, **others}, SWITCH["parts"]):
            assert torch.equal(draw(pipe, 4), draw(own, 4))
