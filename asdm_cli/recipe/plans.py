"""What a recipe, a model's asdm.json and the Python API call a plan: rules, or one of the named presets."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.schedules import Explicit, Schedule, Uniform
from asdm_cli.recipe.schema import Misplaced, Patterns, Positive, Strict, Whole
from asdm_cli.recipe.source import Mark, Source, Where
from asdm_cli.recipe.words import did_you_mean, faults, got, one_of

Order = Annotated[int, Field(ge=0, le=2)]
Carry = Literal["output", "residual"]
Coordinate = Literal["step", "log-snr", "angle"]


class Rule(Strict):
    """Some nodes, and the calls at which they are inherited."""

    nodes: Patterns
    """Addresses (`level.3`, `up.*.1`, `*.cross`), named sets (base, small, tiny, encoder, deepcache.N), or a list."""
    schedule: Schedule
    """Which UNet calls compute these nodes; at all others they are inherited."""
    carry: Carry = "output"
    """What is handed on: a node's output, or the branch that it adds to its input."""
    order: Order = 0
    """0 hands on the last value; 1 and 2 forecast it from the last two or three."""
    coordinate: Coordinate = "step"
    """What a forecast counts in: UNet calls, the log of the signal-to-noise ratio, or the angle between the two."""


class Rules(Strict):
    """A plan rule by rule."""

    rules: Annotated[list[Rule], Field(max_length=8)]
    """A node that several rules name belongs to the first of them."""
    text_once: bool = False
    """Compute the keys and values of the text once a generation: the same pictures, bit by bit, as long as no weight
    changes meanwhile (the scale of a LoRA)."""

    def resolved(self) -> Rules:
        return self


class Preset(Strict):
    """What the named plans have in common."""

    interval: Positive | None = None
    """Every so many calls are computed in full; left out, the preset's own schedule holds."""
    schedule: Schedule | None = None
    """Instead of `interval`: any schedule."""
    order: Order = 0
    """0 is the plan as published; 1 and 2 forecast what it would hand on."""
    coordinate: Coordinate = "step"
    """What a forecast counts in, as in a rule."""

    OWN: ClassVar[Schedule]
    """The preset's own schedule."""
    CARRY: ClassVar[Carry] = "output"

    @model_validator(mode="after")
    def _one_schedule(self) -> Self:
        if self.interval is not None and self.schedule is not None:
            raise Misplaced([(("schedule",), "either 'interval' or 'schedule', not both")])
        return self

    @property
    def nodes(self) -> str:
        """The named set that is inherited."""
        raise AssertionError("every preset names its own")

    def resolved(self) -> Rules:
        """The one rule that this preset stands for."""
        every = Uniform(mode="uniform", interval=self.interval) if self.interval else None
        schedule = self.schedule or every or self.OWN
        rule = Rule(nodes=self.nodes, schedule=schedule, carry=self.CARRY, order=self.order, coordinate=self.coordinate)
        return Rules(rules=[rule])


class DeepCache(Preset):
    """What DeepCache does: all but the outermost layers are inherited; every 3rd call is computed in full."""

    preset: Literal["deepcache"]
    """The name of the preset."""
    branch: Whole = 0
    """DeepCache's cache_branch_id: how many skip connections are still computed at inherited calls, less one."""

    OWN = Uniform(mode="uniform", interval=3)

    @property
    def nodes(self) -> str:
        return f"deepcache.{self.branch}"


class EncoderPropagation(Preset):
    """Faster Diffusion: down blocks and mid are inherited, up blocks (and conv_in) always computed.

    Its own schedule is the one published for 50 calls.
    """

    preset: Literal["encoder-propagation"]
    """The name of the preset."""

    OWN = Explicit(mode="explicit", steps=["0%-8%", 5, 10, 15, 25, 35])

    @property
    def nodes(self) -> str:
        return "encoder"


class BaseMask(Preset):
    """The layers that BK-SDM Base lacks hand on their residual branches; every 2nd call is computed in full.

    Handing on their outputs would leave nothing alive before the last of them.
    """

    preset: Literal["base-mask"]
    """The name of the preset."""

    OWN = Uniform(mode="uniform", interval=2)
    CARRY = "residual"

    @property
    def nodes(self) -> str:
        return "base"


PRESETS: dict[str, type[Preset]] = {
    "deepcache": DeepCache,
    "encoder-propagation": EncoderPropagation,
    "base-mask": BaseMask,
}


def _known_preset(plan: Any) -> Any:
    """Tell a wrong preset at the preset; pydantic tells it of tags, at the whole plan."""
    if isinstance(plan, dict) and "preset" in plan and _kind(plan) is Rules:
        preset = plan["preset"]
        hint = did_you_mean(preset, list(PRESETS)) if isinstance(preset, str) else ""
        raise Misplaced([(("preset",), f"must be {one_of(list(PRESETS))}, got {got(preset)}{hint}")])
    return plan


def _kind(plan: Any) -> type[Rules] | type[Preset]:
    if isinstance(plan, Preset):
        return type(plan)
    preset = plan.get("preset") if isinstance(plan, dict) else None
    return PRESETS.get(preset, Rules) if isinstance(preset, str) else Rules


def _tag(plan: Any) -> str:
    """Of two words: pydantic puts tags into the places of faults, and `rules` is also a key."""
    return f"plan {_kind(plan).__name__}"


InheritPlan = Annotated[
    Annotated[Rules, Tag("plan Rules")]
    | Annotated[DeepCache, Tag("plan DeepCache")]
    | Annotated[EncoderPropagation, Tag("plan EncoderPropagation")]
    | Annotated[BaseMask, Tag("plan BaseMask")],
    Discriminator(_tag),
    BeforeValidator(_known_preset),
]
_PLAN: TypeAdapter[Rules | Preset] = TypeAdapter(InheritPlan)


def read_plan(plan: Any, source: str = "plan") -> Rules:
    """A plan that does not come from a recipe, as its rules. Raises RecipeError with all faults; `source` names it."""
    try:
        return _PLAN.validate_python(plan).resolved()
    except ValidationError as error:
        placeless: dict[Where, Mark] = {(): Mark()}  # no file was read: there are no lines to name
        read = Source(source, plan if isinstance(plan, dict) else {}, values=placeless)
        raise RecipeError(source, faults(error, read, _kind(plan))) from None
