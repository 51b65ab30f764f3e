"""Ceilings on what one must read to follow a verb. A commit that raises one says what its user gets for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CEILINGS = {"prune": (40, 235), "inherit": (64, 490), "eval": (64, 485), "switch": (63, 470)}
"""Files, functions."""


@pytest.fixture(scope="module")
def walked(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("walk")
    (folder / "prompts.txt").write_text("a red house\na blue cat\n")
    model, plan = str(tiny_pipeline), {"preset": "deepcache", "interval": 2}
    small = {"prompts": "prompts.txt", "steps": 4, "fewer_steps": [2], "metrics": ["psnr"], "repeats": 2, "warmups": 1}
    recipes: dict[str, dict[str, Any]] = {
        "prune": {"model": model, "remove": "base"},
        "inherit": {"model": model, "plan": plan, **small},
        "eval": {
            "models": [{"name": "whole", "model": model}, {"name": "plan", "model": model, "plan": plan}],
            **small,
        },
        "switch": {
            "unets": {"whole": {"model": model}, "base": {"model": "prune"}},
            "parts": [{"unet": "base", "until": 500}, {"unet": "whole"}],
            **small,
        },
    }
    for verb, recipe in recipes.items():
        (folder / f"{verb}.yaml").write_text(json.dumps({"verb": verb, "out": verb, **recipe}))
    command = [sys.executable, str(ROOT / "tests/walk.py"), str(folder), *recipes]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return {verb: json.loads((folder / f"{verb}.json").read_text()) for verb in recipes}


@pytest.mark.parametrize("verb", CEILINGS)
def test_a_verb_is_followed_in_few_files_and_functions(verb: str, walked: dict[str, dict[str, Any]]) -> None:
    files, functions = CEILINGS[verb]
    found = walked[verb]
    assert found["exit"] == 0
    assert files * 0.8 < found["files"] <= files, "the ceiling comes down with what it covers"
    assert functions * 0.8 < found["functions"] <= functions
