"""Model directories of several UNets that take turns, as `asdm switch` writes them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from asdm_cli.models.directory import find
from asdm_cli.models.metadata import Metadata, write_patched
from asdm_cli.recipe.messages import validated
from asdm_cli.recipe.patches import PatchSpec
from asdm_cli.recipe.verbs import PruneRecipe
from asdm_cli.report.run_directory import Run
from asdm_cli.verbs import prune
from tests.carrying import every

EVERY_OTHER = every(2)
PARTS: list[dict[str, Any]] = [{"unet": "small v1.5", "until": 400}, {"unet": "large"}]
SCHEDULE: dict[str, Any] = {"kind": "unet-schedule", "unets": ["large", "small v1.5"], "parts": PARTS}
CACHE: dict[str, Any] = {"kind": "feature-cache", "unet": "small v1.5", **EVERY_OTHER}


def read_patches(held: Any, source: str) -> list[PatchSpec]:
    """As they stand in a model's asdm.json."""
    read: Metadata = validated(Metadata, {"patches": held}, source)
    return read.patches


def patches(*caches: dict[str, Any], **changes: Any) -> list[PatchSpec]:
    """A schedule of the two UNets, changed, and caches."""
    return read_patches([{**SCHEDULE, **changes}, *caches], "test")


def pruned(source: Path, run: Path, remove: str = "small") -> Path:
    """A smaller model's directory."""
    run.mkdir(parents=True)
    prune.run(prune.plan(PruneRecipe(verb="prune", model=str(source), remove=remove, out="unused")), Run(run))
    return run / "model"


def switching(first: Path, other: Path, folder: Path, *caches: dict[str, Any], link: bool = False, **more: Any) -> Path:
    """The model under `folder` in which `large` and `small v1.5` take turns."""
    others = {"small v1.5": find(str(other))}
    write_patched(find(str(first)), others, patches(*caches, **more), folder, "switch", link)
    return folder


def copied(model: Path, folder: Path) -> Path:
    """A copy that may be damaged: none of its files is a link to the original's."""
    shutil.copytree(model, folder)
    return folder
