"""Tiny set-ups for the tests of this room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from asdm_cli.compare.run import Place
from asdm_cli.compare.setup import Setup, drawing
from asdm_cli.models.directory import find
from asdm_cli.recipe.patches import read_plan
from asdm_cli.records import Record
from tests import tiny
from tests.carrying import cache

CPU = torch.device("cpu")
PLACE = Place(CPU, torch.float32, 32)


def bare(name: str = "bare", shape: str = "sd15", plan: Any = None, **changes: Any) -> Setup:
    """Random weights, UNet calls only."""
    settings: dict[str, Any] = {"steps": 4, "draws": False, **changes}
    return Setup(name, None, tiny.shape(shape), (cache(plan),) if plan else (), **settings)


def whole(folder: Path, name: str = "whole", plan: Any = None, **changes: Any) -> Setup:
    """A pipeline that draws."""
    settings: dict[str, Any] = {"steps": 4, **changes}
    made = drawing(name, find(str(folder)), **{"series": name, **settings})
    return made.with_cache(name, read_plan(plan)) if plan else made


def value(records: Sequence[Record], setup: str, metric: str, of: str = "") -> float:
    """The one figure; it fails where there is none, or more than one."""
    (found,) = [each.value for each in records if (each.setup, each.metric, each.of) == (setup, metric, of)]
    return found


def values(records: Sequence[Record], setup: str, metric: str, kind: str) -> dict[str, float]:
    """By the name of each part of this kind."""
    found = {
        each.of.removeprefix(f"{kind}/"): each.value
        for each in records
        if (each.setup, each.metric) == (setup, metric) and each.of.startswith(f"{kind}/")
    }
    assert found, f"there is no {metric} of {setup} by {kind}"
    return found
