"""Golden pairs: every wrong recipe beside the message it must give, faults of the file all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.load import load

WRONG = Path(__file__).parent / "wrong"
RECIPES = sorted(path.name for path in WRONG.glob("*.yaml"))


def test_the_pairs_are_complete() -> None:
    assert len(RECIPES) >= 35
    assert {path.stem for path in WRONG.glob("*.expected")} == {Path(name).stem for name in RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_message(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(WRONG)
    with pytest.raises(RecipeError) as caught:
        load(Path(name))
    assert f"{caught.value}\n" == Path(name).with_suffix(".expected").read_text()
