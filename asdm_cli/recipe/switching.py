"""Which UNet serves which calls of a generation, as recipes and a model's asdm.json write it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.plans import Rules
from asdm_cli.recipe.schema import Distinct, Inner, Misplaced, Name, Strict
from asdm_cli.recipe.source import Mark, Source, Where
from asdm_cli.recipe.words import did_you_mean, faults

By = Literal["timestep", "log-snr", "fraction", "step"]
Idle = Literal["stay", "cpu"]
"""Where UNets are while they serve no call."""
NULLS = ("reuse", "extrapolate")
"""The null model: no UNet runs. `reuse` is the last prediction again, `extrapolate` the line through the last two."""
FALLING = ("timestep",)
"""What falls during a generation; all else rises."""
LIMITS: dict[str, tuple[float, float]] = {
    "timestep": (0, float("inf")),
    "log-snr": (float("-inf"), float("inf")),
    "fraction": (0, 1),
    "step": (0, float("inf")),
}


class Part(Strict):
    """A stretch of the generation."""

    unet: Name
    """Who serves it: a name from `unets`, or the null model: `reuse` or `extrapolate` (the last predictions)."""
    until: float | None = None
    """Where the next part begins: the call at which the generation has come to this value is already the next
    part's. The last part has none."""


class Switching(Strict):
    """Parts in the order of the generation, which begins in pure noise."""

    by: By = "timestep"
    """What `until` is: the timestep (falling, from about 1000), the log of the signal-to-noise ratio (rising), the
    fraction of the steps that are done (0 to 1), or the number of UNet calls that are done."""
    parts: Annotated[list[Part], Field(min_length=1)]
    """Who serves what. A part whose `until` is reached before it begins serves nothing."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if wrong := misordered(self.by, self.parts):
            raise Misplaced(wrong)
        return self


class Switch(Switching):
    """What a model's asdm.json says of its UNets: who they are, and who serves what."""

    unets: Annotated[list[Name], Field(min_length=1), Distinct]
    """Their names. The first is the pipeline's own `unet`; the others lie in `unets/NAME`."""
    plans: dict[Name, Rules] = Field(default_factory=dict)
    """By name: what this UNet inherits from call to call while it serves."""
    idle: Idle = "stay"
    """`stay` on the device, or live on the `cpu` while another UNet serves."""

    @property
    def rules(self) -> Switching:
        """Who serves what, alone."""
        return Switching(by=self.by, parts=self.parts)

    @model_validator(mode="after")
    def _known(self) -> Self:
        wrong = [(("parts", *inner), what) for inner, what in unknown_unets(self.parts, self.unets)]
        wrong += [(("unets", self.unets.index(name)), reserved(name)) for name in self.unets if name in NULLS]
        wrong += [
            (("plans", name), f"no UNet is called '{name}'{did_you_mean(name, self.unets)}")
            for name in self.plans
            if name not in self.unets
        ]
        if wrong:
            raise Misplaced(wrong)
        return self


def described(rules: Switching) -> str:
    """`small until timestep 400, then large`."""
    spans = ["" if part.until is None else f" until {rules.by} {part.until:g}" for part in rules.parts]
    return ", then ".join(f"{part.unet}{span}" for part, span in zip(rules.parts, spans, strict=True))


def reserved(name: str) -> str:
    """The fault of a UNet that is called like the null model."""
    return f"'{name}' is the null model's name; call the UNet something else"


def read_switching(rules: Any, source: str) -> Switching:
    """Rules that do not come from a recipe. Raises RecipeError with all faults; `source` names them."""
    return _read(Switching, rules, source)


def read_switch(held: Any, source: str) -> Switch:
    """The same of what a model says. Raises RecipeError."""
    return _read(Switch, held, source)


Kind = TypeVar("Kind", bound=Switching)


def _read(kind: type[Kind], held: Any, source: str) -> Kind:
    try:
        return kind.model_validate(held)
    except ValidationError as error:
        placeless: dict[Where, Mark] = {(): Mark()}  # no file was read: there are no lines to name
        read = Source(source, held if isinstance(held, dict) else {}, values=placeless)
        raise RecipeError(source, faults(error, read, kind)) from None


def misordered(by: By, parts: list[Part]) -> list[tuple[Inner, str]]:
    """Faults of parts that do not follow each other; places begin at `parts`."""
    wrong = [*_open_ends(parts), *_wrong_order(by, parts)]
    if parts[0].unet in NULLS:
        wrong.append((("parts", 0, "unet"), f"'{parts[0].unet}' needs a prediction: begin with a UNet"))
    return wrong


def _open_ends(parts: list[Part]) -> list[tuple[Inner, str]]:
    wrong: list[tuple[Inner, str]] = [
        (("parts", index, "until"), "must be given: only the last part goes to the end")
        for index, part in enumerate(parts[:-1])
        if part.until is None
    ]
    if parts[-1].until is not None:
        where = ("parts", len(parts) - 1, "until")
        wrong.append((where, "the last part goes to the end; leave it out, or say who comes after"))
    return wrong


def _wrong_order(by: By, parts: list[Part]) -> list[tuple[Inner, str]]:
    wrong: list[tuple[Inner, str]] = []
    low, high = LIMITS[by]
    falls = by in FALLING
    given = [(index, part.until) for index, part in enumerate(parts) if part.until is not None]
    for place, (index, until) in enumerate(given):
        if not low <= until <= high:
            wrong.append((("parts", index, "until"), f"a {by} lies between {low:g} and {high:g}"))
        before = given[place - 1][1] if place else None
        if before is not None and (until > before if falls else until < before):
            order = "fall" if falls else "rise"
            wrong.append((("parts", index, "until"), f"{by}s {order} from part to part; it was {before:g}"))
    return wrong


def unknown_unets(parts: list[Part], known: list[str]) -> list[tuple[Inner, str]]:
    """Faults, below `parts`, of names that are neither known nor the null model's."""
    return [
        ((index, "unet"), f"no UNet is called '{part.unet}'{did_you_mean(part.unet, [*known, *NULLS])}")
        for index, part in enumerate(parts)
        if part.unet not in (*known, *NULLS)
    ]
