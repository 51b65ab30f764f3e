"""The recipe of `asdm switch`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from asdm_cli.recipe.plans import InheritPlan
from asdm_cli.recipe.schema import READ, Distinct, DistinctlyNamed, Inner, Misplaced, Name, Positive, Strict, Text
from asdm_cli.recipe.switching import NULLS, By, Idle, Part, Switching, misordered, reserved, unknown_unets
from asdm_cli.recipe.verbs.comparing import Comparing, free_series
from asdm_cli.recipe.words import did_you_mean

Share = Annotated[float, Field(ge=0, le=1)]
LINES = ("plain", "fewer steps", "one UNet", "compressed first", "original first", "searched")
"""Series that the plots draw themselves."""


class OneUNet(Strict):
    """One of the UNets."""

    model: Annotated[Text, READ]
    """A model directory, a run directory, or `pocket`."""
    plan: InheritPlan | None = None
    """What it inherits from call to call while it serves; left out, the plan that the model carries, if it does."""


class OtherSchedule(Switching):
    """One schedule of a sweep."""

    name: Name
    """What tables and plots call it."""
    series: Text = "by hand"
    """Schedules of one series are joined by a line in the plots."""

    @field_validator("series")
    @classmethod
    def _free(cls, series: str) -> str:
        return free_series(series, LINES)


class Ratios(Strict):
    """Fixed schedules in two parts: the first of these UNets with each other one, in both orders."""

    unets: Annotated[list[Name], Field(min_length=2), Distinct]
    """Names from `unets` of the recipe."""
    shares: Annotated[list[Share], Field(min_length=1), Distinct] = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """Of the calls, what the other UNet serves: at the beginning, and in another schedule at the end. 0 and 1 are
    one UNet alone."""


class Search(Strict):
    """Find the best schedule under a budget: calibrate, search, and draw with what was found to make sure."""

    budgets: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1), Distinct] = [0.9, 0.75, 0.6]
    """Shares of the first UNet's time in a generation. Without `parts`, the schedule of the first budget is written."""
    prompts: Positive = 8
    """To calibrate and to make sure on, with seeds of their own: those that follow the first `limit`, so that others
    are measured, or the last ones where there are not as many."""
    nulls: bool = True
    """Whether a call may be skipped: the last predictions again (`reuse`), or the line through them (`extrapolate`)."""


class SwitchRecipe(Comparing):
    """Several UNets in one generation, and who serves which part of it."""

    verb: Literal["switch"]
    """The command that this recipe is for."""
    unets: Annotated[dict[Name, OneUNet], Field(min_length=1)]
    """Name -> UNet. The first also gives VAE, text encoder and scheduler; it is the one that the others are compared
    with, and that stock diffusers draws with."""
    by: By = "timestep"
    """What `until` of the parts is: the timestep (falling, from about 1000), the log of the signal-to-noise ratio
    (rising), the fraction of the steps that are done (0 to 1), or the number of UNet calls that are done."""
    parts: Annotated[list[Part], Field(min_length=1)] | None = None
    """Who serves what, from the beginning in pure noise: the schedule that the written model carries. Left out, it
    is that of a `search`; without one, schedules are only compared."""
    idle: Idle = "stay"
    """UNets that serve no call `stay` on the device, or live on the `cpu` until it is their turn."""
    sweep: Annotated[list[OtherSchedule], DistinctlyNamed] = []
    """Schedules to compare on the same prompts and seeds."""
    ratios: Ratios | None = None
    """More of them: the generation in two parts."""
    search: Search | None = None
    """Find schedules."""

    @model_validator(mode="after")
    def _fits_together(self) -> SwitchRecipe:
        known = list(self.unets)
        faults: list[tuple[Inner, str]] = [(("unets", name), reserved(name)) for name in known if name in NULLS]
        if self.parts is not None:
            faults += misordered(self.by, self.parts)
            faults += _below(("parts",), unknown_unets(self.parts, known))
        for index, each in enumerate(self.sweep):
            faults += _below(("sweep", index, "parts"), unknown_unets(each.parts, known))
        for index, name in enumerate(self.ratios.unets if self.ratios else []):
            if name not in known:
                hint = did_you_mean(name, known)
                faults.append((("ratios", "unets", index), f"no UNet is called '{name}'{hint}"))
        if self.search is not None and len(known) == 1 and not self.search.nulls:
            faults.append((("search", "nulls"), "must be true where there is one UNet only: else nothing is to choose"))
        if self.parts is None and not self.sweep and self.ratios is None and self.search is None:
            faults.append((("parts",), "must be given, or 'sweep', 'ratios' or 'search'"))
        if faults:
            raise Misplaced(faults)
        return self

    @property
    def rules(self) -> Switching | None:
        """The recipe's own schedule."""
        return None if self.parts is None else Switching(by=self.by, parts=self.parts)


def _below(way: Inner, faults: list[tuple[Inner, str]]) -> list[tuple[Inner, str]]:
    return [((*way, *inner), what) for inner, what in faults]
