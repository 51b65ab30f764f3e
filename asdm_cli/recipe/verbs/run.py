"""The recipe of `asdm run`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from asdm_cli.recipe.schema import Distinct, Out, Strict, Text

Word = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Value = str | int | float | bool | list[str | int | float] | None


class RunRecipe(Strict):
    """Several recipes in a row, each made from what earlier ones wrote."""

    verb: Literal["run"]
    """The command that this recipe is for."""
    title: Text | None = None
    """What the report is called."""
    inputs: dict[Word, Value] = {}
    """Name -> value, which stages use as `$name`: what is likely to be changed, said once."""
    stages: Annotated[dict[Word, dict[Text, Any]], Field(min_length=1)]
    """Name -> the recipe of a verb, without `out`. `$name` stands for an input, or for the directory that an earlier
    stage wrote, as in `model: $prune` or `model: $distill/students/base`. `$$` begins a text with a $."""
    lead: Annotated[list[Word], Distinct] = []
    """Stages whose first table and first plot open the report."""
    beside: Annotated[list[Literal["bk-sdm", "deepcache"]], Distinct] = []
    """Published figures to set beside those that were measured."""
    kept: Text | None = None
    """Where stages are kept, each under its name and a digest of all that it is made from; `stages` beside `out` if
    left out. Runs that name one place share their stages."""
    out: Out
    """The run directory to write."""
