"""What recipes may say, for programs (JSON Schema) and for people (Markdown): every key, its values, its default."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from asdm_cli.recipe import MOST
from asdm_cli.recipe.messages import DISCRIMINATORS
from asdm_cli.recipe.verbs import VERBS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Node = dict[str, Any]

OPENING = """\
# The recipes

A recipe is one YAML 1.2 file. `verb` says which command it is for, `out` which run directory it writes.
Unknown keys, wrong types and repeated keys are errors, and `asdm check FILE` tells all of them at once.
Behind `a: &a` another mapping takes over its keys by `<<: *a`; keys of its own go first.
`a.b` is the key `b` inside `a`; `a[].b` stands in every entry of a list, `a.NAME.b` under every name of a mapping.

This page is written by `asdm schema --markdown` from the classes that read recipes, so it is what they accept.
Editors get the same from `asdm schema > recipe.schema.json`.
"""
UNIONS = {
    "CachePlan": ("plan", "Plans"),
    "Uniform": ("schedule", "Schedules"),
    "TaskLoss": ("loss", "Losses"),
    "FeatureCacheSpec": ("patch", "Patches"),
}
"""First class of several that one key tells apart -> what a value is called, and the heading of their tables."""
PLAIN = {"string": "text", "boolean": "true or false", "integer": "whole number", "object": "mapping"}
BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
HEAD = ("| key | value | default | meaning |", "|---|---|---|---|")


def json_schema(verb: str | None = None) -> Node:
    """The schema of one verb's recipes, or of all of them, told apart by their `verb` key."""
    if verb is not None:
        return {"$schema": DIALECT} | VERBS[verb].model_json_schema()
    union: Any = reduce(or_, VERBS.values())
    schema = TypeAdapter(Annotated[union, Field(discriminator="verb")]).json_schema()
    return {"$schema": DIALECT, "title": "asdm recipe"} | schema


def markdown(verb: str | None = None) -> str:
    """The whole page; of one verb its own part, and the tables that it refers to."""
    tables, parts = Tables(), [] if verb else [OPENING]
    for each in [verb] if verb else VERBS:
        schema, own = json_schema(each), VERBS[each].__annotations__
        tables.defs |= schema.get("$defs", {})
        order = sorted(schema["properties"], key=lambda key: (key == "out", key not in own))
        schema["properties"] = {key: schema["properties"][key] for key in order}
        example = ["```yaml", VERBS[each].EXAMPLE.strip(), "```"]
        parts += [f"## {each}", "", _cell(schema["description"]), "", *example, "", *HEAD, *tables.rows(schema), ""]
    told = 0
    while told < len(tables.met):  # a union's own tables may meet further ones
        first = list(tables.met)[told]
        called, heading = UNIONS[first]
        parts += [f"## {heading}", "", f"What a {called} may be.", ""]
        for name in tables.met[first]:
            node = tables.defs[name]
            parts += [f"### {_title(name, node)}", "", _cell(node["description"]), "", *HEAD, *tables.rows(node), ""]
        told += 1
    return "\n".join(parts)


@dataclass
class Tables:
    """Definitions of all verbs, and the unions that a table has referred to so far."""

    defs: dict[str, Node] = field(default_factory=dict)
    met: dict[str, list[str]] = field(default_factory=dict)

    def rows(self, node: Node, path: str = "") -> Iterator[str]:
        """A row per key of a mapping, and behind each the rows of what lies in it."""
        for key, value in node["properties"].items():
            default = "required" if key in node.get("required", []) else _default(value)
            meaning = self.meaning(value)
            yield f"| `{path}{key}` | {_cell(self.values(value))} | {default} | {_cell(meaning)} |"
            for steps, name in self.inside(value):
                yield from self.rows(self.defs[name], f"{path}{key}{steps}.")

    def meaning(self, node: Node) -> str:
        """pydantic leaves out a key's description that says the same as its class."""
        return str(node.get("description") or self.defs[_name(node)]["description"])

    def inside(self, node: Node) -> Iterator[tuple[str, str]]:
        """Classes whose keys follow, each with the way there; unions have tables of their own."""
        if "$ref" in node:
            yield "", _name(node)
        elif not self.union(node):
            for each in _choices(node):
                yield from self.inside(each)
            for key, step in (("items", "[]"), ("additionalProperties", ".NAME")):
                if isinstance(node.get(key), dict):
                    yield from ((step + more, name) for more, name in self.inside(node[key]))

    def union(self, node: Node) -> str:
        """The first class of several that one key tells apart; nothing for other nodes."""
        names = [_name(each) for each in node.get("oneOf", []) if "$ref" in each]
        if len(names) < 2:
            return ""
        self.met.setdefault(names[0], names)
        return names[0]

    def values(self, node: Node) -> str:
        """Which values a key takes, in words."""
        kind = node.get("type")
        if first := self.union(node):
            called, heading = UNIONS[first]
            return f"a [{called}](#{heading.lower()})"
        if choices := _choices(node):
            return " or ".join(dict.fromkeys(self.values(each) for each in choices))
        if "$ref" in node:
            return "the keys below"
        if "enum" in node or "const" in node:
            *words, last = [f"`{each}`" for each in node.get("enum") or [node["const"]]]
            return f"{', '.join(words)} or {last}" if words else last
        if kind == "array":
            items = node["items"]
            what = "entries with the keys below" if "$ref" in items else self.values(items)
            if "enum" not in items:
                what = re.sub(r"\b(text|number|list)\b", r"\1s", what)
            most = f", at most {node['maxItems']}" if "maxItems" in node else ""
            return f"{'non-empty ' if node.get('minItems') else ''}list of {what}{most}"
        if kind == "object":
            held = [node.get("additionalProperties"), *node.get("patternProperties", {}).values()]
            inner = next((each for each in held if isinstance(each, dict)), None)
            what = f"mapping of names to {self.values(inner)}" if inner else "mapping"
            return f"{'non-empty ' if node.get('minProperties') else ''}{what}"
        told = {key: word for key, word in BOUNDS.items() if key in node and abs(node[key]) < MOST}
        bounds = " and ".join(f"{word} {node[key]:g}" for key, word in told.items()).replace(" and to ", " to ")
        pattern = f"matching `{node['pattern']}`" if "pattern" in node else ""
        return " ".join(filter(None, [PLAIN.get(str(kind), kind or "anything"), bounds, pattern]))


def _title(name: str, node: Node) -> str:
    """`mode: early`; a class that no one word tells apart goes by its own name."""
    tags = {key: node["properties"].get(key, {}).get("const") for key in DISCRIMINATORS}
    return next((f"`{key}: {tag}`" for key, tag in tags.items() if tag), f"`{name.lower()}`")


def _choices(node: Node) -> list[Node]:
    """What a value may be; null is not among it, because leaving the key out says the same."""
    return [each for each in [*node.get("anyOf", []), *node.get("oneOf", [])] if each.get("type") != "null"]


def _name(node: Node) -> str:
    return str(node["$ref"]).rpartition("/")[2]


def _default(node: Node) -> str:
    """As a recipe writes it; nothing where leaving a key out is a choice of its own, or its keys have defaults."""
    value = node.get("default")
    if value is None or "$ref" in node or any("$ref" in each for each in _choices(node)):
        return ""
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return "see meaning"
    return "`" + (value if isinstance(value, str) else re.sub(r'"', "", json.dumps(value))) + "`"


def _cell(text: str) -> str:
    """One line, no table's bars."""
    return " ".join(text.split()).replace("|", "\\|")
