"""Published figures: each with its protocol, none among ours."""

from __future__ import annotations

from typing import get_args

from asdm_cli.recipe.verbs import RunRecipe
from asdm_cli.records import Report
from asdm_cli.report.tables import facts, main
from asdm_cli.verbs.run import published


def test_every_published_table_that_a_recipe_may_name_is_there_with_its_protocol() -> None:
    names = get_args(get_args(RunRecipe.model_fields["beside"].annotation)[0])
    assert set(names) == {"bk-sdm", "deepcache"}
    rows, cards = published(names)
    assert list(rows) == list(cards)
    assert all({"source", "drawing", "prompts"} <= card.keys() for card in cards.values())
    tables = facts(Report("run", facts=dict(rows)))
    assert [(len(table.columns), len(table.rows)) for table in tables] == [(6, 4), (4, 6)]
    assert [row[3].text for row in tables[0].rows] == ["13.05", "15.76", "16.98", "17.12"]
    assert [head.number for head in tables[0].columns] == [False, *[True] * 5]
    assert main(Report("run", facts=dict(rows), protocols=cards)) is None, "never among what was measured"
