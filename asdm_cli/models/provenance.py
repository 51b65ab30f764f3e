"""asdm.json beside a model's index: which verbs made it, from what. Stock diffusers does not look at it. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asdm_cli import __version__
from asdm_cli.errors import ModelError
from asdm_cli.models.source import ModelDirectory
from asdm_cli.unet.weights import inside, read_mapping

FILE = "asdm.json"
HISTORY = "history"
TAKEN, RENUMBERS = "taken", "removed"
"""Keys of a step: what an assembly took from which donor, and what a pruning removed, after which addresses differ."""


def history(directory: ModelDirectory) -> list[dict[str, Any]]:
    """What was done to this model, oldest first; nothing for models that did not come from here."""
    found = read_metadata(directory).get(HISTORY)
    if found is not None and not (isinstance(found, list) and all(isinstance(step, dict) for step in found)):
        raise ModelError(f"{directory.path / FILE}: {HISTORY} is no list of steps; copy the model again")
    return found or []


def read_metadata(directory: ModelDirectory) -> dict[str, Any]:
    """All that the file says; nothing where there is none."""
    file = directory.path / FILE
    there = file.exists() or file.is_symlink()
    return dict(read_mapping(inside(directory.path, file))) if there else {}


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


def record(
    source: ModelDirectory, target: Path, verb: str, patches: Sequence[dict[str, Any]] = (), **facts: Any
) -> None:
    """Write `target`'s history: that of its source, then this verb. Names only: paths say nothing elsewhere.

    Patches of the source are not handed on: another UNet has other addresses.
    """
    step = {"verb": verb, "asdm": __version__, "source": source.name, **facts}
    held: dict[str, Any] = {HISTORY: [*history(source), step]}
    if patches:
        held["patches"] = list(patches)
    text = json.dumps(held, indent=2, ensure_ascii=False)
    (target / FILE).write_text(f"{text}\n", encoding="utf-8")
