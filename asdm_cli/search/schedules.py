"""The search of `asdm switch`: calibrate, find candidates for each budget, and draw with them to make sure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from accelerate import PartialState

from asdm_cli.compare.run import Place, by_first, fidelity, kept, sampling
from asdm_cli.compare.setup import Session, Setup
from asdm_cli.errors import RunError
from asdm_cli.patches.unet_schedule import rules_of, served_by
from asdm_cli.profiling.latency import machine, versions
from asdm_cli.recipe.patches import Switching
from asdm_cli.recipe.verbs import Search
from asdm_cli.records import Record
from asdm_cli.sampling.prompts import PromptList
from asdm_cli.search.calibration import Calibration, calibrate
from asdm_cli.search.dynamic_programme import Choices, Schedule, candidates, least_cost

SEARCHED = "searched"
FOLDER = "search"
SLACK = 1e-9
"""Of shares of time, which are quotients: a schedule of exactly the budget keeps to it."""


@dataclass(frozen=True)
class Drawn:
    """A schedule that was drawn with.

    `share`: of the first UNet's time, as calibrated; `psnr`: to that one's images, dB; `how` it was found, or the name
    that it has as one of the `fixed` ones.
    """

    schedule: Schedule
    how: str
    fixed: bool
    share: float
    psnr: float


@dataclass(frozen=True)
class Chosen:
    """The best schedule within a budget, of so many that were `tried`, and the best `fixed` one within it."""

    budget: float
    best: Drawn
    fixed: Drawn | None
    tried: int
    rules: Switching

    @property
    def name(self) -> str:
        return name_of(self.budget)


def name_of(budget: float) -> str:
    """What tables and plots call the schedule that was found for a budget."""
    return f"{SEARCHED} {budget:g}"


def search(  # noqa: PLR0913 - what a search depends on, each by its name
    session: Session,
    asked: Search,
    first: Setup,
    fixed: Mapping[str, Switching],
    prompts: PromptList,
    place: Place,
    folder: Path,
    state: PartialState,
) -> tuple[Calibration, tuple[Chosen, ...]]:
    """By all processes, to the same end: one calibrates, all draw. Interrupted, it goes on.

    `first` draws as the first UNet does, in a schedule of all of them. The `fixed` schedules, by name, take part.
    Raises RunError for a budget that no schedule keeps to.
    """
    place = replace(place, seed=place.seed + 1)  # not those of the measurement
    calibration = _calibration(session, first, prompts, place, folder, state)
    choices = calibration.choices()
    alone = next(iter(calibration.errors))
    whole = choices.cost((alone,) * choices.calls)
    scheduler = first.scheduler
    named = {served_by(rules, scheduler): name for name, rules in reversed(list(fixed.items()))}
    found = _found(choices, whole, asked) | named
    widest = max(asked.budgets) * whole + SLACK
    tried = [schedule for schedule in found if choices.cost(schedule) <= widest]
    setups = [
        first.scheduled(f"schedule {number}", rules_of(each, calibration.timesteps))
        for number, each in enumerate(tried)
    ]
    psnr = fidelity("psnr", session, first, setups, prompts, place, folder / FOLDER, state)
    drawn = [
        Drawn(each, found[each], each in named, choices.cost(each) / whole, figure)
        for each, figure in zip(tried, psnr, strict=True)
    ]
    return calibration, tuple(_choose(budget, drawn, calibration) for budget in asked.budgets)


def _calibration(
    session: Session, first: Setup, prompts: PromptList, place: Place, folder: Path, state: PartialState
) -> Calibration:
    settings = sampling(first, place)
    style = asdict(settings) | {"device": place.device.type, "dtype": str(place.dtype)}
    origin = {"prompts": prompts.title, "style": style, "versions": versions(), **first.origin()}
    origin["machine"] = machine(place.device)  # it is timed
    file = folder / FOLDER / "calibration.json"

    def found() -> dict[str, Any]:
        return asdict(calibrate(session, first, prompts.prompts, settings, prompts.given))

    return Calibration(**by_first(state, lambda: kept(file, origin, found)))


def _found(choices: Choices, whole: int, asked: Search) -> dict[Schedule, str]:
    """Candidates for all budgets, each with how it was found. `whole`: units that the first UNet takes alone."""
    least = least_cost(choices, asked.nulls) / whole
    if narrow := [f"{budget:g}" for budget in asked.budgets if budget * whole + SLACK < least * whole]:
        raise RunError(
            f"search.budgets: no schedule of these UNets keeps to {', '.join(narrow)} of the first one's time; the "
            f"fastest takes {least:.2f} of it. Raise the budget, or give a faster UNet"
        )
    found: dict[Schedule, str] = {}
    for budget in asked.budgets:
        for schedule, how in candidates(choices, int(budget * whole + SLACK), asked.nulls).items():
            found.setdefault(schedule, how)
    return found


def _choose(budget: float, drawn: Sequence[Drawn], calibration: Calibration) -> Chosen:
    within = [each for each in drawn if each.share <= budget + SLACK]
    best = max(within, key=lambda each: each.psnr)
    fixed = max((each for each in within if each.fixed), key=lambda each: each.psnr, default=None)
    return Chosen(budget, best, fixed, len(within), rules_of(best.schedule, calibration.timesteps))


def records(calibration: Calibration, chosen: Sequence[Chosen]) -> Iterator[Record]:
    """What was calibrated of each UNet, and what was found for each budget."""
    first, *_ = calibration.errors
    middle = median(calibration.seconds[first])
    for name, seconds in calibration.seconds.items():
        of = f"calibrated/{name}"
        yield Record(first, "unet_ms", 1e3 * median(seconds), of=of)
        yield Record(first, "time_share", median(seconds) / middle, of=of, against=first)
        early, late = halves(calibration.errors[name])
        yield Record(first, "early_error", early, of=of, against=first)
        yield Record(first, "late_error", late, of=of, against=first)
    nulls = {"reuse": calibration.nulls[0][0], "extrapolate": calibration.nulls[0][1]}
    curves = {name: errors for name, errors in calibration.errors.items() if name != first} | nulls
    for name, errors in curves.items():
        for call, error in enumerate(errors):
            if error is not None:
                yield Record(first, "call_error", error, of=f"UNet/{name}", at=call, against=first)
    for each in chosen:
        of = f"budget/{each.budget:g}"
        yield Record(each.name, "time_share", each.best.share, of=of, against=first)
        yield Record(each.name, "psnr_db", each.best.psnr, of=of, against=first)
        yield Record(each.name, "schedules_tried", each.tried, of=of)
        if each.fixed is not None:
            yield Record(each.name, "best_fixed_db", each.fixed.psnr, of=of, against=first)


def halves(errors: Sequence[float]) -> tuple[float, float]:
    """Means over the first and the second half of the calls."""
    middle = (len(errors) + 1) // 2
    return fmean(errors[:middle]), fmean(errors[middle:] or errors)
