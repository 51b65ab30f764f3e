"""asdm.json: the plan that a model carries, what was done to it, and what is said of a damaged one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import asdm_cli
from asdm_cli.cli import main
from asdm_cli.console import console
from asdm_cli.errors import AsdmError
from asdm_cli.inheritance.pipelines import engine_of
from asdm_cli.models.load import load_pipeline
from asdm_cli.models.provenance import history, record, run_time_nodes, run_time_plan
from asdm_cli.models.source import find
from asdm_cli.recipe.patches import read_plan
from tests.carrying import carrying, every

CPU = torch.device("cpu")
PLANS: list[dict[str, Any]] = [
    every(2, ["up.3", "*.cross"], order=2, coordinate="log-snr"),
    {"preset": "deepcache", "branch": 2, "interval": 4},
    {"preset": "encoder-propagation"},
    {"rules": [], "text_once": False},
]
DAMAGED: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "cannot be read as JSON"),
    "no mapping": ("[]", "holds a list"),
    "a number": (json.dumps({"inherit": 3}), "inherit: "),
    "unknown preset": (json.dumps({"inherit": {"preset": "deepcash"}}), "did you mean 'deepcache'"),
    "no schedule": (json.dumps({"inherit": {"rules": [{"nodes": "up.3"}]}}), r"inherit: rules\[0\].schedule: must be"),
    "no such node": (json.dumps({"inherit": every(2, "up.9")}), r"inherit: rules\[0\].nodes: .*up\.9"),
}


@pytest.mark.parametrize("plan", PLANS, ids=["rules", "preset", "own schedule", "empty"])
def test_a_plan_is_read_back_as_it_was_written(plan: Any, tiny_pipeline: Path, tmp_path: Path) -> None:
    directory = find(str(carrying(tiny_pipeline, tmp_path / "model", plan)))
    assert run_time_plan(directory) == read_plan(plan)
    nodes = run_time_nodes(directory)
    assert nodes is not None
    assert nodes.plan == read_plan(plan)


def test_models_without_a_plan_have_none(tiny_pipeline: Path, tmp_path: Path) -> None:
    plain = find(str(tiny_pipeline))
    assert (run_time_plan(plain), run_time_nodes(plain), history(plain)) == (None, None, [])
    record(plain, tmp_path, "prune", removed=["mid"])
    assert list(json.loads((tmp_path / "asdm.json").read_text())) == ["history"]


def test_a_plan_is_not_handed_on_and_the_history_is(tiny_pipeline: Path, tmp_path: Path) -> None:
    first = find(str(carrying(tiny_pipeline, tmp_path / "first", every(2))))
    second = find(str(carrying(first.path, tmp_path / "second", every(3))))
    record(second, tmp_path, "prune", removed=["mid"])
    held = json.loads((tmp_path / "asdm.json").read_text())
    steps = [(step["verb"], step["source"]) for step in held["history"]]
    assert steps == [("inherit", "tiny"), ("inherit", "first"), ("prune", "second")]
    assert "inherit" not in held
    assert run_time_plan(second) == read_plan(every(3))


def test_loading_puts_the_plan_in_force_unless_asked_not_to(tiny_pipeline: Path, tmp_path: Path) -> None:
    directory = find(str(carrying(tiny_pipeline, tmp_path / "model", every(2))))
    engine = engine_of(load_pipeline(directory, CPU, torch.float32))
    assert engine is not None
    assert engine.nodes.plan == read_plan(every(2))
    for pipe in (
        load_pipeline(directory, CPU, torch.float32, with_plan=False),
        load_pipeline(find(str(tiny_pipeline)), CPU, torch.float32),
    ):
        assert engine_of(pipe) is None
        assert not [each for each in pipe.unet.modules() if hasattr(each, "_diffusers_hook")]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_plan_is_named_with_its_file(name: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    model = carrying(tiny_pipeline, tmp_path / "model", every(2))
    text, message = DAMAGED[name]
    (model / "asdm.json").write_text(text)
    with pytest.raises(AsdmError, match=rf"model/asdm\.json: .*{message}") as caught:
        asdm_cli.load(str(model), "cpu")
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("verb", ["generate", "bench", "eval"])
@pytest.mark.parametrize("name", ["unknown preset", "no such node"])
def test_a_damaged_plan_is_told_before_anything_slow(
    verb: str, name: str, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = carrying(tiny_pipeline, tmp_path / "model", every(2))
    (model / "asdm.json").write_text(DAMAGED[name][0])
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\n")
    file = tmp_path / "recipe.yaml"
    recipe = {"verb": verb, "models": [{"name": "it", "model": str(model)}], "out": str(tmp_path / "out")}
    file.write_text(yaml.safe_dump(recipe | ({"prompts": str(prompts), "metrics": ["psnr"]} if verb == "eval" else {})))
    command = ["generate", str(model), "a fox"] if verb == "generate" else [verb, str(file), "--dry-run"]
    assert main([*command, "-q"]) == 2
    console.quiet = False
    out, err = capsys.readouterr()
    (line,) = err.strip().splitlines()
    assert out == ""
    assert "model/asdm.json: inherit: " in line
    assert not (tmp_path / "out").exists()
