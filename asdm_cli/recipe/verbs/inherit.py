"""The recipe of `asdm inherit`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from asdm_cli.recipe.plans import Carry, Coordinate, InheritPlan, Order
from asdm_cli.recipe.schedules import CountedMode
from asdm_cli.recipe.schema import (
    MOST,
    READ,
    Distinct,
    DistinctlyNamed,
    Misplaced,
    Name,
    Patterns,
    Positive,
    Strict,
    Text,
    Whole,
)
from asdm_cli.recipe.verbs.comparing import Comparing, free_series


class Candidate(Strict):
    """One plan of a sweep."""

    name: Name
    """What tables and plots call it."""
    plan: InheritPlan
    """Rules, or a preset."""
    steps: Positive | None = None
    """UNet steps, where they differ from the others'."""
    series: Text = "asdm"
    """Plans of one series are joined by a line in the plots; `asdm` is the series that the others are compared with."""

    @field_validator("series")
    @classmethod
    def _free(cls, series: str) -> str:
        return free_series(series, ("plain", "fewer steps", "DeepCache"))


class DeepCachePackage(Strict):
    """The DeepCache package itself (extra `peers`), as its users set it up: every combination of these."""

    intervals: Annotated[list[Annotated[int, Field(ge=2, le=MOST)]], Field(min_length=1), Distinct]
    """Its cache_interval."""
    branches: Annotated[list[Whole], Field(min_length=1), Distinct] = [0]
    """Its cache_branch_id."""


class Level(Strict):
    """Nodes of a product, as in a rule."""

    nodes: Patterns
    """Addresses, named sets, or a list."""
    carry: Carry = "output"
    """What is handed on: a node's output, or the branch that it adds to its input."""


class Product(Strict):
    """Every combination of level, mode and interval: a table of the three."""

    levels: Annotated[dict[Name, Level], Field(min_length=1)]
    """Name -> nodes; usually one of blocks, one of layers and one of units."""
    modes: Annotated[list[CountedMode], Field(min_length=1), Distinct] = ["uniform"]
    """Modes of a schedule that know an interval."""
    intervals: Annotated[list[Positive], Field(min_length=1), Distinct] = [2, 3, 5]
    """Mean distances between key steps."""
    order: Order = 0
    """0 hands on the last value; 1 and 2 forecast it."""
    coordinate: Coordinate = "step"
    """What a forecast counts in."""


class InheritRecipe(Comparing):
    """No training: compute less at some steps and inherit features from earlier ones."""

    verb: Literal["inherit"]
    """The command that this recipe is for."""
    model: Annotated[Text, READ]
    """A model directory, a run directory, or `pocket`."""
    plan: InheritPlan | None = None
    """The plan that the written model carries; left out, a sweep only compares."""
    sweep: Annotated[list[Candidate], DistinctlyNamed] = []
    """Plans to compare on the same prompts and seeds, for the front of speed and fidelity."""
    product: Product | None = None
    """More of a sweep: combinations of nodes, modes and intervals."""
    deepcache: DeepCachePackage | None = None
    """Let the DeepCache package draw too, for comparison."""

    @model_validator(mode="after")
    def _something_to_do(self) -> InheritRecipe:
        if self.plan is None and not self.sweep and self.product is None:
            raise Misplaced([(("plan",), "must be given, or 'sweep' or 'product'")])
        return self
