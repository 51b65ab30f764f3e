"""A recipe file in, a checked recipe out; or every fault of the file in one RecipeError.

Gates 1 (syntax and types) and 2 (references inside the recipe); gate 3 is each method's `plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from asdm_cli.errors import Fault, RecipeError
from asdm_cli.recipe.override import Override, apply, parse_override
from asdm_cli.recipe.pipeline import check
from asdm_cli.recipe.public import without_secrets
from asdm_cli.recipe.schema import Strict
from asdm_cli.recipe.source import Source, read
from asdm_cli.recipe.verbs import VERBS, RunRecipe
from asdm_cli.recipe.words import did_you_mean, faults, got, one_of
from asdm_cli.recipe.yaml12 import Dumper


def load(path: Path, verb: str | None = None, overrides: Sequence[str | Override] = ()) -> Strict:
    """Read a recipe. `verb` is the command typed, which the recipe's own must equal; None takes the recipe's.

    Overrides are `key.path=value` texts (as after --set) or Overrides. Raises RecipeError.
    """
    source = read(Path(path))
    apply(source, [parse_override(each) if isinstance(each, str) else each for each in overrides])
    recipe = _recipe_class(source, verb)
    try:
        loaded = recipe.model_validate(source.data)
    except ValidationError as error:
        source.faults.extend(faults(error, source, recipe))
        raise RecipeError(source.file, source.faults) from None
    if isinstance(loaded, RunRecipe):
        check(source, loaded)
    if source.faults:
        raise RecipeError(source.file, source.faults)
    return loaded


def dump(recipe: Strict) -> str:
    """The recipe as resolved: defaults filled in, overrides applied; `load` reads it back as an equal recipe."""
    return _yaml(recipe.model_dump(mode="json", exclude_none=True))


def dump_public(recipe: Strict) -> str:
    """As `dump`, with digests for addresses and commands: for what lies about, and travels."""
    return _yaml(without_secrets(recipe.model_dump(mode="json", exclude_none=True)))


def dump_given(recipe: Strict) -> str:
    """The recipe as a person would write it: what was given, and first the keys that its verb alone has."""
    given = recipe.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    own = [key for key in type(recipe).__annotations__ if key in given]
    return _yaml({key: given[key] for key in [*own, *(key for key in given if key not in own)]})


def _yaml(data: dict[str, Any]) -> str:
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def _recipe_class(source: Source, typed: str | None) -> type[Strict]:
    """The class of the recipe's verb. A wrong verb is told once and then mended, so that the rest is checked too."""
    given = source.data.get("verb")
    known = VERBS.get(given) if isinstance(given, str) else None
    if known and typed in (None, given):
        return known
    source.faults.append(_verb_fault(source, typed))
    if known or typed is None:
        # Of another verb's recipe, or of no verb's, every other key would only add noise.
        raise RecipeError(source.file, source.faults)
    source.data["verb"] = typed
    return VERBS[typed]


def _verb_fault(source: Source, typed: str | None) -> Fault:
    known = list(VERBS)
    if "verb" not in source.data:
        return source.fault(("verb",), f"must be given: {one_of([typed] if typed else known)}")
    given = source.data["verb"]
    if typed and isinstance(given, str) and given in VERBS:
        return source.fault(("verb",), f"this is a recipe for 'asdm {given}', not for 'asdm {typed}'")
    hint = did_you_mean(given, known) if isinstance(given, str) else ""
    return source.fault(("verb",), f"must be {one_of([typed] if typed else known)}, got {got(given)}{hint}")
