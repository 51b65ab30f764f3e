"""The stages of a pipeline file: what `$name` in them stands for, and gates 1 and 2 of each stage's own recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from asdm_cli.recipe.schema import Strict
from asdm_cli.recipe.source import Source, Where
from asdm_cli.recipe.verbs import VERBS, AssembleRecipe, DistillRecipe, RunRecipe
from asdm_cli.recipe.words import did_you_mean, faults, got, one_of

REFERENCE = re.compile(r"\$([a-z][a-z0-9_-]*)(?:/(.+))?")
STAGES = {verb: recipe for verb, recipe in VERBS.items() if verb != "run"}


def _students(recipe: DistillRecipe) -> list[str]:
    names = [student.name for student in recipe.students]
    return ["", *(f"students/{name}" for name in names)] if len(names) == 1 else [f"students/{name}" for name in names]


def _assembled(recipe: AssembleRecipe) -> list[str] | None:
    return None if recipe.explore else [""]


OFFERS: dict[str, Callable[[Any], list[str] | None]] = {
    "prune": lambda _: [""],
    "distill": _students,
    "assemble": _assembled,
    "condconv-expand": lambda _: [""],
    "inherit": lambda recipe: [""] if recipe.plan else [],
    "switch": lambda recipe: [""] if recipe.parts or recipe.search else [],
    "bench": lambda _: [],
    "eval": lambda _: [],
}
"""Verb -> where in its run directory models lie; None where only the run itself finds out."""


@dataclass(frozen=True)
class Reference:
    """`$name/inner` at a place of a stage's recipe."""

    where: Where
    name: str
    inner: str = ""


@dataclass
class Scope:
    """What names stand for, as far as the file has come. Stages stand for their directories."""

    inputs: Mapping[str, Any]
    stages: dict[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        return [*self.inputs, *self.stages]

    def value(self, text: str) -> Any:
        """What a text of a recipe stands for. A reference that leads nowhere, which `check` tells, stays as it is."""
        if not text.startswith("$"):
            return text
        if text.startswith("$$"):
            return text[1:]
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


def stage(data: Mapping[str, Any], scope: Scope, out: str) -> Strict:
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


def check(source: Source, recipe: RunRecipe) -> None:
    """Gates 1 and 2 of every stage, in the order of the file; what is wrong becomes a fault of `source`."""
    scope, offers = Scope(recipe.inputs), dict[str, list[str] | None]()
    for name, data in recipe.stages.items():
        below = source.below(("stages", name), data)
        if name in recipe.inputs:
            below.faults.append(below.fault((), f"'{name}' is the name of an input already", on_key=True))
        _check_references(below, recipe, scope, offers)
        offers[name] = _check_recipe(below, scope)
        scope.stages[name] = name
    used = {each.name for data in recipe.stages.values() for each in references(data)}
    for name in recipe.inputs:
        if name not in used:
            source.faults.append(source.fault(("inputs", name), "no stage uses it; leave it out", on_key=True))
    for index, name in enumerate(recipe.lead):
        if name not in recipe.stages:
            what = f"no stage is called '{name}'{did_you_mean(name, list(recipe.stages))}"
            source.faults.append(source.fault(("lead", index), what))


def _check_references(below: Source, recipe: RunRecipe, scope: Scope, offers: Mapping[str, list[str] | None]) -> None:
    """What leads nowhere is told, and not read any further."""
    for each in references(below.data):
        if problem := _misled(each, recipe, scope, offers):
            below.faults.append(below.fault(each.where, problem))
            below.unread.add(each.where)


def _misled(each: Reference, recipe: RunRecipe, scope: Scope, offers: Mapping[str, list[str] | None]) -> str:
    if each.name in scope.stages:
        return _misplaced(each, offers[each.name])
    if each.name in scope.inputs:
        whole = isinstance(scope.inputs[each.name], str) or not each.inner
        return "" if whole else f"the input '{each.name}' is no text, so nothing lies in it"
    if each.name in recipe.stages:
        return f"the stage '{each.name}' comes later, or is this one; stages run in the order of the file"
    hint = did_you_mean(each.name, scope.names())
    return f"no input and no earlier stage is called '{each.name}'{hint}; text that begins with $ is written $$"


def _misplaced(each: Reference, offered: list[str] | None) -> str:
    """A model that its stage does not write."""
    inner = each.inner.removesuffix("/model").removesuffix("model") if offered is not None else ""
    if offered is None or inner in offered:
        return ""
    if not offered:
        return f"the stage '{each.name}' writes no model"
    ways = [f"${each.name}" + (f"/{way}" if way else "") for way in offered]
    return f"there is no such model; the stage writes {one_of(ways)}"


def _check_recipe(below: Source, scope: Scope) -> list[str] | None:
    """Which models the stage will write; None where that is not known."""
    verb = below.data.get("verb")
    if "out" in below.data:
        below.faults.append(below.fault(("out",), "stages have no 'out': they are kept together", on_key=True))
    if verb not in STAGES:
        what = f"must be {'' if 'verb' in below.data else 'given: '}{one_of(list(STAGES))}"
        hint = did_you_mean(verb, list(STAGES)) if isinstance(verb, str) and verb not in VERBS else ""
        given = f", got {got(verb)}{hint}" if "verb" in below.data else ""
        below.faults.append(below.fault(("verb",), what + given))
        return None
    below.data = {**resolve(below.data, scope), "out": "out"}
    try:
        return OFFERS[verb](STAGES[verb].model_validate(below.data))
    except ValidationError as error:
        below.faults.extend(faults(error, below, STAGES[verb]))
        return None
