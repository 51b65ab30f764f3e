"""Dry runs of what takes minutes say how long; nothing stops where that cannot be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asdm_cli.models.directory import find
from asdm_cli.profiling import expected
from asdm_cli.recipe.verbs import VERBS
from asdm_cli.unet.flops import macs
from asdm_cli.verbs import verb_of
from tests import tiny
from tests.carrying import every
from tests.data import tars
from tests.expanding import run as ran
from tests.typed import asdm


@pytest.fixture(scope="module")
def recipes(
    tiny_pipeline: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("dry")
    (folder / "prompts.txt").write_text("a fox\nan owl\na cat\n")
    tars.write(folder / "train.tar", tars.samples(*range(8)))
    model, base, prompts = str(tiny_pipeline), str(tiny_base), str(folder / "prompts.txt")
    drawn = {"prompts": prompts, "metrics": ["psnr"], "steps": 4, "device": "cpu"}
    two = {"large": {"model": model}, "base": {"model": base}}
    explore = {"combinations": [{"name": "b", "levels": ["base"] * 4, "mid": "none"}], **drawn}
    donors = {"large": model, "base": base}
    students = [{"name": "base", "model": base}]
    found = {
        "prune": {"model": model, "remove": "base"},
        "bench": {"models": [{"name": "one", "model": model}], "steps": 4},
        "eval": {"models": [{"name": "one", "model": model}], **drawn},
        "inherit": {"model": model, "plan": every(2, "up.3"), "fewer_steps": [2], **drawn},
        "switch": {"unets": two, "search": {"budgets": [0.8], "prompts": 1}, "fewer_steps": [2], **drawn, "limit": 2},
        "assemble": {"donors": donors, "explore": explore},
        "distill": {"teacher": model, "students": students, "data": {"train": str(folder / "train.tar")}, "steps": 9},
    }
    return {verb: {"verb": verb, **recipe} for verb, recipe in found.items()}


QUICK = {"prune": {}, "inherit": {"measure": False, "fewer_steps": None}}


@pytest.mark.parametrize("verb", ["bench", "eval", "inherit", "switch", "assemble", "distill"])
def test_it_says_how_long(verb: str, recipes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[expected.Work] = []
    monkeypatch.setattr(expected, "expected", lambda work: asked.append(work) or "about a week")
    said = ran(tmp_path, recipes[verb], "--dry-run")
    assert (said.code, said.out) == (0, ""), said.err
    assert said.text.endswith("It would take about a week.")
    assert not (tmp_path / "run").exists()
    (work,) = asked
    assert work.macs > 0


@pytest.mark.parametrize("verb", QUICK)
def test_nothing_is_said_of_what_takes_seconds(verb: str, recipes: dict[str, Any], tmp_path: Path) -> None:
    said = ran(tmp_path, {**recipes[verb], **QUICK[verb]}, "--dry-run")
    assert said.code == 0, said.err
    assert "would take" not in said.text


def test_a_machine_that_cannot_make_the_call(
    recipes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: expected.Work) -> str:
        raise RuntimeError("not enough memory\nat all")

    monkeypatch.setattr(expected, "expected", broken)
    said = ran(tmp_path, recipes["eval"], "--dry-run")
    assert said.code == 0
    assert said.text.endswith("How long it would take cannot be told here: not enough memory.")


def test_a_step_of_training_is_three_calls_of_each_student_and_one_of_the_teacher(
    recipes: dict[str, Any], tiny_base: Path
) -> None:
    def works(**changes: Any) -> float:
        recipe = VERBS["distill"].model_validate({**recipes["distill"], "out": "unused", "batch": 4, **changes})
        plan: Any = verb_of(recipe).plan(recipe)
        work: expected.Work = plan.work()
        assert (work.latent, work.tokens) == ((8, 8), tiny.TOKENS)
        return work.macs / (9 * 4)

    configs = tiny.shape("sd15"), find(str(tiny_base)).config("unet")
    teacher, student = (macs(config, 1, (8, 8), tiny.TOKENS).total for config in configs)
    assert works() == teacher + 3 * student
    assert works(gradient_checkpointing=True) == teacher + 4 * student
    assert works(teacher="none", losses=[{"kind": "task"}]) == 3 * student


@pytest.mark.parametrize("verb", ["eval", "inherit", "switch", "assemble"])
def test_every_verb_that_draws_finds_what_its_metrics_ask(verb: str, recipes: dict[str, Any], tmp_path: Path) -> None:
    """A CLIP and a probe of one's own, wherever pictures are judged; without one, the way to it is told."""
    metrics = {"metrics": ["clip_score", "label_agreement"]}
    asked = recipes[verb] | ({"explore": recipes[verb]["explore"] | metrics} if verb == "assemble" else metrics)
    said = ran(tmp_path, asked, "--dry-run")
    assert (said.code, "has no folder" in said.text) == (2, True), said.err
    given = ("clip=pocket", "probe=pocket")
    words = [part for each in given for part in ("--set", f"explore.{each}" if verb == "assemble" else each)]
    assert (said := ran(tmp_path, asked, "--dry-run", *words)).code == 0, said.err


def test_what_stands_in_the_way_of_the_run_is_told(recipes: dict[str, Any], tmp_path: Path) -> None:
    assert ran(tmp_path, recipes["prune"]).code == 0
    said = asdm("prune", tmp_path / "recipe.yaml", "--dry-run")
    assert said.code == 0
    assert f"{tmp_path / 'run'}: exists already; the run itself needs --overwrite" in said.text
    assert "exists already" not in asdm("prune", tmp_path / "recipe.yaml", "--dry-run", "--overwrite").text
    (tmp_path / "run/mine.txt").write_text("mine")
    for options in ((), ("--overwrite",), ("--dry-run",)):
        said = asdm("prune", tmp_path / "recipe.yaml", *options)
        assert (said.code, "holds mine.txt, which is not from asdm" in said.text) == (2, True), options
