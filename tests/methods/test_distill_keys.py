"""No key of a distillation's recipe is for show: changing it changes the plan, or what comes out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers.models.resnet import ResnetBlock2D
from pydantic import BaseModel

from asdm_cli.errors import AsdmError
from asdm_cli.methods import distill
from asdm_cli.recipe.verbs import DistillRecipe
from asdm_cli.report.render_json import to_json
from asdm_cli.report.run_directory import Run
from asdm_cli.training import checkpoints
from asdm_cli.training.distillation import Distillation
from asdm_cli.training.log import read
from asdm_cli.unet.checkpoint import WEIGHTS
from tests import tiny
from tests.data import tars

PLAN: dict[str, Any] = {
    "teacher": "OTHER",
    "students[].name": "another",
    "students[].model": "OTHER",
    "students[].freeze": "mid",
    "data.train": "SHARD",
    "data.resolution": 64,
    "data.flip": True,
    "data.cache": "none",
    "data.cache_folder": "FOLDER",
    "losses[].kind": "output",
    "losses[].weight": 0.5,
    "losses[].snr_gamma": 5.0,
    "losses[].at": ["up.?"],
    "losses[].normalise": "teacher",
    "steps": 3,
    "batch": 6,
    "device": "cuda:0",
    "trackers": ["comet_ml"],
}
"""Seen before anything runs: in the plan, or as its refusal."""
RUN: dict[str, tuple[str, Any]] = {
    "data.held_out": ("log", "SHARD"),
    "data.faults": ("error", "stop"),
    "accumulate": ("reads", 2),
    "text_dropout": ("weights", 1.0),
    "optimizer.name": ("weights", "SGD"),
    "optimizer.lr": ("weights", 2e-3),
    "optimizer.options": ("weights", {"weight_decay": 0.5}),
    "optimizer.schedule": ("weights", "linear"),
    "optimizer.warmup": ("weights", 1),
    "clip": ("weights", 1e-8),
    "ema.decay": ("weights", 0.01),
    "ema.after": ("weights", 2),
    "precision": ("weights", "bfloat16"),
    "gradient_checkpointing": ("forwards", True),
    "compile": ("compiled", True),
    "seed": ("weights", 1),
    "checkpoint": ("saved", 1),
    "keep": ("kept", 1),
    "validation.every": ("looks", 1),
    "validation.prompts": ("pictures", ["a dog"]),
    "validation.steps": ("pictures", 3),
    "validation.guidance": ("pictures", 1.0),
}
"""Key -> what of a run changes with it."""
ELSEWHERE = {"verb", "out"}
"""The command itself, and the place that test_distill.py looks at."""


def leaves(model: type[BaseModel], path: str = "") -> Iterator[str]:
    for key, field in model.model_fields.items():
        inner = list(models(field.annotation))
        listed = "[]" if "list[" in str(field.annotation).lower() and inner else ""
        if not inner:
            yield f"{path}{key}"
        for each in inner:
            yield from leaves(each, f"{path}{key}{listed}.")


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models(inner)


def test_the_tables_have_every_key() -> None:
    keys = set(leaves(DistillRecipe))
    assert keys == PLAN.keys() | RUN.keys() | ELSEWHERE
    assert not PLAN.keys() & RUN.keys()
    assert len(keys) > 40


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, the last sample of one damaged, and another teacher."""
    home = tmp_path_factory.mktemp("keys")
    tars.write(home / "one.tar", [*tars.samples(*range(6)), ("0099.png", b"no picture"), ("0099.txt", b"a hole")])
    tars.write(home / "SHARD", tars.samples(11, 12))
    tiny.pipeline(home / "OTHER", seed=3)
    return home


@pytest.fixture(scope="module")
def base(home: Path, tiny_pipeline: Path) -> dict[str, Any]:
    return {
        "verb": "distill",
        "teacher": str(tiny_pipeline),
        "students": [{"name": "s", "model": str(tiny_pipeline)}],
        "data": {"train": str(home / "one.tar"), "cache_folder": str(home / "cache")},
        "losses": [{"kind": "task"}, {"kind": "features", "at": ["down.?"]}],
        "steps": 2,
        "batch": 4,
        "precision": "float32",
        "ema": {"decay": 0.9},
        "optimizer": {"lr": 1e-3},
        "validation": {"prompts": ["a fox"], "steps": 2},
        "device": "cpu",
        "out": "unused",
    }


def with_key(base: dict[str, Any], home: Path, key: str, value: Any) -> dict[str, Any]:
    recipe = deepcopy(base)
    if value in ("OTHER", "SHARD", "FOLDER"):
        value = str(home / value)
    *way, last = key.split(".")
    node: Any = recipe
    for word in way:
        node = node.setdefault(word.removesuffix("[]"), {})
        if word.endswith("[]"):
            node = node[1 if last in ("at", "normalise") else 0]
    assert node.get(last) != value
    node[last] = value
    return recipe


def planned(recipe: dict[str, Any]) -> Any:
    """The plan's report, or why there is none."""
    try:
        return to_json(distill.plan(DistillRecipe.model_validate(recipe)).report())
    except AsdmError as error:
        return str(error)


@pytest.fixture(scope="module")
def usual_plan(base: dict[str, Any]) -> Any:
    return planned(base)


@pytest.mark.parametrize("key", PLAN)
def test_the_plan_tells(
    key: str, base: dict[str, Any], home: Path, usual_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asdm_cli.training.settings.get_available_trackers", lambda: [])
    assert isinstance(usual_plan, dict), usual_plan
    assert planned(with_key(base, home, key, PLAN[key])) != usual_plan


def outcome(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a run leaves, and what it was seen to do."""
    seen: Counter[str] = Counter()
    saved: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asdm_cli.training.settings._check_compile", lambda _recipe: None)  # refused on a CPU
        plan = distill.plan(DistillRecipe.model_validate(recipe))
    save, look, reads = checkpoints.save, ResnetBlock2D.forward, Distillation.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save", lambda *them: (saved.append((them[1], them[3])), save(*them))[1])
        patch.setattr(Distillation, "read", lambda *them: (seen.update(["reads"]), reads(*them))[1])
        patch.setattr(
            ResnetBlock2D,
            "forward",
            lambda *them, **more: (seen.update(forwards=torch.is_grad_enabled()), look(*them, **more))[1],
        )
        patch.setattr(torch, "compile", lambda model, **_: (seen.update(["compiled"]), model)[1])
        folder.mkdir()
        (folder / "recipe.yaml").write_text("")
        try:
            distill.run(plan, Run(folder))
        except AsdmError as error:
            return {"error": str(error)}
    lines = read(folder / "log.jsonl")
    pictures = sorted(folder.rglob("*.png"))
    return {
        "error": None,
        "weights": digest(folder / "model/unet" / WEIGHTS),
        "log": lines,
        "looks": [each.parent.name for each in pictures],
        "pictures": [digest(each) for each in pictures],
        "saved": [step for step, _ in saved],
        "kept": [keep for _, keep in saved],
        **{name: seen[name] for name in ("reads", "forwards", "compiled")},
    }


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(autouse=True, scope="module")
def _precision_of_others() -> Iterator[None]:
    yield
    AcceleratorState._reset_state()


def blind(base: dict[str, Any]) -> dict[str, Any]:
    """Without pictures, which cost most of the time."""
    return {**base, "validation": {}}


@pytest.fixture(scope="module")
def usual(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outcome(blind(base), tmp_path_factory.mktemp("usual") / "run")


@pytest.fixture(scope="module")
def usual_looks(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outcome(base, tmp_path_factory.mktemp("usual") / "run")


def test_pictures_change_nothing_and_a_run_is_its_recipe(usual: dict[str, Any], usual_looks: dict[str, Any]) -> None:
    """What differs below is the key's doing."""
    assert usual["error"] is None
    pictures = {"looks": ["00000002"], "pictures": usual_looks["pictures"]}
    assert {**usual, **pictures} == usual_looks


@pytest.mark.parametrize("key", [key for key in RUN if not key.startswith("validation")])
def test_the_run_shows(key: str, base: dict[str, Any], home: Path, usual: dict[str, Any], tmp_path: Path) -> None:
    what, value = RUN[key]
    found = outcome(with_key(blind(base), home, key, value), tmp_path / "run")
    assert found[what] != usual[what], found


@pytest.mark.parametrize("key", [key for key in RUN if key.startswith("validation")])
def test_a_look_shows(key: str, base: dict[str, Any], home: Path, usual_looks: dict[str, Any], tmp_path: Path) -> None:
    what, value = RUN[key]
    found = outcome(with_key(base, home, key, value), tmp_path / "run")
    assert found[what] != usual_looks[what], found
