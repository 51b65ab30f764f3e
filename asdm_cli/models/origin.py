"""What unfinished work was made from: kept beside it, and held against what a run that goes on would make it from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.provenance import FILE
from asdm_cli.models.source import POCKET, ModelDirectory, find
from asdm_cli.recipe.schema import places

ORIGIN = "origin.json"
Origin = dict[str, Any]
"""All that pictures or weights depend on, as JSON: work of another origin is not gone on with."""
Stamps = list[list[str | int]]


def stamps(directory: ModelDirectory) -> Stamps:
    """Of every file of a model: changed weights, or another plan, are noticed without reading gigabytes."""
    places = [*(file for folder in directory.components.values() for file in folder.rglob("*")), directory.path / FILE]
    return stamps_of(directory.path, places)


def stamps_of(root: Path, paths: Iterable[Path]) -> Stamps:
    """Name, bytes and time of each of these that is a file."""
    files = sorted(file for file in paths if file.is_file())
    return [[os.path.relpath(file, root), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def made_from(texts: Iterable[str]) -> Origin:
    """Stamps of the models and files that a recipe's texts name; nothing of URLs, and of words for bundled files."""
    found: Origin = {}
    for text in texts:
        try:
            known = stamps(find(text)) if text == POCKET or Path(text).is_dir() else stamps_of(Path(), places(text))
        except ModelError:  # no model: somebody else says so, or knows what it is
            continue
        found |= {text: known} if known else {}
    return found


def refuse_changes(before: Origin, now: Origin) -> None:
    """RunError for what was changed while it was read: who read it early and who read it late would not agree."""
    if changed := [key for key in before if before[key] != now.get(key)]:
        raise RunError(f"{', '.join(changed)}: was changed while this ran; put it back, or give the same command again")


def claim(folder: Path, origin: Origin) -> None:
    """Make `folder` a place for work of this origin: work of another one goes away."""
    if _held(folder) != _as_json(origin):
        shutil.rmtree(folder, ignore_errors=True)
        _begin(folder, origin)


def claim_or_refuse(folder: Path, origin: Origin) -> None:
    """The same where the work is too dear to go away: ModelError, with the keys that differ, for another origin."""
    held = _held(folder)
    if held is None:
        _begin(folder, origin)
        return
    wanted = _as_json(origin)
    changed = [key for key in {**held, **wanted} if held.get(key) != wanted.get(key)]
    if changed:
        raise ModelError(
            f"{folder}: was begun with other files than there are now (changed since: {', '.join(changed)}). Put those "
            f"back, and the same command goes on; or remove {folder.parent}, and it starts afresh"
        )


def _held(folder: Path) -> Origin | None:
    try:
        held: Origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or a run was killed before it did anything
        return None
    return held


def _begin(folder: Path, origin: Origin) -> None:
    """Whole or not at all: what goes on from here believes this file."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{ORIGIN}"
    partial.write_text(json.dumps(origin, indent=2, sort_keys=True), encoding="utf-8")
    os.replace(partial, folder / ORIGIN)


def _as_json(origin: Origin) -> Origin:
    """As it is read back: tuples are lists."""
    read: Origin = json.loads(json.dumps(origin))
    return read
