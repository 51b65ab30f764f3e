"""A recipe file in, a checked recipe out; or every fault of the file in one RecipeError.

Gates 1 (syntax and types) and 2 (references inside the recipe); gate 3 is each verb's `plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.messages import choice, faults, one_of
from asdm_cli.recipe.reader import Dumper, Override, apply, read
from asdm_cli.recipe.redact import redact
from asdm_cli.recipe.stages import Look, check
from asdm_cli.recipe.verbs import VERBS, Recipe, RunRecipe


def load(
    path: Path, verb: str | None = None, overrides: Sequence[str | Override] = (), look: Look = lambda _: ()
) -> Recipe:
    """Read a recipe. `verb` is the command typed, which the recipe's own must equal; None takes the recipe's.

    Overrides are `key.path=value` texts (as after --set) or Overrides. `look` finds what more is wrong with a recipe
    that is right by itself, or with a stage. Raises RecipeError.
    """
    source = read(Path(path))
    apply(source, [Override.parse(each) if isinstance(each, str) else each for each in overrides])
    given = source.data.get("verb")
    known = isinstance(given, str) and given in VERBS
    if not known or verb not in (None, given):
        wanted = [verb] if verb else list(VERBS)
        if known:
            what = f"this is a recipe for 'asdm {given}', not for 'asdm {verb}'"
        else:
            what = choice(wanted, given) if "verb" in source.data else f"must be given: {one_of(wanted)}"
        source.tell(("verb",), what)
        if known or verb is None:  # of another verb's recipe, or of no verb's, every other key would only add noise
            raise RecipeError(source.file, source.faults)
        source.data["verb"] = given = verb  # told once, and mended, so that the rest is checked too
    recipe = VERBS[str(given)]
    try:
        loaded = recipe.model_validate(source.data)
    except ValidationError as error:
        source.faults.extend(faults(error, source, recipe))
        raise RecipeError(source.file, source.faults) from None
    for way, what in look(loaded):
        source.tell(way, what)
    if isinstance(loaded, RunRecipe):
        check(source, loaded, look)
    if source.faults:
        raise RecipeError(source.file, source.faults)
    return loaded


def dump(recipe: Recipe) -> str:
    """The recipe as resolved: defaults filled in, overrides applied; `load` reads it back as an equal recipe."""
    return _yaml(recipe.model_dump(mode="json", exclude_none=True))


def dump_public(recipe: Recipe) -> str:
    """As `dump`, with digests for addresses and commands: for what lies about, and travels."""
    return _yaml(redact(recipe.model_dump(mode="json", exclude_none=True)))


def dump_given(recipe: Recipe) -> str:
    """The recipe as a person would write it: what was given, and first the keys that its verb alone has."""
    given = recipe.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    own = [key for key in type(recipe).__annotations__ if key in given]
    return _yaml({key: given[key] for key in [*own, *(key for key in given if key not in own)]})


def _yaml(data: dict[str, Any]) -> str:
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
