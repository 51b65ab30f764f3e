"""Which combinations of donors an exploration is about: listed or all, each once, those within the budget on paper."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product

from asdm_cli.console import track
from asdm_cli.errors import ModelError
from asdm_cli.measure.explore_report import LeftOut
from asdm_cli.measure.explore_run import Candidate
from asdm_cli.models.donors import Donor, Made, make
from asdm_cli.recipe.verbs import NONE, AssembleRecipe, Budget, Combination
from asdm_cli.unet.assembly import Choice, by_levels
from asdm_cli.unet.blocks import levels as count_levels
from asdm_cli.unet.checkpoint import bytes_digest
from asdm_cli.unet.cost import macs, parameters

MOST = 4096
"""Combinations that `all` may stand for; beyond, a list is wanted."""
LONGEST_NAME = 64
Keys = tuple[str, str]
"""Where in the recipe levels and mid block of a combination stand."""


@dataclass
class Sorted:
    """Those to be built, those above the budget, and what to tell of the others."""

    candidates: list[Candidate] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    misfits: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        told = [f"Built once only: {', '.join(self.same)}."] if self.same else []
        return (*told, *([f"{self.misfits} do not fit together."] if self.misfits else []))


class Costs:
    """Parameters, and multiply-accumulates of a call on latents of this size: of each shape counted once."""

    def __init__(self, size: int, tokens: int):
        self.parameters = cache(lambda text: sum(parameters(json.loads(text)).values()))
        self.macs = cache(lambda text: macs(json.loads(text), size=size, tokens=tokens).total)


def first_donor(donors: Mapping[str, Donor], costs: Costs) -> Candidate:
    """The first donor as it is: what every combination is compared with."""
    name, donor = next(iter(donors.items()))
    levels = (name,) * count_levels(donor.config)
    mid = name if donor.config.get("mid_block_type", "") is not None else NONE
    made = make(donors, Choice(by_levels(levels, None if mid == NONE else mid), name, name))
    text = _text(made)
    return Candidate(name, levels, mid, made, costs.parameters(text), costs.macs(text))


def sort(recipe: AssembleRecipe, donors: Mapping[str, Donor], first: Candidate, costs: Costs) -> Sorted:
    """Raises ModelError for what a list asks for and does not fit, and where nothing is left."""
    assert recipe.explore is not None, "only asked for where there is one"
    found = Sorted()
    built = {_identity(first.made): first.name}
    faults: list[str] = []
    wanted = list(_wanted(recipe, donors, first))
    for combination, keys in track(wanted, "counting"):
        name = combination.name or _name(combination, donors)
        try:
            made = make(donors, _choice(recipe, combination, keys))
        except ModelError as error:
            faults.append(str(error))
            found.misfits += 1
            continue
        same = built.setdefault(_identity(made), name)
        if same != name:
            found.same.append(f"{name} (is {same})")
            continue
        _file(
            found, Candidate(name, tuple(combination.levels), combination.mid, made, 0, 0), recipe.explore.budget, costs
        )
    if faults and recipe.explore.combinations != "all":
        raise ModelError("\n".join(dict.fromkeys(faults)))
    _check(found, first, faults)
    return found


def distinct(first: Candidate, candidates: Sequence[Candidate]) -> tuple[tuple[Candidate, ...], list[str]]:
    """Those that are other weights than each one before, and what to tell of the rest: donors may share weights, as
    one does that was pruned from the other. Reads every tensor once."""
    digest = cache(bytes_digest)
    donors = first.made.donors.values()
    entries = [entry for donor in donors for entry in donor.checkpoint.tensors.values()] if len(donors) > 1 else []
    for entry in track(entries, "comparing weights"):
        digest(entry)
    built: dict[str, str] = {}
    kept, same = [], []
    for one in (first, *candidates):
        tensors = sorted((new, digest(entry)) for new, entry in one.made.tensors.items())
        name = built.setdefault(json.dumps([_text(one.made), tensors]), one.name)
        if name == one.name:
            kept.append(one)
        else:
            same.append(f"{one.name} (is {name})")
    return tuple(kept[1:]), same


def over(budget: Budget | None, parameters: int = 0, macs: int = 0, ratio: float = 0) -> str:
    """Which bound is broken, or nothing."""
    if budget is None:
        return ""
    figures = {"parameters_m": parameters / 1e6, "macs_g": macs / 1e9, "latency_ratio": ratio}
    bounds = {key: getattr(budget, key) for key in figures}
    broken = [key for key, bound in bounds.items() if bound is not None and figures[key] > bound]
    return ", ".join(f"{key} is above {bounds[key]:g}" for key in broken)


def _file(found: Sorted, one: Candidate, budget: Budget | None, costs: Costs) -> None:
    """Multiply-accumulates are not counted where the parameters are too many already."""
    text = _text(one.made)
    count = costs.parameters(text)
    if why := over(budget, count):
        found.left_out.append(LeftOut(one.name, why, count))
        return
    calls = costs.macs(text)
    if why := over(budget, count, calls):
        found.left_out.append(LeftOut(one.name, why, count, calls))
        return
    found.candidates.append(Candidate(one.name, one.levels, one.mid, one.made, count, calls))


def _check(found: Sorted, first: Candidate, faults: Sequence[str]) -> None:
    names = [first.name, *(one.name for one in found.candidates), *(one.name for one in found.left_out)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ModelError(f"explore.combinations: two are called {twice[0]!r}; give them names of their own")
    if found.candidates:
        return
    if found.left_out:
        least = min(one.parameters for one in found.left_out) / 1e6
        raise ModelError(
            f"explore.budget: all {len(found.left_out)} combinations are above it; the smallest has {least:.2f} M "
            "parameters; raise it"
        )
    raise ModelError(faults[0] if faults else f"explore.combinations: none is another UNet than {first.name}")


def _wanted(
    recipe: AssembleRecipe, donors: Mapping[str, Donor], first: Candidate
) -> Iterator[tuple[Combination, Keys]]:
    assert recipe.explore is not None, "only asked for where there is one"
    listed = recipe.explore.combinations
    if isinstance(listed, list):
        for index, each in enumerate(listed):
            yield each, (f"explore.combinations[{index}].levels", f"explore.combinations[{index}].mid")
        return
    mids = [name for name, donor in donors.items() if donor.config.get("mid_block_type", "") is not None]
    total = len(donors) ** len(first.levels) * (len(mids) + 1)
    if total > MOST:
        raise ModelError(f"explore.combinations: 'all' would be {total}, more than {MOST}; list those that you mean")
    for levels in product(donors, repeat=len(first.levels)):
        for mid in (*mids, NONE):
            yield Combination(levels=list(levels), mid=mid), ("levels", "mid")


def _choice(recipe: AssembleRecipe, one: Combination, keys: Keys) -> Choice:
    mid = None if one.mid == NONE else one.mid
    ends, embeddings = recipe.ends or one.levels[0], recipe.embeddings or mid or one.levels[-1]
    return Choice(by_levels(one.levels, mid, keys), ends, embeddings)


def _name(one: Combination, donors: Mapping[str, Donor]) -> str:
    """`b-b-o-o, mid o`: donors by as many first letters as tell them apart, in full where that gets too long."""
    short = {name: _letters(name, donors) for name in donors}
    mid = f"mid {short[one.mid]}" if one.mid != NONE else "no mid"
    name = f"{'-'.join(short[each] for each in one.levels)}, {mid}"
    if len(name) > LONGEST_NAME:
        raise ModelError("donors: their names are too long to name combinations by; shorten them, or give `name`s")
    return name


def _letters(name: str, donors: Mapping[str, Donor]) -> str:
    others = [other for other in donors if other != name]
    short = (name[:count] for count in range(1, len(name) + 1))
    return next((part for part in short if not any(other.startswith(part) for other in others)), name).strip()


def _identity(made: Made) -> str:
    """Equal for assemblies that would be the same files: of equal configs and of the same tensors."""
    tensors = sorted((new, str(entry.file.resolve()), entry.start) for new, entry in made.tensors.items())
    return json.dumps([_text(made), tensors])


def _text(made: Made) -> str:
    return json.dumps(made.assembly.config, sort_keys=True)
