"""A recipe file in, a checked recipe out; or every fault of the file in one RecipeError.

Gates 1 (syntax and types) and 2 (references inside the recipe), for the stages of a pipeline file too, in which `$name`
stands for something; gate 3 is each verb's `plan`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.messages import choice, did_you_mean, faults, got, one_of
from asdm_cli.recipe.reader import Dumper, Override, Source, Where, apply, read
from asdm_cli.recipe.redact import redact
from asdm_cli.recipe.schema import Misfit
from asdm_cli.recipe.verbs import VERBS, Recipe, RunRecipe

Look = Callable[[Recipe], Iterable[Misfit]]
"""What is wrong with a recipe beside what it says itself."""


def load(
    recipe: Path | Source,
    verb: str | None = None,
    overrides: Sequence[str | Override] = (),
    look: Look = lambda _: (),
) -> Recipe:
    """Read a recipe's file, or what was typed in its place. `verb` is the command, which the recipe's own must equal;
    None takes the recipe's.

    Overrides are `key.path=value` texts (as after --set) or Overrides. `look` finds what more is wrong with a recipe
    that is right by itself, or with a stage. Raises RecipeError.
    """
    source = recipe if isinstance(recipe, Source) else read(Path(recipe))
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
    kind = VERBS[str(given)]
    try:
        loaded = kind.model_validate(source.data)
    except ValidationError as error:
        source.faults.extend(faults(error, source, kind))
        raise RecipeError(source.file, source.faults) from None
    for way, what in look(loaded):
        source.tell(way, what)
    if isinstance(loaded, RunRecipe):
        _check_stages(source, loaded, look)
    if source.faults:
        raise RecipeError(source.file, source.faults)
    return loaded


def dump(recipe: Recipe, public: bool = False) -> str:
    """The recipe as resolved: defaults filled in, overrides applied; `load` reads it back as an equal recipe. For what
    lies about, and travels, `public`: with digests for addresses and commands."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    return _yaml(redact(data) if public else data)


def dump_given(recipe: Recipe) -> str:
    """The recipe as a person would write it, for all to read: what was given, and first the keys that its verb alone
    has."""
    given = recipe.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    own = [key for key in type(recipe).__annotations__ if key in given]
    return _yaml(redact({key: given[key] for key in [*own, *(key for key in given if key not in own)]}))


def _yaml(data: dict[str, Any]) -> str:
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


# Stages ---------------------------------------------------------------------------------------------------------------

REFERENCE = re.compile(r"\$([a-z][a-z0-9_-]*)(?:/(.+))?")
STAGES = {verb: recipe for verb, recipe in VERBS.items() if verb != "run"}


class Reference(NamedTuple):
    """`$name/inner` at a place of a stage's recipe."""

    where: Where
    name: str
    inner: str = ""


@dataclass
class Scope:
    """What names stand for, as far as the file has come. Stages stand for their directories."""

    inputs: Mapping[str, Any]
    stages: dict[str, str] = field(default_factory=dict)

    def value(self, text: str) -> Any:
        """What a text of a recipe stands for. A reference that leads nowhere, which `check` tells, stays as it is."""
        if not text.startswith("$") or text.startswith("$$"):
            return text.removeprefix("$")
        match = REFERENCE.fullmatch(text)
        name, inner = match.groups() if match else ("", None)
        value = self.stages.get(name, self.inputs.get(name, text))
        if inner is None or value == text:
            return value
        return f"{value}/{inner}" if isinstance(value, str) else text


def resolve(data: Any, scope: Scope) -> Any:
    """A stage's recipe with every reference replaced."""
    if isinstance(data, dict):
        return {key: resolve(value, scope) for key, value in data.items()}
    if isinstance(data, list):
        return [resolve(value, scope) for value in data]
    return scope.value(data) if isinstance(data, str) else data


def stage_recipe(data: Mapping[str, Any], scope: Scope, out: str) -> Recipe:
    """The recipe of a stage that `check` found right."""
    return STAGES[data["verb"]].model_validate({**resolve(dict(data), scope), "out": out})


def references(data: Any, where: Where = ()) -> Iterator[Reference]:
    """Every `$name` inside a stage's recipe, with the way there."""
    if isinstance(data, str) and data.startswith("$") and not data.startswith("$$"):
        match = REFERENCE.fullmatch(data)
        yield Reference(where, match[1], match[2] or "") if match else Reference(where, data[1:])
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in pairs:
        yield from references(value, (*where, key))


def _check_stages(source: Source, recipe: RunRecipe, look: Look) -> None:
    """Gates 1 and 2 of every stage, in the order of the file; what is wrong becomes a fault of `source`."""
    scope, written = Scope(recipe.inputs), dict[str, list[str] | None]()
    used = set[str]()
    for name, data in recipe.stages.items():
        below = source.below(("stages", name), data)
        if name in recipe.inputs:
            below.tell((), f"'{name}' is the name of an input already", on_key=True)
        for each in references(data):
            used.add(each.name)
            if problem := _misled(each, recipe, scope, written):
                below.tell(each.where, problem)
                below.unread.add(each.where)
        written[name] = _check_recipe(below, scope, look)
        scope.stages[name] = f"${name}"
    for name in recipe.inputs:
        if name not in used:
            source.tell(("inputs", name), "no stage uses it; leave it out", on_key=True)
    for index, name in enumerate(recipe.lead):
        if name not in recipe.stages:
            source.tell(("lead", index), f"no stage is called {got(name)}{did_you_mean(name, list(recipe.stages))}")
    for where, told in _unknown_seeds(recipe):
        source.tell(where, told, on_key=len(where) == 2)


def _unknown_seeds(recipe: RunRecipe) -> Iterator[tuple[Where, str]]:
    rows, own = recipe.contestants, dict[str, list[Mapping[str, Any]]]()
    for row in rows:
        own.setdefault(row["name"], []).append(_bare(row))
    known = list(own)
    for mean, members in recipe.seeds.items():
        if mean in known:
            yield ("seeds", mean), "is the name of a contestant; choose another for the mean"
        for index, name in enumerate(members):
            if name not in known:
                yield ("seeds", mean, index), f"no contestant is called {got(name)}{did_you_mean(name, known)}"
            elif others := sorted({row["name"] for row in rows if row["name"] != name and _bare(row) in own[name]}):
                yield ("seeds", mean, index), f"is also called {one_of(others)}; give it one name in all stages"


def _bare(contestant: Mapping[str, Any]) -> Mapping[str, Any]:
    """What makes two contestants one."""
    return {key: value for key, value in contestant.items() if key not in ("name", "series")}


def _misled(each: Reference, recipe: RunRecipe, scope: Scope, written: Mapping[str, list[str] | None]) -> str:
    """Why a reference leads nowhere; nothing if it leads somewhere."""
    if each.name in scope.stages:
        folders = written[each.name]
        if folders is None or each.inner.removesuffix("/model").removesuffix("model") in folders:
            return ""
        ways = [f"${each.name}" + (f"/{way}" if way else "") for way in folders]
        if not ways:
            return f"the stage '{each.name}' writes no model"
        return f"there is no such model; the stage writes {one_of(ways)}"
    if each.name in scope.inputs:
        whole = isinstance(scope.inputs[each.name], str) or not each.inner
        return "" if whole else f"the input '{each.name}' is no text, so nothing lies in it"
    if each.name in recipe.stages:
        return f"the stage '{each.name}' comes later, or is this one; stages run in the order of the file"
    hint = did_you_mean(each.name, [*scope.inputs, *scope.stages])
    return f"no input and no earlier stage is called {got(each.name)}{hint}; text that begins with $ is written $$"


def _check_recipe(below: Source, scope: Scope, look: Look) -> list[str] | None:
    """Which models the stage will write; None where that is not known."""
    verb = below.data.get("verb")
    if "out" in below.data:
        below.tell(("out",), "stages have no 'out': they are kept together", on_key=True)
    if not isinstance(verb, str) or verb not in STAGES:
        known = list(STAGES)
        what = choice(known, verb) if "verb" in below.data else f"must be given: {one_of(known)}"
        below.tell(("verb",), "a pipeline is no stage of another" if verb == "run" else what)
        return None
    below.data = {**resolve(below.data, scope), "out": "out"}
    try:
        stage = STAGES[verb].model_validate(below.data)
    except ValidationError as error:
        below.faults.extend(faults(error, below, STAGES[verb]))
        return None
    for way, what in look(stage):
        below.tell(way, what)
    return stage.written()
