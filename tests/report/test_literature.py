"""Published figures: whole tables with their protocol, and counts that are ours to the digit."""

from __future__ import annotations

from typing import get_args

import pytest

from asdm_cli.recipe.verbs import RunRecipe
from asdm_cli.report.figures import value
from asdm_cli.report.literature import tables

NAMES = get_args(get_args(get_args(RunRecipe.model_fields["beside"].annotation)[0])[0]) or ("bk-sdm", "deepcache")
COUNTED = {"SD 1.4": 859.520964, "BK-SDM Base": 579.384964, "BK-SDM Small": 482.346884, "BK-SDM Tiny": 323.384964}
"""Millions of parameters; the golden counts of the presets' own test."""


@pytest.mark.parametrize("name", NAMES)
def test_every_table_has_rows_figures_and_a_protocol(name: str) -> None:
    (table,), cards = tables([name])
    assert len(table.rows) >= 4
    assert all(value(row[column.key]) is not None for row in table.rows for column in table.columns[1:])
    card = cards[table.card]
    assert {"source", "prompts", "drawing"} <= set(card)
    assert "not ours" in table.note


def test_counts_are_those_that_we_count() -> None:
    (table,), _ = tables(["bk-sdm"])
    assert {row["name"]: row["unet_params_m"] for row in table.rows} == {
        name: pytest.approx(count, abs=0.005) for name, count in COUNTED.items()
    }


def test_several_keep_their_order() -> None:
    assert [table.title for table in tables(["deepcache", "bk-sdm"])[0]] == [
        tables([name])[0][0].title for name in ("deepcache", "bk-sdm")
    ]
