"""Ceilings on what one must read to follow a verb. A commit that raises one says what its user gets for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.forking import ours

CEILINGS = {"prune": (37, 307), "inherit": (60, 606), "eval": (58, 566), "switch": (58, 562)}
"""Files, functions."""
WALK = """
import cProfile, inspect, json, os, threading
from pathlib import Path
import asdm_cli.verbs.compare, asdm_cli.verbs.inherit, asdm_cli.verbs.prune, asdm_cli.verbs.switch
from asdm_cli.cli import main

PACKAGE = f"{Path(asdm_cli.__file__).parent}/"
profiles = []


def watch(*_):
    profiles.append(cProfile.Profile(builtins=False))
    profiles[-1].enable()


threading.setprofile(watch)
watch()
status = main([os.environ["VERB"], os.environ["VERB"] + ".yaml"])
profiles[0].disable()
codes = [each.code for profile in profiles for each in profile.getstats() if not isinstance(each.code, str)]
bodies = [code for code in codes if code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")]
entered = {(code.co_filename, code.co_qualname) for code in bodies if code.co_filename.startswith(PACKAGE)}
print(json.dumps({"exit": status, "functions": len(entered), "files": len({file for file, _ in entered})}))
"""
"""The package's functions that a run enters (comprehensions and lambdas aside), and their files. In a process of its
own: what an earlier verb keeps in a cache would be entered no more."""


@pytest.fixture(scope="module")
def walked(tiny_pipeline: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("walk")
    (folder / "prompts.txt").write_text("a red house\na blue cat\n")
    model, plan = str(tiny_pipeline), {"preset": "deepcache", "interval": 2}
    small = {"prompts": "prompts.txt", "steps": 4, "fewer_steps": [2], "metrics": ["psnr"], "repeats": 1, "warmups": 1}
    recipes: dict[str, dict[str, Any]] = {
        "prune": {"model": model, "remove": "base"},
        "inherit": {"model": model, "plan": plan, **small},
        "eval": {
            "models": [{"name": "whole", "model": model}, {"name": "plan", "model": model, "plan": plan}],
            **small,
        },
        "switch": {
            "unets": {"whole": {"model": model}, "base": {"model": str(tiny_base)}},
            "parts": [{"unet": "base", "until": 500}, {"unet": "whole"}],
            **small,
        },
    }
    for verb, recipe in recipes.items():
        (folder / f"{verb}.yaml").write_text(json.dumps({"verb": verb, "out": verb, **recipe}))
    told = ours(WALK, cwd=folder, environments=[{"VERB": verb} for verb in recipes])
    assert [each.code for each in told] == [0] * len(recipes), told
    return {verb: json.loads(each.out.splitlines()[-1]) for verb, each in zip(recipes, told, strict=True)}


@pytest.mark.parametrize("verb", CEILINGS)
def test_a_verb_is_followed_in_few_files_and_functions(verb: str, walked: dict[str, dict[str, Any]]) -> None:
    files, functions = CEILINGS[verb]
    found = walked[verb]
    assert found["exit"] == 0
    assert files * 0.8 < found["files"] <= files, "the ceiling comes down with what it covers"
    assert functions * 0.8 < found["functions"] <= functions
