"""Whatever stands in a file, loading it gives a recipe or a RecipeError; nothing else, and no hang."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.load import dump, load
from asdm_cli.recipe.verbs import VERBS

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
TEXTS = [path.read_text() for path in SHIPPED]
FUZZ = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
keys = st.sampled_from([key for recipe in VERBS.values() for key in recipe.model_fields])


def load_or_refuse(path: Path, verb: str | None = None, overrides: tuple[str, ...] = ()) -> bool:
    """Whether it loaded; what loaded must survive dump and load."""
    try:
        recipe = load(path, verb, overrides)
    except RecipeError:
        return False
    path.write_text(dump(recipe), encoding="utf-8")
    assert load(path) == recipe
    return True


def test_there_is_something_to_mutate() -> None:
    assert len(TEXTS) >= 6


@FUZZ
@given(data=st.data())
def test_texts_with_holes_and_noise(data: st.DataObject, tmp_path: Path) -> None:
    text = data.draw(st.sampled_from(TEXTS))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 20)))
    noise = data.draw(st.text(alphabet="ab01 \n\t:-,[]{}&*!|>'\"#%@`~?\\é\x00\ufeff", max_size=6))
    path = tmp_path / "recipe.yaml"
    path.write_text(text[:start] + noise + text[end:], encoding="utf-8")
    load_or_refuse(path)


@FUZZ
@given(verb=st.sampled_from(sorted(VERBS)), data=st.dictionaries(keys, values, max_size=8))
def test_right_keys_with_any_values(verb: str, data: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**data, "verb": verb}), encoding="utf-8")
    load_or_refuse(path, verb)


@FUZZ
@given(
    text=st.sampled_from(TEXTS),
    path_to=st.lists(keys | st.integers(0, 3).map(str), min_size=1, max_size=3),
    value=st.text(max_size=10),
)
def test_overrides(text: str, path_to: list[str], value: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    load_or_refuse(path, None, (f"{'.'.join(path_to)}={value}",))
