"""asdm.json beside a model's index: which verbs made it, from what, and what is in force when it draws. And what
unfinished work was made from, by which it is gone on with. Stock diffusers looks at neither. No torch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from asdm_cli import __version__
from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.directory import ModelDirectory, find
from asdm_cli.models.sources import names_directory
from asdm_cli.models.write import write_json
from asdm_cli.recipe.messages import validated
from asdm_cli.recipe.patches import AnyPatch, PatchSpec
from asdm_cli.recipe.schema import Strict, places
from asdm_cli.unet.weights import inside, read_mapping

FILE = "asdm.json"
ORIGIN = "origin.json"
OLD = {"inherit": "asdm inherit", "switch": "asdm switch"}
"""Keys of 0.1, and what writes such a model anew."""
Origin = dict[str, Any]
"""All that images or weights depend on, as JSON: work of another origin is not gone on with."""
Stamps = list[list[str | int]]


class Step(BaseModel, extra="allow"):
    """What one verb did; each adds what it likes to tell. After what was `removed`, addresses are others."""

    verb: str
    taken: dict[str, list[str]] | None = None
    """Donor -> addresses, and names of modules outside the blocks, that an assembly took from it."""


class Metadata(Strict):
    """asdm.json. What a key says counts whenever the model draws, so an unknown one is refused, never drawn without."""

    history: list[Step] = Field(default_factory=list)
    """What was done to the model, oldest first."""
    patches: list[AnyPatch] = Field(default_factory=list)
    """What is in force whenever it draws."""


def read_metadata(directory: ModelDirectory) -> Metadata:
    """Raises RecipeError with all faults of the file, or ModelError."""
    file = directory.path / FILE
    if not (file.exists() or file.is_symlink()):
        return Metadata()
    held = read_mapping(inside(directory.path, file))
    if old := [key for key in OLD if key in held]:
        ways = " and ".join(f"`{OLD[key]}`" for key in old)
        raise ModelError(f"{file}: is of asdm 0.1 ({', '.join(old)}); write the model again with {ways}")
    read: Metadata = validated(Metadata, held, str(file))
    return read


def history(directory: ModelDirectory) -> list[dict[str, Any]]:
    """What was done to this model, oldest first; nothing for models that did not come from here."""
    return [step.model_dump(exclude_unset=True) for step in read_metadata(directory).history]


def taken(directory: ModelDirectory) -> dict[str, list[str]]:
    """What an assembly took from which donor; nothing for models that were not assembled, or whose blocks were
    renumbered since."""
    for step in reversed(read_metadata(directory).history):
        if step.taken is not None:
            return step.taken
        if "removed" in (step.model_extra or {}):
            break
    return {}


def record(source: ModelDirectory, target: Path, verb: str, patches: Sequence[PatchSpec] = (), **facts: Any) -> None:
    """Write `target`'s history: that of its source, then this verb. Names only: paths say nothing elsewhere.

    Patches of the source are not handed on: another UNet has other addresses.
    """
    revision = {"revision": source.revision} if source.revision else {}
    step = Step(verb=verb, asdm=__version__, source=source.name, **revision, **facts)
    steps = [each.model_dump(mode="json", exclude_unset=True) for each in (*read_metadata(source).history, step)]
    held: dict[str, Any] = {"history": steps}
    if patches:
        held["patches"] = [spec.written() for spec in patches]
    text = json.dumps(held, indent=2, ensure_ascii=False)
    (target / FILE).write_text(f"{text}\n", encoding="utf-8")


def stamps(directory: ModelDirectory) -> Stamps:
    """Of every file of a model: changed weights, or another plan, are noticed without reading gigabytes."""
    files = [file for folder in directory.components.values() for file in folder.rglob("*")]
    return stamps_of(directory.path, [*files, directory.path / FILE])


def stamps_of(root: Path, paths: Iterable[Path]) -> Stamps:
    """Name, bytes and time of each of these that is a file."""
    files = sorted(file for file in paths if file.is_file())
    return [[os.path.relpath(file, root), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def made_from(texts: Iterable[str]) -> Origin:
    """Stamps of the models and files that a recipe's texts name; nothing of URLs, and of words for bundled files."""
    found: Origin = {}
    for text in texts:
        try:
            known = stamps(find(text)) if names_directory(text) else stamps_of(Path(), places(text))
        except ModelError:  # no model: somebody else says so, or knows what it is
            continue
        found |= {text: known} if known else {}
    return found


def refuse_changes(before: Origin, now: Origin) -> None:
    """RunError for what was changed while it was read: who read it early and who read it late would not agree."""
    if changed := [key for key in before if before[key] != now.get(key)]:
        raise RunError(f"{', '.join(changed)}: was changed while this ran; put it back, or give the same command again")


def claim(folder: Path, origin: Origin, dear: bool = False) -> None:
    """Make `folder` a place for work of this origin: work of another one goes away. What is too `dear` for that stays,
    and there is a ModelError with the keys that differ."""
    file, wanted = folder / ORIGIN, json.loads(json.dumps(origin))  # as it is read back: tuples are lists
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or a run was killed before it did anything
        held = None
    if held == wanted:
        return
    if dear and held is not None:
        changed = ", ".join(key for key in {**held, **wanted} if held.get(key) != wanted.get(key))
        raise ModelError(
            f"{folder}: was begun with other files than there are now (changed since: {changed}). Put those "
            f"back, and the same command goes on; or remove {folder.parent}, and it starts afresh"
        )
    if not dear:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, wanted)
