"""The recipe of `asdm prune`."""

from __future__ import annotations

from typing import Annotated, Literal

from asdm_cli.recipe.schema import READ, Out, Patterns, Strict, Text


class PruneRecipe(Strict):
    """Remove blocks or layers from a UNet."""

    verb: Literal["prune"]
    """The command that this recipe is for."""
    model: Annotated[Text, READ]
    """A model directory, a run directory, or `pocket`."""
    remove: Patterns
    """A named set (base, small, tiny), an address pattern, or a list of them."""
    out: Out
    """The run directory to write."""
