"""Which combinations of donors are worth drawing: the error of the output with one part of another donor in the place
of the first donor's own is measured, and that of several parts is foretold to be their sum, as `importance` has it of
units that go. A part is a level, or the mid block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torchmetrics.functional import spearman_corrcoef

from asdm_cli.errors import ModelError
from asdm_cli.recipe.verbs import NONE, Combination

MID = "mid"
FEW = 3
"""Set-ups from which on it means something that they are in one order."""

Errs = Callable[[Combination], float]
"""The error of a combination. Raises ModelError where it is no UNet."""


@dataclass(frozen=True)
class Foretold:
    """`parts`: the error of each alone, by what it is called; `errors`: what is foretold of combinations, by name."""

    parts: dict[str, float]
    errors: dict[str, float]

    def best(self, names: Sequence[str], most: int | None) -> list[str]:
        """Those of which least is foretold, so many, in the order in which they were given."""
        kept = {*sorted(names, key=lambda name: self.errors[name])[:most]}
        return [name for name in names if name in kept]


def foretell(whole: Combination, wanted: Mapping[str, Combination], errs: Errs) -> Foretold:
    """From what errs beside `whole`, the combination that is the first donor. What has a part that fits only together
    with others (of SDXL the mid block with the coarsest level), so that it cannot be measured alone, is measured whole.
    """
    alone: dict[str, float | None] = {}
    found = {}
    start = _fitting(whole, errs)
    for name, one in wanted.items():
        own = parts(one, whole)
        alone |= {part: _fitting(each, errs) for part, each in own.items() if part not in alone}
        more = [error - start for part in own if start is not None and (error := alone[part]) is not None]
        found[name] = start + sum(more) if start is not None and len(more) == len(own) else errs(one)
    return Foretold({part: error for part, error in alone.items() if error is not None}, found)


def _fitting(one: Combination, errs: Errs) -> float | None:
    try:
        return errs(one)
    except ModelError:
        return None


def parts(one: Combination, whole: Combination) -> dict[str, Combination]:
    """What of it is not the first donor's, and the first donor with that part alone. Of another number of levels it is
    one part."""
    if len(one.levels) != len(whole.levels):
        return {f"{'-'.join(one.levels)}, {MID} {one.mid}": one}
    found = {}
    for level, (donor, own) in enumerate(zip(one.levels, whole.levels, strict=True)):
        if donor != own:
            levels = [*whole.levels[:level], donor, *whole.levels[level + 1 :]]
            found[f"level {level} of {donor}"] = whole.model_copy(update={"levels": levels})
    if one.mid != whole.mid:
        found[f"no {MID}" if one.mid == NONE else f"{MID} of {one.mid}"] = whole.model_copy(update={"mid": one.mid})
    return found


def agreement(foretold: Sequence[float], measured: Sequence[float], better: str = "lower") -> float | None:
    """Spearman's rank correlation: 1 where both have the same order from good to bad; None of few, or of equal ones."""
    if len(foretold) < FEW or min(len({*foretold}), len({*measured})) < 2:
        return None
    sign = 1 if better == "lower" else -1
    pairs = [torch.tensor(each, dtype=torch.float64) for each in (foretold, measured)]
    return sign * float(spearman_corrcoef(*pairs))
