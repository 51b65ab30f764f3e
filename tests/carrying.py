"""Model directories that carry a run-time plan, as `asdm inherit` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asdm_cli.models.provenance import record
from asdm_cli.models.source import find
from asdm_cli.models.write import assemble_directory
from asdm_cli.recipe.patches import read_plan


def every(interval: int, nodes: Any = "up.3", **more: Any) -> dict[str, Any]:
    """A plan of one rule that rests at all but every so many calls."""
    return {"rules": [{"nodes": nodes, "schedule": {"mode": "uniform", "interval": interval}, **more}]}


def carrying(source: Path, folder: Path, plan: Any) -> Path:
    """The model of `source` under `folder`, with a plan."""
    directory = find(str(source))
    assemble_directory(directory, folder, replaced=set())
    record(directory, folder, "inherit", read_plan(plan))
    return folder
