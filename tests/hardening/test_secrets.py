"""Neither passwords nor the places of this machine end in what a run leaves for others."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from asdm_cli.recipe.load import load
from asdm_cli.report.run_directory import RECIPE, run_directory
from asdm_cli.verbs import verb_of
from tests import expanding
from tests.data import tars
from tests.hardening.uses import RECIPES, STUDENT
from tests.typed import asdm

SECRET = "xK3yZz9s3cr3t"
KEY = f"hf_{SECRET * 3}"


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", KEY)


@pytest.fixture
def private(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """A model whose files say where it lay, as diffusers and transformers write them."""
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "home/somebody/private/x", copy_function=os.link))
    for file in [model / "model_index.json", *model.glob("*/config.json")]:
        held = json.loads(file.read_text())
        file.unlink()
        file.write_text(json.dumps({**held, "_name_or_path": str(model)}))
    return model


def told(folder: Path) -> Iterator[tuple[str, str]]:
    """Every file that others may read, as text; of weights their bytes, as far as they are text."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield str(file.relative_to(folder)), file.read_bytes().decode("utf-8", "ignore")


def leaks(folder: Path, *hidden: str) -> list[str]:
    return [f"{name}: {word}" for name, text in told(folder) for word in hidden if word in text]


def test_pruned_models_and_their_reports_name_no_place(private: Path, tmp_path: Path) -> None:
    run = expanding.done(tmp_path, RECIPES["prune"](str(private), ""))
    (run / RECIPE).unlink()  # one needs to know what was run, here
    assert len(list(told(run))) >= 15
    assert leaks(run, str(tmp_path), "somebody", SECRET, str(Path.home()) + "/", str(Path.cwd())) == []


@pytest.mark.parametrize("use", ["bench", "eval", "inherit", "switch, first", "donor"])
def test_plans_name_no_place(use: str, private: Path, tmp_path: Path) -> None:
    """What a plan reports, the report of the run repeats."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPES[use](str(private), str(private)), "out": "unused"}, width=1000))
    loaded: Any = load(recipe)
    report = verb_of(loaded).plan(loaded).report()
    with run_directory(tmp_path / "run", False, False, "") as run:
        run.write(report)
    assert {name for name, _ in told(tmp_path / "run")} == {".asdm", "recipe.yaml", "report.json", "report.html"}
    assert leaks(tmp_path / "run", str(tmp_path), "somebody", SECRET) == []


def test_a_distillation_from_a_place_that_takes_a_password(private: Path, tmp_path: Path) -> None:
    shard = tars.write(tmp_path / "a.tar", tars.samples(*range(4)))
    command = f'pipe:cat {shard} && : -H "Authorization: Bearer {SECRET}" https://me:{SECRET}@host/b.tar?key={SECRET}'
    recipe = {
        **STUDENT,
        "teacher": "none",
        "students": [{"name": "s", "model": str(private)}],
        "data": {"train": command, "cache_folder": str(tmp_path / "cache")},
        "losses": [{"kind": "task"}],
        "batch": 2,
    }
    refused = expanding.run(tmp_path, recipe)
    assert refused.code == 2
    assert SECRET not in refused.err
    said = expanding.run(tmp_path, recipe, "--allow-pipes")
    assert said.code == 0, said.err
    assert SECRET not in said.err
    assert leaks(tmp_path / "run", SECRET) == []
    assert leaks(tmp_path / "cache", SECRET) == []
    kept = (tmp_path / "run" / RECIPE).read_text()
    assert kept.count("a command (sha256 ") == 1
    assert asdm("check", tmp_path / "run" / RECIPE).code == 0
    (tmp_path / "run" / RECIPE).unlink()
    assert leaks(tmp_path / "run", str(tmp_path), "somebody") == []
    assert (tmp_path / "run/model/README.md").is_file()
