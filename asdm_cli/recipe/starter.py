"""A recipe to start from: a verb's example, and every other key with its default as a comment. Made from the recipe
classes, so that it is never older than they are."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.reader import parse
from asdm_cli.recipe.reference import Node, Tables, json_schema
from asdm_cli.recipe.verbs import POCKET, VERBS

WIDTH = 96
BUNDLED = re.compile(r"\b(model|teacher|original|donor): pocket\b")
"""Where an example names the model that a user would replace first."""
OWN = {
    "train: pocket": "train: shards/*.tar",
    "held_out: pocket-held-out": "held_out: held-out/*.tar",
    "lr: 1.0e-3": "lr: 5.0e-5",
}
"""What is of the bundled model's drawings and size -> what stands there for another model."""


def starter(verb: str, model: str | None = None) -> str:
    """The text of the recipe, with `model` (None: the bundled one) where the example has a model of the user's."""
    recipe = VERBS[verb]
    example = recipe.EXAMPLE
    if model is not None:
        example = BUNDLED.sub(lambda found: f"{found[1]}: {_quoted(model)}", example)
        for bundled, own in OWN.items() if model != POCKET else ():
            example = example.replace(bundled, own)
    given = {block.partition(":")[0]: block.strip() for block in re.split(r"\n(?=\S)", example)}
    schema = json_schema(verb)
    tables = Tables(schema.get("$defs", {}))
    what = schema["description"].split(". ")[0].rstrip(".")
    head = (
        f"# {what}.\n# asdm {verb} FILE --dry-run shows what it would do; asdm schema {verb} --markdown has every key."
    )
    order = [*given, *(key for key in schema["properties"] if key not in given)]
    parts = [head]
    for key in order:
        node = schema["properties"][key]
        if key == "verb":
            parts.append(given[key])
        elif key in given:
            parts.append("\n".join([*_told(tables, node), given[key], *_besides(tables, node, given[key])]))
        else:
            parts.append("\n".join([*_told(tables, node), *(f"# {line}" for line in _left_out(tables, key, node))]))
    return "\n\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    """As it is, where that is read as this text inside braces and outside."""
    try:
        same = all(parse(line, "").data == {"a": text} for line in (f"{{a: {text}}}", f"a: {text}"))
    except RecipeError:
        same = False
    return text if same else json.dumps(text, ensure_ascii=False)


def _told(tables: Tables, node: Node, indent: str = "") -> list[str]:
    """What a key means, and which values it takes."""
    values = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", tables.values(node))
    meaning = " ".join(f"{tables.meaning(node)} ({values})".split())
    return textwrap.wrap(meaning, WIDTH - len(indent), initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _besides(tables: Tables, node: Node, given: str) -> Iterator[str]:
    """Keys inside a key that the example has: those that it leaves out, or all where it has something else there."""
    inner = [name for step, name in tables.inside(node) if step == ""]
    if not inner:
        return
    import yaml

    ((key, held),) = yaml.safe_load(given).items()
    yield "## also inside it:" if isinstance(held, dict) else f"## in its place, {key}:"
    for name, value in tables.defs[inner[0]]["properties"].items():
        if not isinstance(held, dict) or name not in held:
            yield from (f"## {line}" for line in _told(tables, value, "  "))
            yield from (f"## {line}" for line in _left_out(tables, name, value, "  "))


def _left_out(tables: Tables, key: str, node: Node, indent: str = "") -> Iterator[str]:
    """The key with its default, in one line; the keys inside it below, where they have defaults of their own."""
    inner = [name for step, name in tables.inside(node) if step == ""]
    if not inner:
        yield f"{indent}{key}:{_written(node.get('default'))}"
        return
    yield f"{indent}{key}:"
    for name, value in tables.defs[inner[0]]["properties"].items():
        yield from _told(tables, value, indent + "  ")
        yield from _left_out(tables, name, value, indent + "  ")


def _written(default: Any) -> str:
    if default is None:
        return ""
    if isinstance(default, str):
        return f" {default}"
    import yaml

    from asdm_cli.recipe.reader import Dumper

    text = yaml.dump(default, Dumper=Dumper, default_flow_style=True, width=10_000, sort_keys=False)
    return " " + text.removesuffix("...\n").strip()
