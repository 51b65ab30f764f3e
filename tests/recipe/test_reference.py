"""The reference and the JSON Schema are what the recipe classes say: nothing stale, nothing left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asdm_cli.recipe.load import load
from asdm_cli.recipe.reference import json_schema, markdown
from asdm_cli.recipe.verbs import VERBS

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
ROW = re.compile(r"\| `([^`]+)` \| (.+) \| (.*) \| (.+) \|")


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


def rows(text: str) -> dict[str, tuple[str, str, str]]:
    """Key -> value, default, meaning; the last of several tables wins."""
    found = [match.groups() for line in text.splitlines() if (match := ROW.fullmatch(line))]
    return {key: (value, default, meaning) for key, value, default, meaning in found}


def test_the_page_is_what_the_classes_say_now() -> None:
    assert PAGE.read_text() == markdown(), "stale: asdm schema --markdown > docs/recipes.md"
    headings = {heading.lower() for heading in re.findall(r"^## (\w+)$", markdown(), re.M)}
    assert set(re.findall(r"\]\(#(\w+)\)", markdown())) == {"losses", "patches", "plans", "schedules"} <= headings


@pytest.mark.parametrize("verb", VERBS)
def test_every_key_is_described_and_no_other_taken(verb: str, tmp_path: Path) -> None:
    schema, page = json_schema(verb), markdown(verb)
    found, shown = dict(leaves(schema, schema)), rows(page)
    assert len(found) >= len(VERBS[verb].model_fields)
    assert {"verb", "out"} < set(found) <= set(shown)
    assert next(iter(shown)) == "verb"
    said = [leaf.get("description", "") for leaf in found.values()] + [meaning for _, _, meaning in shown.values()]
    assert all(text.endswith((".", "...")) for text in said)
    assert all(each["additionalProperties"] is False for each in [schema, *schema.get("$defs", {}).values()])
    (tmp_path / "recipe.yaml").write_text(VERBS[verb].EXAMPLE)
    assert load(tmp_path / "recipe.yaml", verb)
    assert VERBS[verb].EXAMPLE.strip() in page
