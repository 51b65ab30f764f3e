"""JSON Schema of the recipes, for editors that complete and check YAML."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from asdm_cli.recipe.verbs import VERBS

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(verb: str | None = None) -> dict[str, Any]:
    """The schema of one verb's recipes, or of all of them, told apart by their `verb` key."""
    if verb is None:
        union: Any = reduce(or_, VERBS.values())
        schema = TypeAdapter(Annotated[union, Field(discriminator="verb")]).json_schema()
        return {"$schema": DIALECT, "title": "asdm recipe"} | schema
    return {"$schema": DIALECT} | VERBS[verb].model_json_schema()
