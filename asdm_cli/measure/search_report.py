"""What a search found, as parts of a report: the schedules of all budgets, and what was calibrated for them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from asdm_cli.measure.calibration import Calibration
from asdm_cli.measure.front import Shot, front, psnr_at
from asdm_cli.measure.players import Player
from asdm_cli.measure.switch_search import SEARCHED, Searched
from asdm_cli.measure.ways_report import PSNR, Measured, Row
from asdm_cli.report.document import Column, Curves, Part, Table

ROUNDING_DB = 0.005


def chosen_table(searched: Searched) -> Table:
    heads = [
        Column("name", "schedule"),
        Column("budget", "budget"),
        Column("share", "UNet time, calibrated", digits=3),
        Column("psnr_db", "PSNR, dB", "higher"),
        Column("how", "found by"),
        Column("fixed_db", "best fixed schedule: PSNR, dB"),
        Column("fixed", "which"),
        Column("tried", "schedules tried", digits=0),
    ]
    rows: list[Row] = [
        {
            "name": each.name,
            "budget": each.budget,
            "share": each.best.share,
            "psnr_db": each.best.psnr,
            "how": each.best.how,
            "fixed_db": each.fixed.psnr if each.fixed else None,
            "fixed": each.fixed.how if each.fixed else None,
            "tried": each.tried,
        }
        for each in searched.chosen
    ]
    prompts = searched.prompts
    others = "none of which is measured" if not prompts.measured else f"{prompts.measured} of which are measured too"
    note = (
        "Shares of the first UNet's time. These schedules were chosen by the figures here: of "
        f"{len(prompts.texts)} prompts, {others}, with other seeds. `recipes/` has each as a recipe."
    )
    by_step = [each.name for each in searched.chosen if each.rules.by == "step"]
    if by_step:
        note += f" By step, because a boundary lies between calls of one timestep: {', '.join(by_step)}."
    return Table("Searched schedules", heads, rows, note)


def calibrated_parts(searched: Searched) -> list[Part]:
    found = searched.calibration
    heads = [
        Column("name", "UNet"),
        Column("call_ms", "call (ms)", "lower", 1),
        Column("share", "of the first's", "lower", 3),
        Column("early", "error, first half of the calls", "lower", 4),
        Column("late", "error, second half", "lower", 4),
    ]
    first = median(next(iter(found.seconds.values())))
    rows: list[Row] = []
    for name, seconds in found.seconds.items():
        early, late = halves(found.errors[name])
        row: Row = {"name": name, "call_ms": 1e3 * median(seconds), "share": median(seconds) / first}
        rows.append({**row, "early": early, "late": late})
    note = (
        "An answer's error is how far from the first UNet's the sampler's next latents come to lie: the root of the "
        f"mean square, mean over {len(searched.prompts.texts)} prompts. Of samplers that look back at earlier answers "
        "this is the effect on the next latents alone."
    )
    return [Table("What UNets cost and err", heads, rows, note), _curves(found)]


def _curves(found: Calibration) -> Curves:
    """Of every UNet but the first, and of the null model one call after a prediction."""
    first = next(iter(found.errors))
    lines = {name: list(enumerate(errors)) for name, errors in found.errors.items() if name != first}
    nulls = {"reuse": found.nulls[0][0], "extrapolate": found.nulls[0][1]}
    lines |= {
        name: [(call, each) for call, each in enumerate(errors) if each is not None] for name, errors in nulls.items()
    }
    shown = {name: [(float(call), error) for call, error in line] for name, line in lines.items()}
    note = "Reuse and extrapolation are of the first UNet's last predictions, one call old."
    return Curves(
        "Errors at single calls", "UNet call", f"distance of the next latents from {first}'s", shown, True, note
    )


def halves(errors: Sequence[float]) -> tuple[float, float]:
    """Means over the first and the second half of the calls."""
    middle = (len(errors) + 1) // 2
    return fmean(errors[:middle]), fmean(errors[middle:] or errors)


def front_told(measured: Measured, searched: Searched, fixed: Sequence[Player]) -> list[str]:
    """Whether a fixed schedule lies above the front of the searched ones, between whose times it lies.

    In time as calibrated: schedules of the same calls take the same.
    """
    choices = searched.calibration.choices()
    whole = choices.cost((measured.first.name,) * choices.calls)

    def shot(name: str) -> Shot:
        return Shot(choices.cost(measured.costs[name].served) / whole, measured.figures[name][PSNR].value)

    if PSNR not in measured.keys:
        return []
    line = front(map(shot, measured.named(SEARCHED)))
    compared = {player.name: shot(player.name) for player in fixed}
    compared = {name: each for name, each in compared.items() if line[0].time <= each.time <= line[-1].time}
    beyond = {name: each.psnr - (psnr_at(line, each.time) or 0.0) for name, each in compared.items()}
    above = [f"{name} by {more:.2f} dB" for name, more in beyond.items() if more > ROUNDING_DB]
    if not compared:
        return []
    which = (
        f"{len(above)} of {len(compared)} fixed schedules lie"
        if above
        else f"None of {len(compared)} fixed schedules lies"
    )
    return [f"{which} above the front of the searched ones{': ' if above else ''}{', '.join(above)}."]
