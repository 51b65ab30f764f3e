"""Which UNet serves which call of a generation, from rules and from where the calls lie. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise

from asdm_cli.recipe.patches import FALLING, NULLS, By, Part, Switching

Place = float | Fraction
COUNTED: dict[str, Callable[[int], Sequence[Place]]] = {
    "step": range,
    "fraction": lambda calls: [Fraction(call, calls) for call in range(calls)],
}
"""Coordinates that need no scheduler, by the number of calls: the calls that are done, and their share of all."""


def assign(rules: Switching, where: Sequence[Place]) -> tuple[str, ...]:
    """Who serves each call; `where[i]` is call i's place in `rules.by`.

    A part serves the calls before its `until` is reached; the call at `until` itself is the next part's. So a part
    serves timesteps above it, log-SNRs below it, calls with i/n < until, and calls i < until. What is reached stays
    reached. Numbers are compared as they are written in decimals: 0.2 of 25 calls is 5 calls.

    Null models stay in the result. Only where nothing has been predicted yet, as when image to image begins inside
    such a part, the nearest UNet that follows serves instead; where none follows, the last one before.
    """
    bounds = [None if part.until is None else _exact(part.until) for part in rules.parts]
    indices: list[int] = []
    at = 0
    for place in map(_exact, where):
        while (bound := bounds[at]) is not None and (place <= bound if rules.by in FALLING else place >= bound):
            at += 1
        indices.append(at)
    names = [part.unet for part in rules.parts]
    served = [names[index] for index in indices]
    if served and served[0] in NULLS:
        around = [*served, *names[indices[-1] :], *reversed(names[: indices[0]])]
        served[0] = next(name for name in around if name not in NULLS)
    return tuple(served)


def _exact(place: Place) -> Fraction:
    return Fraction(str(place))


def rules_of(served: Sequence[str], timesteps: Sequence[float]) -> Switching:
    """Rules by which these serve these calls: `assign` gives `served` back.

    By timestep, with boundaries midway between two calls, so that they stay where they are when the number of steps
    changes. By step where a boundary lies between calls of one timestep, or of rising ones.
    """
    ends = [call for call in range(1, len(served)) if served[call] != served[call - 1]]
    falls = all(later <= earlier for earlier, later in pairwise(timesteps))
    if falls and all(timesteps[end] < timesteps[end - 1] for end in ends):
        by: By = "timestep"
        untils = [(timesteps[end - 1] + timesteps[end]) / 2 for end in ends]
    else:
        by, untils = "step", [float(end) for end in ends]
    parts = [Part(unet=served[end - 1], until=until) for end, until in zip(ends, untils, strict=True)]
    return Switching(by=by, parts=[*parts, Part(unet=served[-1])])
