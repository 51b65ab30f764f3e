"""No key of a distillation's recipe is for show: changing it changes the plan, or what comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers.models.resnet import ResnetBlock2D
from pydantic import BaseModel

from asdm_cli.errors import AsdmError
from asdm_cli.recipe.verbs import DistillRecipe
from asdm_cli.report.run_directory import Run
from asdm_cli.training import loop
from asdm_cli.training.distillation import Distillation
from asdm_cli.training.loop import read_log
from asdm_cli.unet.weights import WEIGHTS
from asdm_cli.verbs import distill
from tests import tiny
from tests.data import tars

PLAN: dict[str, Any] = {
    "teacher": "OTHER",
    "students[].name": "another",
    "students[].model": "OTHER",
    "students[].freeze": "mid",
    "data.train": "SHARD",
    "data.generate.prompts": "PROMPTS",
    "data.generate.per_prompt": 2,
    "data.generate.steps": 3,
    "data.generate.sampler": "ddim",
    "data.generate.guidance": 1.0,
    "data.generate.seed": 1,
    "data.generate.dtype": "bfloat16",
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
    "random_conditioning.probability": ("weights", 1.0),
    "random_conditioning.captions": ("weights", "PROMPTS"),
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
    (home / "PROMPTS").write_text("a fox\nan owl\n")
    (home / "few.txt").write_text("a cat\n")
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
    if value in ("OTHER", "SHARD", "FOLDER", "PROMPTS"):
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


def around(base: dict[str, Any], home: Path, key: str) -> dict[str, Any]:
    """With what a key needs around it."""
    if key.startswith("data.generate."):
        return {**base, "data": {**base["data"], "generate": {"prompts": str(home / "few.txt")}}}
    return {**base, "random_conditioning": {"probability": 0.5}} if key.startswith("random_conditioning.") else base


def planned(recipe: dict[str, Any]) -> Any:
    """What a dry run says, or why there is none."""
    try:
        return str(distill.plan(DistillRecipe.model_validate(recipe)).report())
    except AsdmError as error:
        return error


@pytest.mark.parametrize("key", PLAN)
def test_the_plan_tells(key: str, base: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asdm_cli.training.plan.get_available_trackers", lambda: [])
    base = around(base, home, key)
    usual, other = planned(base), planned(with_key(base, home, key, PLAN[key]))
    assert isinstance(usual, str), usual
    assert isinstance(other, str) != (key in ("device", "trackers"))
    assert other != usual


def outcome(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a run leaves, and what it was seen to do."""
    seen: Counter[str] = Counter()
    saved: list[tuple[int, int]] = []
    compiled = recipe.pop("compile", False)  # refused on a CPU
    plan = distill.plan(DistillRecipe.model_validate(recipe))
    plan = replace(plan, recipe=plan.recipe.model_copy(update={"compile": compiled}))
    save, look, reads = loop.save_checkpoint, ResnetBlock2D.forward, Distillation.read

    def forward(*them: Any, **more: Any) -> Any:
        seen.update(forwards=torch.is_grad_enabled())
        return look(*them, **more)

    folder.mkdir()
    (folder / "recipe.yaml").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", lambda *them: (saved.append((them[1], them[3])), save(*them))[1])
        patch.setattr(Distillation, "read", lambda *them: (seen.update(["reads"]), reads(*them))[1])
        patch.setattr(ResnetBlock2D, "forward", forward)
        patch.setattr(torch, "compile", lambda model, **_: (seen.update(["compiled"]), model)[1])
        try:
            distill.run(plan, Run(folder))
        except AsdmError as error:
            return {"error": str(error)}
    pictures = sorted(folder.rglob("*.png"))
    return {
        "error": None,
        "weights": (folder / "model/unet" / WEIGHTS).read_bytes(),
        "log": read_log(folder / "log.jsonl"),
        "looks": [each.parent.name for each in pictures],
        "pictures": [each.read_bytes() for each in pictures],
        "saved": [step for step, _ in saved],
        "kept": [keep for _, keep in saved],
        **{name: seen[name] for name in ("reads", "forwards", "compiled")},
    }


@pytest.fixture(autouse=True, scope="module")
def _precision_of_others() -> Iterator[None]:
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def usual(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict[str, Any]]:
    """By whether there are looks: pictures cost most of the time."""
    folder = tmp_path_factory.mktemp("usual")
    return {
        looks: outcome(base if looks else {**base, "validation": {}}, folder / str(looks)) for looks in (True, False)
    }


def test_pictures_change_nothing_and_a_run_is_its_recipe(usual: dict[bool, dict[str, Any]]) -> None:
    """What differs below is the key's doing."""
    assert usual[False]["error"] is None
    assert usual[True] == {**usual[False], "looks": ["00000002", "teacher"], "pictures": usual[True]["pictures"]}


@pytest.mark.parametrize("key", RUN)
def test_the_run_shows(
    key: str, base: dict[str, Any], home: Path, usual: dict[bool, dict[str, Any]], tmp_path: Path
) -> None:
    what, value = RUN[key]
    looks = key.startswith("validation")
    if (needed := around(base, home, key)) != base:
        base, usual = needed, {False: outcome({**needed, "validation": {}}, tmp_path / "usual")}
    found = outcome(with_key(base if looks else {**base, "validation": {}}, home, key, value), tmp_path / "run")
    assert found[what] != usual[looks][what], found
