"""Model directories that carry a run-time plan, as `asdm inherit` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asdm_cli.models.directory import find
from asdm_cli.models.metadata import write_patched
from asdm_cli.recipe.patches import FeatureCacheSpec, read_plan


def every(interval: int, nodes: Any = "up.3", **more: Any) -> dict[str, Any]:
    """A plan of one rule that reuses at all but every so many calls."""
    return {"rules": [{"nodes": nodes, "schedule": {"mode": "uniform", "interval": interval}, **more}]}


def cache(plan: Any) -> FeatureCacheSpec:
    return FeatureCacheSpec(**dict(read_plan(plan)))


def carrying(source: Path, folder: Path, plan: Any) -> Path:
    """The model of `source` under `folder`, with a plan."""
    write_patched(find(str(source)), {}, [cache(plan)], folder, "inherit")
    return folder


def fitted(sampler: str, timesteps: Sequence[float]) -> dict[str, Any]:
    """A plan whose forecasts were fitted to these calls, of which the first two are computed."""
    fit = {"sampler": sampler, "timesteps": [*timesteps], "keys": [0, 1], "weights": [[]] * len(timesteps)}
    rule = {"nodes": "out", "schedule": {"mode": "explicit", "steps": [0, 1]}, "extrapolate": "fitted", "fit": fit}
    return {"rules": [rule]}
