"""What changes how a pipeline draws, as recipes, a model's asdm.json and the Python API write it.

Schedules say which UNet calls are key steps, plans what is inherited between them, switching which UNet serves which
calls.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from asdm_cli.errors import RecipeError
from asdm_cli.recipe.schema import Distinct, Inner, Misplaced, Name, Patterns, Positive, Seed, Strict, Text, Whole
from asdm_cli.recipe.source import Mark, Source, Where
from asdm_cli.recipe.words import did_you_mean, faults, got, one_of

_NUMBER = r"[0-9]{1,9}"
_PERCENT = rf"({_NUMBER}(?:\.{_NUMBER})?)%"
_CALLS = re.compile(rf"({_NUMBER})-({_NUMBER})?")
_SHARE = re.compile(rf"{_PERCENT}-(?:{_PERCENT})?")


@dataclass(frozen=True)
class Span:
    """One entry of `steps`. Calls from `start` to before `end`; in hundredths of the run if `percent`; None is open."""

    start: Fraction
    end: Fraction | None
    percent: bool = False

    @classmethod
    def of(cls, entry: int | str) -> Span:
        """ValueError where the text is no range, or a range without calls."""
        if isinstance(entry, int):
            return cls(Fraction(entry), Fraction(entry + 1))
        match = _CALLS.fullmatch(entry) or _SHARE.fullmatch(entry)
        if match is None:
            raise ValueError(f"must be a call or a range such as '5-9', '20-' or '0%-40%', got {got(entry)}")
        percent, (start, end) = match.re is _SHARE, match.groups()
        inside = 0 if percent else 1  # '5-9' has both its ends, '0%-40%' and '40%-100%' share no call
        span = cls(Fraction(start), None if end is None else Fraction(end) + inside, percent)
        if percent and max(span.start, span.end or 0) > 100:
            raise ValueError(f"a run ends at 100%, got {got(entry)}")
        if span.end is not None and span.end <= span.start:
            raise ValueError(f"the range ends before it starts, got {got(entry)}")
        return span

    def within(self, calls: int) -> range:
        """Those of a run of so many calls: call i is in 'a%-b%' if a <= 100 i / calls < b."""
        unit = Fraction(calls, 100) if self.percent else 1
        end = calls if self.end is None else min(calls, ceil(self.end * unit))
        return range(ceil(self.start * unit), end)


def _spans(steps: list[int | str]) -> list[int | str]:
    faults: list[tuple[Inner, str]] = []
    for index, entry in enumerate(steps):
        try:
            Span.of(entry)
        except ValueError as error:
            faults.append(((index,), str(error)))
    if faults:
        raise Misplaced(faults)
    return steps


class _Schedule(Strict):
    mode: str
    """Stands here to be the first key of a recipe that is written back."""
    first: Whole = 0
    """So many calls at the start are key steps whatever the mode says; the very first call always is."""


class _Counted(_Schedule):
    interval: Positive
    """How far apart key steps are on average: a run of T calls has ceil(T / interval) of them. 1 is every call."""


class _Law(_Counted):
    power: Annotated[float, Field(ge=1, le=10)] = 1.4
    """How uneven the steps are; 1 is evenly. Falls by 0.02 until the steps are as many as `interval` says."""


class Uniform(_Counted):
    """Every so many calls."""

    mode: Literal["uniform"]
    """Calls 0, interval, 2 interval, ..."""


class Early(_Law):
    """Dense at the start."""

    mode: Literal["early"]
    """A power law: step k of n is call T (k / n)^power."""


class Late(_Law):
    """Dense at the end."""

    mode: Literal["late"]
    """The distances of `early` in reverse."""


class Center(_Law):
    """Dense about a call inside the run."""

    mode: Literal["center"]
    """A power law to both sides of `center`."""
    center: Annotated[float, Field(ge=0)] | None = None
    """The call about which steps are densest, at most the run's end; 30% of the run if left out."""
    form: Literal["complex", "signed"] = "complex"
    """`complex`: DeepCache's, smooth, for powers below 2; `signed`: the law mirrored, densest at the centre itself."""


class Quadratic(_Counted):
    """Dense at the start, consecutive calls first."""

    mode: Literal["quadratic"]
    """Squares: step k of n is call T (k / n)^2, or the one after step k - 1 where that is later."""


class Random(_Counted):
    """A seeded draw: what a schedule that means something has to beat."""

    mode: Literal["random"]
    """Call 0 and others drawn by `seed`, the same on every machine."""
    seed: Seed = 0
    """Another seed, another draw."""


class Explicit(_Schedule):
    """A list of calls."""

    mode: Literal["explicit"]
    """The calls of `steps`, and call 0."""
    steps: Annotated[list[Whole | Text], Field(min_length=1), AfterValidator(_spans), Distinct]
    """Calls from 0 and ranges: `5-9` (with both ends), `20-` (to the run's end), `0%-40%` (of the run, without its
    end). Calls that a run does not have are left out."""


class Threshold(_Schedule):
    """Decided while a generation runs, on the change that it measures."""

    mode: Literal["threshold"]
    """A key step follows as soon as inheriting would cost more than `threshold`."""
    threshold: Annotated[float, Field(gt=0)]
    """The largest relative error that an inherited feature may be expected to have."""
    longest: Positive = 8
    """Most calls from one key step to the next."""


MODES: dict[str, type[_Schedule]] = {
    "uniform": Uniform,
    "early": Early,
    "late": Late,
    "center": Center,
    "quadratic": Quadratic,
    "random": Random,
    "explicit": Explicit,
    "threshold": Threshold,
}


CountedMode = Literal["uniform", "early", "late", "center", "quadratic", "random"]
"""The modes that need nothing but an interval."""


def _known_mode(value: Any) -> Any:
    """Tell a wrong mode at the mode; pydantic tells it of tags, at the whole schedule."""
    if isinstance(value, _Schedule):
        return value
    if not isinstance(value, dict):
        raise PydanticCustomError("model_type", "must be a mapping of keys")
    if "mode" not in value:
        raise Misplaced([(("mode",), f"must be given: {one_of(list(MODES))}")])
    mode = value["mode"]
    if not isinstance(mode, str) or mode not in MODES:
        hint = did_you_mean(mode, list(MODES)) if isinstance(mode, str) else ""
        raise Misplaced([(("mode",), f"must be {one_of(list(MODES))}, got {got(mode)}{hint}")])
    return value


def _tag(value: dict[str, Any] | _Schedule) -> str:
    """Not the mode itself: pydantic puts tags into the places of faults, and `center` is also a key."""
    return f"mode {value['mode'] if isinstance(value, dict) else value.mode}"


Schedule = Annotated[
    Annotated[Uniform, Tag("mode uniform")]
    | Annotated[Early, Tag("mode early")]
    | Annotated[Late, Tag("mode late")]
    | Annotated[Center, Tag("mode center")]
    | Annotated[Quadratic, Tag("mode quadratic")]
    | Annotated[Random, Tag("mode random")]
    | Annotated[Explicit, Tag("mode explicit")]
    | Annotated[Threshold, Tag("mode threshold")],
    Discriminator(_tag),
    BeforeValidator(_known_mode),
]
"""Told apart by `mode`."""


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
    if isinstance(plan, dict) and "preset" in plan and _plan_kind(plan) is Rules:
        preset = plan["preset"]
        hint = did_you_mean(preset, list(PRESETS)) if isinstance(preset, str) else ""
        raise Misplaced([(("preset",), f"must be {one_of(list(PRESETS))}, got {got(preset)}{hint}")])
    return plan


def _plan_kind(plan: Any) -> type[Rules] | type[Preset]:
    if isinstance(plan, Preset):
        return type(plan)
    preset = plan.get("preset") if isinstance(plan, dict) else None
    return PRESETS.get(preset, Rules) if isinstance(preset, str) else Rules


def _plan_tag(plan: Any) -> str:
    """Of two words: pydantic puts tags into the places of faults, and `rules` is also a key."""
    return f"plan {_plan_kind(plan).__name__}"


InheritPlan = Annotated[
    Annotated[Rules, Tag("plan Rules")]
    | Annotated[DeepCache, Tag("plan DeepCache")]
    | Annotated[EncoderPropagation, Tag("plan EncoderPropagation")]
    | Annotated[BaseMask, Tag("plan BaseMask")],
    Discriminator(_plan_tag),
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
        raise RecipeError(source, faults(error, read, _plan_kind(plan))) from None


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
