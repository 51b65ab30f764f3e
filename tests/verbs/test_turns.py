"""Models of several UNets under every command: some draw with them, those that work on one UNet refuse them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import asdm_cli
from asdm_cli.models.directory import find
from asdm_cli.models.metadata import patches_of
from asdm_cli.patches.feature_cache import caches_on
from asdm_cli.records import Report
from asdm_cli.report.run_directory import read
from tests.data import tars
from tests.expanding import done, figures, run
from tests.patches.pipes import draw
from tests.turns import CACHE, EVERY_OTHER, SCHEDULE, switching

REFUSED = "holds several UNets that take turns (large, small v1.5); do this to one model each, then switch again"
MID = {"rules": [{**EVERY_OTHER["rules"][0], "nodes": "mid"}]}
"""The small UNet has none."""


@pytest.fixture(scope="module")
def model(tiny_pipeline: Path, tiny_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its small UNet reuses features at every other call. Read-only by agreement."""
    return switching(tiny_pipeline, tiny_small, tmp_path_factory.mktemp("models") / "both", CACHE)


def prompts(folder: Path) -> str:
    (folder / "prompts.txt").write_text("a fox\ntwo owls\n")
    return str(folder / "prompts.txt")


INHERIT = {"verb": "inherit", "plan": EVERY_OTHER}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"verb": "bench", "images": False}, "contestant 'both': of several UNets that take turns only images are"),
        ({"verb": "bench", "plan": MID}, "both: UNet 'small v1.5': rules[0].nodes:"),
        ({**INHERIT, "deepcache": {"intervals": [3], "branches": [0]}}, "works on one UNet, and 2 take turns here"),
        ({**INHERIT, "plan": MID}, "plan: UNet 'small v1.5': rules[0].nodes:"),
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
