"""Model directories of several UNets that take turns, as `asdm switch` writes them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from asdm_cli.models.switched import write_switched

from asdm_cli.models.directory import find
from asdm_cli.recipe.patches import Switch, read_switch
from asdm_cli.recipe.verbs import PruneRecipe
from asdm_cli.report.run_directory import Run
from asdm_cli.verbs import prune

EVERY_OTHER = {"rules": [{"nodes": "up.3", "schedule": {"mode": "uniform", "interval": 2}}]}
SWITCH: dict[str, Any] = {
    "by": "timestep",
    "parts": [{"unet": "small v1.5", "until": 400}, {"unet": "large"}],
    "unets": ["large", "small v1.5"],
    "plans": {"small v1.5": EVERY_OTHER},
}


def switch(**changes: Any) -> Switch:
    return read_switch({**SWITCH, **changes}, "test")


def pruned(source: Path, run: Path, remove: str = "small") -> Path:
    """A smaller model's directory."""
    run.mkdir(parents=True)
    prune.run(prune.plan(PruneRecipe(verb="prune", model=str(source), remove=remove, out="unused")), Run(run))
    return run / "model"


def switching(first: Path, other: Path, folder: Path, **changes: Any) -> Path:
    """The model under `folder` in which `large` and `small v1.5` take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    write_switched(find(str(first)), {"small v1.5": find(str(other))}, switch(**changes), folder)
    return folder


def copied(model: Path, folder: Path) -> Path:
    """A copy that may be damaged: none of its files is a link to the original's."""
    shutil.copytree(model, folder)
    return folder
