"""Numbers in recipes and on command lines that are far too large: told at the key, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import expanding
from tests.hardening.damages import SCHEDULER, config
from tests.hardening.kinds import HUGE, leaves, replaced
from tests.hardening.uses import RECIPES, tried
from tests.typed import asdm

MORE: dict[str, dict[str, Any]] = {
    "inherit": {
        "fewer_steps": [1], "converged": 1, "seed": 1, "size": 32, "guidance": 2.0, "batch": 1, "bootstrap": 5,
        "grid": 1, "repeats": 1, "warmups": 1,
        "sweep": [{"name": "s", "series": "s", "steps": 2, "plan": {"preset": "deepcache", "interval": 2}}],
    },
    "student": {
        "seed": 1, "batch": 2, "accumulate": 1, "checkpoint": 1, "keep": 1, "text_dropout": 0.1, "clip": 1.0,
        "data": {"resolution": 32}, "optimizer": {"lr": 1e-4, "warmup": 0},
        "validation": {"prompts": ["x"], "steps": 2, "every": 1, "guidance": 2.0},
    },
    "bench": {"batches": [1], "size": 32, "repeats": 1, "warmups": 1, "guidance": 2.0},
    "eval": {"seed": 1, "size": 32, "batch": 1, "bootstrap": 5, "grid": 1, "guidance": 2.0},
}  # fmt: skip
"""Beside what recipes need: all that can be counted."""


def cases(use: str, model: str) -> Iterator[tuple[str, dict[str, Any]]]:
    recipe = {**RECIPES[use](model, model), **MORE[use]}
    for way, value in leaves(recipe):
        if type(value) in (int, float):
            for by in (5000, 8_000_000_000, *HUGE):
                yield f"{way}: {by!r}", replaced(recipe, way, by)


@pytest.mark.parametrize("use", list(MORE))
def test_numbers_of_recipes(use: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    faults, refused = [], 0
    every = list(cases(use, str(tiny_pipeline)))
    for what, recipe in every[::3]:
        said = expanding.run(tmp_path, recipe, "--dry-run", "-q")
        refused += said.code == 2
        if said.code not in (0, 2) or "bug in asdm" in said.err:
            faults.append(f"{what}: {said.code}: {said.err[-200:]}")
    assert not faults, "\n".join(faults)
    assert len(every) >= 60
    assert refused >= len(every) // 6


@pytest.mark.parametrize("use", ["eval", "inherit", "bench", "switch, first"])
def test_more_steps_than_timesteps(use: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    said = tried(use, tiny_pipeline, tiny_pipeline, tmp_path, steps=1001)
    assert said.code == 2
    assert f"1001 are more than the 1000 that {tiny_pipeline}/scheduler/scheduler_config.json knows" in said.text


@pytest.mark.parametrize("option", ["--steps", "--seed", "--guidance"])
def test_numbers_of_a_command_line(option: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    for number in ("5000", "9" * 30, "1e308", "nan", "inf", "-1"):
        if option == "--seed" and number == "5000":
            continue
        words = ("generate", tiny_pipeline, "x", "--out", tmp_path / "out", "--device", "cpu", option, number)
        said = asdm(*words)
        assert said.code == 2, (number, said.err)
        assert not (tmp_path / "out").exists()


def test_one_beta_for_a_thousand_timesteps(tiny_pipeline: Path, tmp_path: Path) -> None:
    bad = config(SCHEDULER, trained_betas=[0.1]).do(tiny_pipeline, tmp_path / "bad")
    said = tried("generate", bad, bad, tmp_path)
    assert said.code == 2
    assert f"{bad / SCHEDULER}: has 1 betas for 1000 timesteps" in said.text
