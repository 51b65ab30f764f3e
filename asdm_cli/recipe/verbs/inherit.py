"""The recipe of `asdm inherit`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from asdm_cli.recipe.plans import Carry, Coordinate, InheritPlan, Order
from asdm_cli.recipe.schedules import CountedMode
from asdm_cli.recipe.schema import (
    Distinct,
    DistinctlyNamed,
    Misplaced,
    Name,
    Patterns,
    Positive,
    Strict,
    Text,
)
from asdm_cli.recipe.verbs.drawing import Drawing, Metric


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
        if series in ("plain", "fewer steps", "DeepCache"):
            raise ValueError(f"'{series}' is drawn by what it is named after; choose another name")
        return series


class DeepCachePackage(Strict):
    """The DeepCache package itself (extra `peers`), as its users set it up: every combination of these."""

    intervals: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1), Distinct]
    """Its cache_interval."""
    branches: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), Distinct] = [0]
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


class InheritRecipe(Drawing):
    """No training: compute less at some steps and inherit features from earlier ones."""

    verb: Literal["inherit"]
    """The command that this recipe is for."""
    model: Text
    """A model directory, a run directory, or `pocket`."""
    plan: InheritPlan | None = None
    """The plan that the written model carries; left out, a sweep only compares."""
    sweep: Annotated[list[Candidate], DistinctlyNamed] = []
    """Plans to compare on the same prompts and seeds, for the front of speed and fidelity."""
    product: Product | None = None
    """More of a sweep: combinations of nodes, modes and intervals."""
    deepcache: DeepCachePackage | None = None
    """Let the DeepCache package draw too, for comparison."""
    fewer_steps: Annotated[list[Positive], Distinct] | None = None
    """Steps at which the plain model draws too, the first thing to beat; about 0.8, 0.65, 0.5, 0.35 and 0.2 of
    `steps` if left out."""
    converged: Positive | None = None
    """Also compare with what DPM++ 2M draws in so many steps: near the solution that every sampler is after."""
    limit: Positive = 16
    """Use the first so many prompts only."""
    metrics: Annotated[list[Metric], Field(min_length=1), Distinct] = ["psnr", "ssim"]
    """psnr, ssim and perceptual compare with the plain model's pictures; kid, clip_score, ... as in `asdm eval`."""
    steps: Positive = 50
    """UNet steps per picture."""
    repeats: Positive = 5
    """Timed rounds; every round draws one image with everybody, in turn."""
    warmups: Positive = 1
    """Rounds before the timed ones, not counted."""

    @model_validator(mode="after")
    def _something_to_do(self) -> InheritRecipe:
        if self.plan is None and not self.sweep and self.product is None:
            raise Misplaced([(("plan",), "must be given, or 'sweep' or 'product'")])
        return self
