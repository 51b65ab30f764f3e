"""Every way in which verbs use a model, and what they say of it before anything slow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import expanding
from tests.typed import Said, asdm

FEW = {"steps": 2, "limit": 2, "device": "cpu"}
PLAN = {"rules": [{"nodes": "up.3", "schedule": {"mode": "uniform", "interval": 2}}]}
PARTS = {"by": "timestep", "parts": [{"unet": "b", "until": 400}, {"unet": "a"}]}
STUDENT = {"verb": "distill", "steps": 1, "device": "cpu"}
RECIPES: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "prune": lambda bad, _: {"verb": "prune", "model": bad, "remove": "base"},
    "teacher": lambda bad, good: {**STUDENT, "teacher": bad, "students": [{"name": "s", "model": good}]},
    "student": lambda bad, good: {**STUDENT, "teacher": good, "students": [{"name": "s", "model": bad}]},
    "donor": lambda bad, good: {
        "verb": "assemble", "donors": {"a": good, "b": bad}, "levels": ["a", "a", "a", "b"], "mid": "a"
    },
    "expand": lambda bad, _: {"verb": "condconv-expand", "model": bad, "expand": {"experts": 2, "at": "mid"}},
    "inherit": lambda bad, _: {"verb": "inherit", "model": bad, "plan": PLAN, **FEW},
    "switch, first": lambda bad, good: {
        "verb": "switch", "unets": {"a": {"model": bad}, "b": {"model": good}}, **PARTS, **FEW
    },
    "switch, second": lambda bad, good: {
        "verb": "switch", "unets": {"a": {"model": good}, "b": {"model": bad}}, **PARTS, **FEW
    },
    "bench": lambda bad, _: {"verb": "bench", "models": [{"name": "a", "model": bad}], "steps": 2, "device": "cpu"},
    "eval": lambda bad, _: {"verb": "eval", "models": [{"name": "a", "model": bad}], "metrics": ["clip_score"], **FEW},
}  # fmt: skip
"""How a verb uses a model -> its recipe."""


def tried(use: str, bad: Path, good: Path, folder: Path, **changes: Any) -> Said:
    """What `show`, `generate` or a dry run says of `bad`; a result would lie in `folder / "run"`."""
    if use == "show":
        return asdm("show", bad)
    if use == "generate":
        return asdm("generate", bad, "x", "--out", folder / "run", "--steps", 1, "--device", "cpu", "--overwrite")
    return expanding.run(folder, {**RECIPES[use](str(bad), str(good)), **changes}, "--dry-run")
