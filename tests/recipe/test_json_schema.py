"""Editors learn every key from the schema: what it is for, and which values it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from asdm_cli.recipe.json_schema import json_schema
from asdm_cli.recipe.verbs import VERBS


def leaves(schema: dict[str, Any], node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key of a recipe that holds no further keys, with its part of the schema."""
    target = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    if "properties" in target:
        for key, value in target["properties"].items():
            yield from leaves(schema, value, f"{path}.{key}")
    elif "$ref" in target.get("items", {}):
        yield from leaves(schema, target["items"], f"{path}[]")
    else:
        yield path.removeprefix("."), target


@pytest.mark.parametrize("verb", VERBS)
def test_every_leaf_key_is_described(verb: str) -> None:
    schema = json_schema(verb)
    found = dict(leaves(schema, schema))
    assert len(found) >= len(VERBS[verb].model_fields)
    assert {"verb", "out"} < set(found)
    assert not [path for path, leaf in found.items() if not leaf.get("description", "").endswith((".", "..."))]


@pytest.mark.parametrize("verb", VERBS)
def test_unknown_keys_are_refused_by_editors_too(verb: str) -> None:
    schema = json_schema(verb)
    mappings = [schema, *schema.get("$defs", {}).values()]
    assert all(mapping["additionalProperties"] is False for mapping in mappings)


def test_all_verbs_in_one_schema_are_told_apart_by_verb() -> None:
    schema = json_schema()
    assert schema["discriminator"]["propertyName"] == "verb"
    assert set(schema["discriminator"]["mapping"]) == set(VERBS)


def numbers(node: Any, way: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if node.get("type") == "integer":
            yield way, node
        for key, inner in node.items():
            yield from numbers(inner, f"{way}.{key}")
    elif isinstance(node, list):
        for inner in node:
            yield from numbers(inner, way)


def test_every_whole_number_has_a_largest() -> None:
    """Or 64 bits are not enough somewhere. What a pipeline hands on is bounded where it is used."""
    found = [(way, node) for way, node in numbers(json_schema()) if "RunRecipe.properties.inputs" not in way]
    assert len(found) > 80
    assert [way for way, node in found if not {"maximum", "exclusiveMaximum"} & node.keys()] == []
