"""What reports of ways to draw have in common: the table of all, plots of their fronts, and the pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asdm_cli.measure.front import Front, Shot, front, psnr_at
from asdm_cli.measure.inherit_run import Cost, Times
from asdm_cli.measure.judging import Figures
from asdm_cli.measure.players import FEWER, PLAIN, Player
from asdm_cli.profiling.latency import quartiles, speedup
from asdm_cli.report.document import Cell, Column, Grid, Interval, Point, Scatter, Table
from asdm_cli.sampling.image_set import ImageSet

CARD = "figures"
PSNR, CONVERGED, KID = "psnr_db", "psnr_converged_db", "kid"
SIGNS = {PSNR: 1, CONVERGED: 1, KID: -1}
"""Figures that are plotted over speed, in this order; of those with -1, less is better."""
MOST_COLUMNS = 6
"""Of the picture grid: more are too small to compare."""

Row = dict[str, Cell | Interval]
Own = Mapping[Column, Callable[[Player], Cell]]
"""Columns of one verb's table, and what stands in them."""


@dataclass(frozen=True)
class Measured:
    """Everything that was found out, by player's name. The first player is what the others are compared with; its
    `figures` have no comparison with itself."""

    players: tuple[Player, ...]
    costs: Mapping[str, Cost]
    times: Mapping[str, Times]
    figures: Mapping[str, Figures]
    pictures: Mapping[str, ImageSet]
    prompts: tuple[str, ...]
    columns: tuple[Column, ...]
    """Of the figures, as tables show them."""

    @property
    def first(self) -> Player:
        return self.players[0]

    @property
    def others(self) -> tuple[Player, ...]:
        return self.players[1:]

    @property
    def who(self) -> str:
        """The first player in a sentence."""
        return "the plain model" if self.first.name == PLAIN else self.first.name

    @property
    def keys(self) -> list[str]:
        """Figures to plot, of those that were asked for."""
        return [key for key in SIGNS if any(key in each for each in self.figures.values())]

    @property
    def series(self) -> list[str]:
        return list(dict.fromkeys(player.series for player in self.others))

    def named(self, *series: str) -> list[str]:
        return [player.name for player in self.others if player.series in series]

    def speed(self, name: str) -> Interval:
        """Of a whole image, over the first player's."""
        return speedup(self.times[self.first.name].image, self.times[name].image)

    def shot(self, name: str, key: str) -> Shot:
        """Time as a share of the first player's, and the figure with such a sign that more is better."""
        return Shot(1 / self.speed(name).value, SIGNS[key] * self.figures[name][key].value)

    def shots(self, series: str, key: str) -> Front:
        """The front of a series; the first player belongs to every one that its figure exists for."""
        names = [self.first.name, *self.named(series)]
        return front(self.shot(name, key) for name in names if key in self.figures[name])


def axis(measured: Measured, key: str) -> str:
    """What a figure is, as an axis says it."""
    if key == PSNR:
        return f"PSNR to {measured.who}'s pictures, dB"
    if key == CONVERGED:
        return "PSNR to the converged solution, dB"
    return next(column.title for column in measured.columns if column.key == key)


def ways_table(measured: Measured, own: Own, note: str) -> Table:
    """One row per player; `own` columns stand behind the number of steps."""
    kept = any(each.cache_bytes is not None for each in measured.costs.values())
    shown = [
        Column("name", "way to draw"),
        Column("steps", "steps", digits=0),
        *own,
        Column("unet_macs_g", "UNet GMACs per image", "lower", 1),
        Column("unet_macs_share", f"of {measured.who}'s", "lower", 3),
        Column("image_ms", "image (ms)", "lower", 0),
        Column("speedup", "image speed-up", "higher"),
        Column("unet_speedup", "UNet speed-up", "higher"),
        *([Column("cache_mb", "kept (MB)", "lower")] if kept else []),
        *measured.columns,
    ]
    said = (
        f"Speed-ups are over {measured.who}, median of ratios within rounds; the image counts text encoder and "
        f"decoder. Fidelity is to {measured.who}'s pictures of the same prompts and seeds. {note}"
    )
    return Table("Speed and fidelity", shown, [_row(measured, player, own) for player in measured.players], said, CARD)


def _row(measured: Measured, player: Player, own: Own) -> Row:
    first, found, times = measured.first.name, measured.costs[player.name], measured.times[player.name]
    return {
        "name": player.name,
        "steps": player.steps,
        **{column.key: cell(player) for column, cell in own.items()},
        "unet_macs_g": found.trajectory.components["unet"].total / 1e9,
        "unet_macs_share": macs_share(measured, player),
        "image_ms": quartiles(times.image, 1e3),
        "speedup": measured.speed(player.name),
        "unet_speedup": speedup(measured.times[first].unet, times.unet),
        "cache_mb": None if found.cache_bytes is None else found.cache_bytes / 1e6,
        **measured.figures[player.name],
    }


def macs_share(measured: Measured, player: Player) -> float:
    """The UNet's multiply-accumulates of an image over those of the first player's."""
    mine, first = (measured.costs[name].trajectory.components["unet"] for name in (player.name, measured.first.name))
    return mine.total / first.total


def plot(measured: Measured, key: str) -> Scatter:
    """Only fronts: what something of the same series beats in both is left to the table."""
    points = []
    for series in measured.series:
        on_front = set(measured.shots(series, key))
        for player in measured.players:
            figure = measured.figures[player.name].get(key)
            if figure is None or not (player.series == series or player == measured.first):
                continue
            if measured.shot(player.name, key) in on_front:
                speed = measured.speed(player.name).value
                points.append(Point(speed, figure.value, player.name, series, figure.low, figure.high))
    better, what = "Higher" if SIGNS[key] > 0 else "Lower", axis(measured, key)
    note = f"{better} and further right is better. Of each series only its front is drawn."
    across = f"image speed-up over {measured.who}"
    return Scatter(f"Speed and {what.split(',')[0]}", across, what, points, note)


def told(measured: Measured, player: Player) -> str:
    """A sentence: what a player gains, and what fewer steps draw in the same time."""
    speed, figure = measured.speed(player.name).value, measured.figures[player.name].get(PSNR)
    said = f"{player.name}: {speed:.2f} times as fast"
    if figure is None:
        return f"{said}."
    said += f" at {figure.value:.1f} dB to {measured.who}'s pictures"
    beside = psnr_at(measured.shots(FEWER, PSNR), 1 / speed)
    if beside is None:
        return f"{said}."
    verdict = ", which is better: this is of no use here" if beside >= figure.value else ""
    return f"{said} (fewer steps in that time: {beside:.1f} dB{verdict})."


def pictures(measured: Measured, count: int, ours: Sequence[str], rest: Sequence[str]) -> Grid:
    """The first `count` prompts in all ways; of many, some of the series `ours` and one of each of the `rest`."""
    names = [measured.first.name, *_worth_showing(measured, ours, rest)]
    rows = list(measured.prompts[:count])
    cells: list[list[Path | None]] = [
        [measured.pictures[name].path(index) for name in names] for index in range(len(rows))
    ]
    return Grid("The same prompts and seeds", names, rows, cells)


def _worth_showing(measured: Measured, ours: Sequence[str], rest: Sequence[str]) -> list[str]:
    """All, or where they are many some of ours from fast to slow, the fastest of them first."""
    names = [player.name for player in measured.others]
    if len(names) <= MOST_COLUMNS:
        return names
    mine = sorted(measured.named(*ours), key=lambda name: -measured.speed(name).value)
    others = [name for series in rest for name in measured.named(series)[:1]]
    wanted = MOST_COLUMNS - len(others)
    step = max(1, len(mine) // wanted)
    return [*mine[::step][:wanted], *others]
