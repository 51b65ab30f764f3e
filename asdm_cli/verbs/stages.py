"""Stages of a pipeline on the disk: where each one lies, and whether what lies there is made from what it names now."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from asdm_cli import __version__
from asdm_cli.data.shards import SHIPPED
from asdm_cli.models.metadata import Stamps, stamps_of
from asdm_cli.recipe.schema import places, referenced_paths
from asdm_cli.recipe.stages import Scope, references, stage
from asdm_cli.recipe.verbs import Recipe, RunRecipe
from asdm_cli.report.run_directory import SCHEMA, is_run

DIGITS = 8
"""Of a stage's digest, in the name of its directory: one of four thousand million."""


@dataclass(frozen=True)
class Stage:
    """One stage, with every reference replaced. `home` is its run directory."""

    name: str
    verb: str
    given: dict[str, Any]
    """Its recipe as the file has it."""
    recipe: Recipe
    home: Path
    needs: tuple[str, ...]
    """The earlier stages that it names."""

    @property
    def finished(self) -> bool:
        return is_run(self.home)


def stages(recipe: RunRecipe) -> list[Stage]:
    """All stages in their order.

    The directory of each is named by a digest of its recipe, of the files that this reads (names, sizes and times of
    change) and, by way of the directories that it names, of the stages before it: whatever changes, what was made
    before stays where it is, and is found again. One that an asdm of other reports made is not.
    """
    kept = Path(recipe.kept or Path(recipe.out).parent / "stages")
    scope, found = Scope(recipe.inputs), list[Stage]()
    for name, given in recipe.stages.items():
        draft = stage(given, scope, "out")
        home = kept / f"{name}-{_digest(draft, kept)}"
        scope.stages[name] = str(home)
        needs = dict.fromkeys(each.name for each in references(given) if each.name in recipe.stages)
        whole = draft.model_copy(update={"out": str(home)})
        found.append(Stage(name, str(given["verb"]), given, whole, home, tuple(needs)))
    return found


def _digest(recipe: Recipe, kept: Path) -> str:
    files = [_stamps(text) for text in referenced_paths(recipe) if not Path(text).is_relative_to(kept)]
    whole = {"asdm": [__version__, SCHEMA], "recipe": recipe.model_dump(mode="json", exclude={"out"}), "files": files}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:DIGITS]


def _stamps(text: str) -> list[Stamps]:
    """Of what is behind a path, a glob or a word; nothing for URLs and for words that are no files."""
    return [stamps_of(place, place.rglob("*") if place.is_dir() else [place]) for place in _places(text)]


def _places(text: str) -> list[Path]:
    """Files and folders behind one of a recipe's texts. Words for what is bundled stand for all of it."""
    if text in SHIPPED:
        bundled = Path(str(resources.files("asdm_cli") / "pocket"))
        return [bundled / "weights", bundled / "data"]
    return places(text)
