"""asdm.json beside a model's index: which verbs made it, from what. Stock diffusers does not look at it. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asdm_cli import __version__
from asdm_cli.errors import ModelError
from asdm_cli.inheritance.course import Nodes
from asdm_cli.models.source import ModelDirectory
from asdm_cli.recipe.patches import Rules, Switch, read_plan
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.weight_files import inside, read_mapping

FILE = "asdm.json"
HISTORY = "history"
TAKEN, RENUMBERS = "taken", "removed"
"""Keys of a step: what an assembly took from which donor, and what a pruning removed, after which addresses differ."""
RUN_TIME = "inherit"
"""Key of the plan that is in force whenever the model draws."""
SWITCH = "switch"
"""Key of who serves what in a model of several UNets."""


def history(directory: ModelDirectory) -> list[dict[str, Any]]:
    """What was done to this model, oldest first; nothing for models that did not come from here."""
    found = told(directory, HISTORY)
    if found is not None and not (isinstance(found, list) and all(isinstance(step, dict) for step in found)):
        raise ModelError(f"{directory.path / FILE}: {HISTORY} is no list of steps; copy the model again")
    return found or []


def told(directory: ModelDirectory, key: str) -> Any:
    """What the file says under this key; None where there is no file or no such key."""
    file = directory.path / FILE
    there = file.exists() or file.is_symlink()
    return read_mapping(inside(directory.path, file)).get(key) if there else None


def taken(directory: ModelDirectory) -> dict[str, list[str]]:
    """Donor -> addresses, and names of modules outside the blocks, that an assembly took from it; nothing for models
    that were not assembled, or whose blocks were renumbered since."""
    for step in reversed(history(directory)):
        if TAKEN in step:
            return _addresses(directory, step[TAKEN])
        if RENUMBERS in step:
            break
    return {}


def _addresses(directory: ModelDirectory, found: Any) -> dict[str, list[str]]:
    lists = list(found.values()) if isinstance(found, dict) else [None]
    if not all(isinstance(each, list) and all(isinstance(name, str) for name in each) for each in lists):
        raise ModelError(f"{directory.path / FILE}: {TAKEN} is no list of addresses by donor; copy the model again")
    return found


def run_time_plan(directory: ModelDirectory) -> Rules | None:
    """The plan that a model carries. Raises RecipeError, with the file, for one that cannot be read."""
    held = told(directory, RUN_TIME)
    return None if held is None else read_plan(held, f"{directory.path / FILE}: {RUN_TIME}")


def run_time_nodes(directory: ModelDirectory) -> Nodes | None:
    """That plan on the model's UNet. Raises RecipeError or ModelError, with the file, where it does not fit."""
    plan = run_time_plan(directory)
    try:
        return None if plan is None else Nodes(plan, Anatomy.of(directory.config("unet")))
    except ModelError as error:
        raise ModelError(f"{directory.path / FILE}: {RUN_TIME}: {error}") from None


def record(
    source: ModelDirectory,
    target: Path,
    verb: str,
    plan: Rules | None = None,
    switch: Switch | None = None,
    **facts: Any,
) -> None:
    """Write `target`'s history: that of its source, then this verb. Names only: paths say nothing elsewhere.

    A plan of the source is not handed on: another UNet has other addresses. Nor is its switch.
    """
    step = {"verb": verb, "asdm": __version__, "source": source.name, **facts}
    held: dict[str, Any] = {HISTORY: [*history(source), step]}
    if plan is not None:
        held[RUN_TIME] = plan.model_dump(mode="json", exclude_none=True)
    if switch is not None:
        held[SWITCH] = switch.model_dump(mode="json", exclude_none=True)
    text = json.dumps(held, indent=2, ensure_ascii=False)
    (target / FILE).write_text(f"{text}\n", encoding="utf-8")
