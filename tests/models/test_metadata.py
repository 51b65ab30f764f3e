"""asdm.json: the plan that a model carries, what was done to it, what is said of a damaged one. And unfinished work,
which is gone on with only where it was begun with the same files."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import asdm_cli
from asdm_cli.errors import AsdmError, ModelError, RunError
from asdm_cli.models.directory import find
from asdm_cli.models.load import load_pipeline
from asdm_cli.models.metadata import (
    SMALL,
    claim,
    history,
    made_from,
    patches_of,
    record,
    refuse_changes,
)
from asdm_cli.patches.feature_cache import caches_on
from asdm_cli.recipe.patches import FeatureCacheSpec
from tests.carrying import cache, carrying, every
from tests.typed import asdm

CPU = torch.device("cpu")
PLANS: list[dict[str, Any]] = [
    every(2, ["up.3", "*.cross"], order=2, axis="log-snr"),
    {"preset": "deepcache", "branch": 2, "interval": 4},
    {"preset": "encoder-propagation"},
    {"rules": [], "cache_text": False},
]
CACHE: dict[str, Any] = {"kind": "feature-cache", "rules": []}


def held(*patches: Any) -> str:
    """An asdm.json of these patches."""
    return json.dumps({"patches": patches})


DAMAGED: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "cannot be read as JSON"),
    "no mapping": ("[]", "holds a list"),
    "a number": (json.dumps({"patches": 3}), "patches: must be a list"),
    "unknown key": (json.dumps({"patch": []}), r"patch: unknown key \(did you mean 'patches'\?\)"),
    "unknown kind": (held({"kind": "feature-cash"}), "did you mean 'feature-cache'"),
    "no kind": (held(every(2)), r"patches\[0\].kind: must be given"),
    "no schedule": (held(CACHE | {"rules": [{"nodes": "up.3"}]}), r"patches\[0\].rules\[0\].schedule: must be"),
    "no such node": (held(CACHE | every(2, "up.9")), r"patches: rules\[0\].nodes: .*up\.9"),
    "of asdm 0.1": (json.dumps({"inherit": every(2)}), "is of asdm 0.1 .*write the model again with `asdm inherit`"),
    "no history": (json.dumps({"history": 3}), "history: must be a list"),
    "another's history": (json.dumps({"history": [{"verb": "a", "taken": {"a": "up.3"}}]}), "taken.a: must be a list"),
}


@pytest.mark.parametrize("plan", PLANS, ids=["rules", "preset", "own schedule", "empty"])
def test_a_plan_is_read_back_as_it_was_written(plan: Any, tiny_pipeline: Path, tmp_path: Path) -> None:
    assert plans(carrying(tiny_pipeline, tmp_path / "model", plan)) == [cache(plan)]


def plans(model: Path) -> list[FeatureCacheSpec]:
    """What a model directory carries."""
    return list(patches_of(find(str(model))))  # type: ignore[arg-type]


def test_a_plan_is_not_handed_on_and_the_history_is(tiny_pipeline: Path, tmp_path: Path) -> None:
    plain = find(str(tiny_pipeline))
    assert (plans(plain.path), history(plain)) == ([], [])
    first = find(str(carrying(tiny_pipeline, tmp_path / "first", every(2))))
    second = find(str(carrying(first.path, tmp_path / "second", every(3))))
    record(second, tmp_path, "prune", removed=["mid"])
    held = json.loads((tmp_path / "asdm.json").read_text())
    steps = [(step["verb"], step["source"]) for step in held["history"]]
    assert steps == [("inherit", "tiny"), ("inherit", "first"), ("prune", "second")]
    assert (list(held), held["history"][-1]["removed"]) == (["history"], ["mid"])
    assert plans(second.path) == [cache(every(3))]


def test_loading_puts_the_plan_in_force_unless_asked_not_to(tiny_pipeline: Path, tmp_path: Path) -> None:
    directory = find(str(carrying(tiny_pipeline, tmp_path / "model", every(2))))
    (live,) = caches_on(load_pipeline(directory, CPU, torch.float32)).values()
    assert live.resolved.plan == cache(every(2))
    for pipe in (
        load_pipeline(directory, CPU, torch.float32, with_patches=False),
        load_pipeline(find(str(tiny_pipeline)), CPU, torch.float32),
    ):
        assert caches_on(pipe) == {}
        assert not [each for each in pipe.unet.modules() if hasattr(each, "_diffusers_hook")]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(name: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    model = carrying(tiny_pipeline, tmp_path / "model", every(2))
    text, message = DAMAGED[name]
    (model / "asdm.json").write_text(text)
    with pytest.raises(AsdmError, match=rf"model/asdm\.json: .*{message}") as caught:
        asdm_cli.load(str(model), "cpu")
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("verb", ["generate", "bench", "eval"])
@pytest.mark.parametrize("name", ["unknown kind", "no such node"])
def test_a_damaged_plan_is_told_before_anything_slow(verb: str, name: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    model = carrying(tiny_pipeline, tmp_path / "model", every(2))
    (model / "asdm.json").write_text(DAMAGED[name][0])
    recipe = {"verb": verb, "models": [{"name": "it", "model": str(model)}], "out": str(tmp_path / "out")}
    more = {"metrics": ["psnr"], "limit": 2} if verb == "eval" else {}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **more}))
    words = (model, "a fox") if verb == "generate" else (tmp_path / "recipe.yaml", "--dry-run")
    said = asdm(verb, *words, "-q")
    assert (said.code, said.out, len(said.err.strip().splitlines())) == (2, "", 1)
    assert "model/asdm.json: patches" in said.err
    assert not (tmp_path / "out").exists()


def test_work_of_another_origin_goes_away_where_it_is_cheap_and_stays_where_it_is_dear(tmp_path: Path) -> None:
    begins = {"cheap": claim, "dear": partial(claim, dear=True)}
    for name, begin in begins.items():
        folder = tmp_path / name
        begin(folder, {"files": ("a", 1), "steps": 2})
        (folder / "work").write_text("done")
        begin(folder, {"files": ("a", 1), "steps": 2})
        assert (folder / "work").exists()
    claim(tmp_path / "cheap", {"files": ("a", 2), "steps": 2})
    assert not (tmp_path / "cheap/work").exists()
    for origin, words in (
        ({"files": ("a", 2), "steps": 2}, rf"\(changed since: files\)\. Put those back, .*; or remove {tmp_path}, and"),
        ({"more": 1}, "changed since: files, steps, more"),
    ):
        with pytest.raises(ModelError, match=words):
            claim(tmp_path / "dear", origin, dear=True)
    assert (tmp_path / "dear/work").exists()


def test_what_a_recipe_is_made_from(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("prompts.txt")
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes(bytes(SMALL + 1))
    texts = [str(tiny_pipeline), f"{tmp_path}/*.tar", f"{tmp_path}/prompts.txt", "pocket", "s3://a/b", str(tmp_path)]
    before = made_from(texts)
    assert list(before) == texts[:4]
    assert len(before[texts[0]]) > 10
    refuse_changes(before, made_from(texts))
    os.utime(tmp_path / "prompts.txt", ns=(0, 0))  # as a fresh checkout has it: small files are told by what they say
    refuse_changes(before, made_from(texts))
    for changed, change in (
        (texts[1], lambda: os.utime(tmp_path / "b.tar", ns=(0, 0))),
        (texts[2], lambda: (tmp_path / "prompts.txt").write_text("prompts.tXt")),
    ):
        change()
        with pytest.raises(RunError, match=r": was changed while this ran") as caught:
            refuse_changes(before, made_from(texts))
        assert str(caught.value).startswith(changed)
        before = made_from(texts)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(RunError):
        refuse_changes(before, made_from(texts))
