"""The reference is what the recipe classes say: nothing stale, nothing left out, every example a recipe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asdm_cli.recipe.examples import EXAMPLES
from asdm_cli.recipe.json_schema import json_schema
from asdm_cli.recipe.load import load
from asdm_cli.recipe.reference import markdown
from asdm_cli.recipe.verbs import VERBS
from tests.recipe.test_json_schema import leaves
from tests.typed import asdm

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
ROW = re.compile(r"\| `([^`]+)` \| (.+) \| (.*) \| (.+) \|")


def rows(text: str) -> dict[str, tuple[str, str, str]]:
    """Key -> value, default, meaning; the last of several tables wins."""
    found = [match.groups() for line in text.splitlines() if (match := ROW.fullmatch(line))]
    return {key: (value, default, meaning) for key, value, default, meaning in found}


def test_the_page_is_what_the_classes_say_now() -> None:
    assert PAGE.read_text() == markdown(), "stale: asdm schema --markdown > docs/recipes.md"


@pytest.mark.parametrize("verb", VERBS)
def test_every_key_has_a_row_and_every_row_a_meaning(verb: str) -> None:
    schema = json_schema(verb)
    keys = {key for key, _ in leaves(schema, schema)}
    shown = rows(markdown(verb))
    assert len(keys) >= len(VERBS[verb].model_fields)
    assert not keys - set(shown)
    assert not [key for key, (_, _, meaning) in shown.items() if not meaning.endswith((".", "..."))]


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_is_a_recipe_of_its_verb(verb: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(EXAMPLES[verb])
    assert load(file, verb)
    assert EXAMPLES[verb].strip() in markdown(verb)


def test_examples_are_of_the_verbs_that_there_are() -> None:
    assert list(EXAMPLES) == list(VERBS)


@pytest.mark.parametrize(
    ("verb", "key", "value", "default"),
    [
        ("distill", "batch", "whole number from 1", "`64`"),
        ("distill", "text_dropout", "number from 0 to 1", "`0.1`"),
        ("distill", "ema.decay", "number from 0 and below 1", "`0.9999`"),
        ("distill", "ema", "the keys below or `none`", ""),
        ("distill", "students[].model", "text", "required"),
        ("distill", "data.cache", "`latents` or `none`", "`latents`"),
        ("distill", "losses", "non-empty list of a [loss](#losses)", "see meaning"),
        ("distill", "validation.prompts", "list of texts, at most 64", "`[]`"),
        ("distill", "optimizer.options", None, "`{weight_decay: 0.01}`"),
        ("distill", "snr_gamma", "number above 0", ""),
        ("assemble", "donors", "non-empty mapping of names to text", "required"),
        ("assemble", "levels", "non-empty list of texts", ""),
        ("inherit", "plan", "a [plan](#plans)", ""),
        ("inherit", "product.levels.NAME.carry", "`output` or `residual`", "`output`"),
        ("inherit", "order", "whole number from 0 to 2", "`0`"),
        ("bench", "models[].expand.experts", "whole number from 2 to 64", "`4`"),
        ("run", "stages", "non-empty mapping of names to mapping", "required"),
    ],
)
def test_values_bounds_and_defaults_in_words(verb: str, key: str, value: str | None, default: str) -> None:
    shown = rows(markdown(verb))[key]
    assert shown[:2] == (value or shown[0], default)


def test_headings_that_tables_refer_to_are_there() -> None:
    page = markdown()
    targets = set(re.findall(r"\]\(#(\w+)\)", page))
    assert targets == {"losses", "plans", "schedules"}
    assert targets <= {heading.lower() for heading in re.findall(r"^## (\w+)$", page, re.M)}


def test_own_keys_come_first_and_out_last() -> None:
    keys = list(rows(markdown("eval")))
    assert keys[:2] == ["verb", "models"]
    assert keys[-1] == "out"


def test_the_command_prints_it() -> None:
    assert asdm("schema", "prune", "--markdown").out == markdown("prune")
