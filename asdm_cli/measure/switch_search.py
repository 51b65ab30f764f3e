"""The search of `asdm switch`: calibrate, find candidates for each budget, and draw with them to make sure."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from asdm_cli.errors import RunError
from asdm_cli.measure.calibration import Calibration, calibrated
from asdm_cli.measure.cards import versions
from asdm_cli.measure.paired import compare, comparison
from asdm_cli.measure.players import Player, on_stage
from asdm_cli.measure.ways import Studio
from asdm_cli.recipe.patches import Switching
from asdm_cli.recipe.verbs import Search
from asdm_cli.switching.assignment import rules_of
from asdm_cli.switching.candidates import candidates, least_cost
from asdm_cli.switching.run import served_by
from asdm_cli.switching.search import Choices, Schedule

SEARCHED = "searched"
FILE, PICTURES = "calibration.json", "search"
SLACK = 1e-9
"""Of shares of time, which are quotients: a schedule of exactly the budget keeps to it."""


@dataclass(frozen=True)
class Prompts:
    """What is drawn to make sure; `title` tells it from other prompts. Where a list has too few, so many of them are
    `measured` too."""

    texts: Sequence[str]
    title: str
    measured: int = 0


@dataclass(frozen=True)
class Drawn:
    """A schedule that was drawn with.

    `share`: of the first UNet's time, as calibrated; `psnr`: to that one's pictures, dB; `how` it was found, or the
    name that it has as one of the `fixed` ones.
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


@dataclass(frozen=True)
class Searched:
    calibration: Calibration
    chosen: tuple[Chosen, ...]
    prompts: Prompts


def name_of(budget: float) -> str:
    """What tables and plots call the schedule that was found for a budget."""
    return f"{SEARCHED} {budget:g}"


def search(
    studio: Studio, asked: Search, first: Player, fixed: Mapping[str, Switching], prompts: Prompts, folder: Path
) -> Searched:
    """By all processes, to the same end: one calibrates, all draw. Interrupted, it goes on.

    `first` draws as the first UNet does. The `fixed` schedules, by name, take part. Raises RunError for a budget that
    no schedule keeps to.
    """
    # the seeds are not those of the measurement
    studio = replace(studio, style=replace(studio.style, seed=studio.style.seed + 1))
    calibration = _calibration(studio, first, prompts, folder)
    choices = calibration.choices()
    whole = choices.cost((first.name,) * choices.calls)
    named = _named(studio.pipe, first, fixed)
    found = _found(choices, whole, asked) | named
    widest = max(asked.budgets) * whole + SLACK
    tried = [schedule for schedule in found if choices.cost(schedule) <= widest]
    psnr = _psnr(studio, first, [rules_of(each, calibration.timesteps) for each in tried], prompts, folder / PICTURES)
    drawn = [
        Drawn(each, found[each], each in named, choices.cost(each) / whole, figure)
        for each, figure in zip(tried, psnr, strict=True)
    ]
    chosen = tuple(_choose(budget, drawn, calibration) for budget in asked.budgets)
    return Searched(calibration, chosen, prompts)


def _calibration(studio: Studio, first: Player, prompts: Prompts, folder: Path) -> Calibration:
    style = asdict(studio.style) | {"device": studio.style.device.type, "dtype": str(studio.style.dtype)}
    plans = {"steps": first.steps, "sampler": first.sampler, **studio.origin}
    origin = {"prompts": prompts.title, "style": style, "versions": versions(), **plans}
    read = lambda: calibrated(folder / FILE, origin, studio.pipe, first, prompts.texts, studio.style)  # noqa: E731
    if studio.state.is_main_process:
        read()
    studio.state.wait_for_everyone()
    return read()


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


def _named(pipe: Any, first: Player, fixed: Mapping[str, Switching]) -> dict[Schedule, str]:
    """The calls of each fixed schedule; of equal ones the first."""
    with on_stage(pipe, first):
        scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(first.steps)
    found: dict[Schedule, str] = {}
    for name, rules in fixed.items():
        found.setdefault(served_by(rules, scheduler), name)
    return found


def _psnr(studio: Studio, first: Player, tried: Sequence[Switching], prompts: Prompts, folder: Path) -> list[float]:
    """Mean over the prompts, in dB, of each schedule's pictures to the first UNet's."""
    players = [replace(first, name=f"schedule {number}", rules=rules) for number, rules in enumerate(tried)]
    sets = studio.draw([first, *players], prompts.texts, prompts.title, folder)
    device = studio.style.device
    how = comparison("psnr", device)
    return [float(compare(how, sets[each.name], sets[first.name], device).mean()) for each in players]


def _choose(budget: float, drawn: Sequence[Drawn], calibration: Calibration) -> Chosen:
    within = [each for each in drawn if each.share <= budget + SLACK]
    best = max(within, key=lambda each: each.psnr)
    fixed = max((each for each in within if each.fixed), key=lambda each: each.psnr, default=None)
    return Chosen(budget, best, fixed, len(within), rules_of(best.schedule, calibration.timesteps))
