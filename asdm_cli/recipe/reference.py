"""The reference of the recipes in Markdown, written from their JSON Schema: every key, its values, its default."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from asdm_cli.recipe.examples import EXAMPLES
from asdm_cli.recipe.json_schema import json_schema
from asdm_cli.recipe.schema import MOST
from asdm_cli.recipe.verbs import VERBS

Node = dict[str, Any]

OPENING = """\
# The recipes

A recipe is one YAML 1.2 file. `verb` says which command it is for, `out` which run directory it writes.
Unknown keys, wrong types and repeated keys are errors, and `asdm check FILE` tells all of them at once.
`a.b` is the key `b` inside `a`; `a[].b` stands in every entry of a list, `a.NAME.b` under every name of a mapping.

This page is written by `asdm schema --markdown` from the classes that read recipes, so it is what they accept.
Editors get the same from `asdm schema > recipe.schema.json`.
"""
UNIONS = {"Rules": ("plan", "Plans"), "Uniform": ("schedule", "Schedules"), "TaskLoss": ("loss", "Losses")}
"""First class of several that one key tells apart -> what a value is called, and the heading of their tables."""
TELLING = ("kind", "mode", "preset")
"""Keys that tell classes apart."""
PLAIN = {
    "string": "text",
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "object": "mapping",
}
BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
HEAD = ("| key | value | default | meaning |", "|---|---|---|---|")


def markdown(verb: str | None = None) -> str:
    """The whole page; of one verb its own part, and the tables that it refers to."""
    tables = _Tables()
    verbs = [verb] if verb else list(VERBS)
    parts = [_of_verb(each, tables) for each in verbs]
    for first in tables.unions():
        parts.append(_of_union(first, tables))
    return "\n".join([OPENING, *parts] if verb is None else parts)


@dataclass
class _Tables:
    """Definitions of all verbs, and the unions that a table has referred to so far."""

    defs: dict[str, Node] = field(default_factory=dict)
    met: dict[str, list[str]] = field(default_factory=dict)

    def unions(self) -> Iterator[str]:
        """First class of each union, those included that are met while this is read."""
        done = 0
        while done < len(self.met):
            yield list(self.met)[done]
            done += 1

    def of(self, node: Node, path: str = "") -> Iterator[str]:
        """A row per key of a mapping, and behind each the rows of what lies in it."""
        required = node.get("required", [])
        for key, value in node["properties"].items():
            where = f"{path}{key}"
            default = "required" if key in required else _default(value)
            yield f"| `{where}` | {_cell(self.words(value))} | {default} | {_cell(self.meaning(value))} |"
            for steps, name in self.inside(value):
                yield from self.of(self.defs[name], f"{where}{steps}.")

    def meaning(self, node: Node) -> str:
        """A key's description; pydantic leaves out one that says the same as its class."""
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

    def words(self, node: Node) -> str:
        """Which values a key takes."""
        if first := self.union(node):
            called, heading = UNIONS[first]
            return f"a [{called}](#{heading.lower()})"
        if choices := _choices(node):
            return " or ".join(dict.fromkeys(self.words(each) for each in choices))
        if "$ref" in node:
            return "the keys below"
        if "enum" in node:
            return _in_a_row([f"`{each}`" for each in node["enum"]])
        if "const" in node:
            return f"`{node['const']}`"
        if node.get("type") == "array":
            return self._list(node)
        if node.get("type") == "object":
            return self._mapping(node)
        return _plain(node)

    def _list(self, node: Node) -> str:
        items = node["items"]
        what = "entries with the keys below" if "$ref" in items else _plural(self.words(items), items)
        least = "non-empty " if node.get("minItems") else ""
        return f"{least}list of {what}" + (f", at most {node['maxItems']}" if "maxItems" in node else "")

    def _mapping(self, node: Node) -> str:
        held = [node.get("additionalProperties"), *node.get("patternProperties", {}).values()]
        inner = next((each for each in held if isinstance(each, dict)), None)
        held_words = f"mapping of names to {self.words(inner)}" if inner else PLAIN["object"]
        return f"{'non-empty ' if node.get('minProperties') else ''}{held_words}"


def _of_verb(verb: str, tables: _Tables) -> str:
    schema = json_schema(verb)
    tables.defs |= schema.get("$defs", {})
    lines = [f"## {verb}", "", _cell(schema["description"]), "", "```yaml", EXAMPLES[verb].strip(), "```", ""]
    return "\n".join([*lines, *HEAD, *tables.of(_own_first(schema, verb)), ""])


def _own_first(schema: Node, verb: str) -> Node:
    """The schema with the keys first that its verb alone has, as a person would write them."""
    properties, own = schema["properties"], VERBS[verb].__annotations__
    order = sorted(properties, key=lambda key: (key == "out", key not in own))
    return {**schema, "properties": {key: properties[key] for key in order}}


def _of_union(first: str, tables: _Tables) -> str:
    called, heading = UNIONS[first]
    lines = [f"## {heading}", "", f"What a {called} may be.", ""]
    for name in tables.met[first]:
        node = tables.defs[name]
        lines += [f"### {_told(name, node)}", "", _cell(node["description"]), "", *HEAD, *tables.of(node), ""]
    return "\n".join(lines)


def _told(name: str, node: Node) -> str:
    """`mode: early`; a class that no key tells apart goes by its own name."""
    for key in TELLING:
        if "const" in node["properties"].get(key, {}):
            return f"`{key}: {node['properties'][key]['const']}`"
    return f"`{name.lower()}`"


def _choices(node: Node) -> list[Node]:
    """What a value may be; null is not among it, because leaving the key out says the same."""
    return [each for each in [*node.get("anyOf", []), *node.get("oneOf", [])] if each.get("type") != "null"]


def _name(node: Node) -> str:
    return str(node["$ref"]).rpartition("/")[2]


def _plain(node: Node) -> str:
    """A plain type with its bounds, but for those that only keep slips of the hand out. Without a type there is
    nothing that would be refused."""
    told = {key: word for key, word in BOUNDS.items() if key in node and abs(node[key]) < MOST}
    bounds = " and ".join(f"{word} {node[key]:g}" for key, word in told.items())
    pattern = f"matching `{node['pattern']}`" if "pattern" in node else ""
    plain = PLAIN[node["type"]] if "type" in node else "anything"
    return " ".join(filter(None, [plain, bounds.replace(" and to ", " to "), pattern]))


def _plural(words: str, node: Node) -> str:
    """`text` -> `texts`, of what a list holds; choices from a few words stay as they are."""
    if "enum" in node or "const" in node:
        return words
    return re.sub(r"\b(text|number|list)\b", r"\1s", words)


def _in_a_row(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _default(node: Node) -> str:
    """As a recipe writes it; nothing where leaving a key out is a choice of its own, or its keys have defaults."""
    value = node.get("default")
    if value is None or "$ref" in node or any("$ref" in each for each in _choices(node)):
        return ""
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return "see meaning"
    return f"`{_flow(value)}`"


def _flow(value: Any) -> str:
    """YAML in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(each) for each in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    """One line, no table's bars."""
    return " ".join(text.split()).replace("|", "\\|")
