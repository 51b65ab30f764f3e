"""The report of `asdm inherit`: every player's cost and fidelity, the fronts, the plan's picture and the pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from asdm_cli.inheritance.course import Nodes, Resting
from asdm_cli.measure.cards import Card
from asdm_cli.measure.front import Front, Shot, front, psnr_at
from asdm_cli.measure.front_tables import equal_fidelity, equal_speed
from asdm_cli.measure.inherit_run import Cost, Times
from asdm_cli.measure.latency import quartiles, speedup
from asdm_cli.measure.pictures import PictureSet
from asdm_cli.measure.players import ASDM, DEEPCACHE, FEWER, PLAIN, Player
from asdm_cli.measure.scores import Figures
from asdm_cli.report.document import Cell, Column, Grid, Interval, Part, Point, Report, Scatter, Table, Timeline
from asdm_cli.unet.anatomy import Anatomy

CARD = "figures"
CONVERGED = "psnr_converged_db"
TO_PLAIN, TO_CONVERGED = "PSNR to the plain model's pictures, dB", "PSNR to the converged solution, dB"
MOST_COLUMNS = 6
"""Of the picture grid: more are too small to compare."""

Row = dict[str, Cell | Interval]


@dataclass(frozen=True)
class Measured:
    """Everything that was found out, by player's name; `figures` of the plain model has no comparison with itself."""

    players: tuple[Player, ...]
    costs: Mapping[str, Cost]
    times: Mapping[str, Times]
    figures: Mapping[str, Figures]
    pictures: Mapping[str, PictureSet]
    prompts: tuple[str, ...]
    columns: tuple[Column, ...]
    """Of the figures, as tables show them."""

    @property
    def others(self) -> tuple[Player, ...]:
        return tuple(player for player in self.players if player.name != PLAIN)

    def speed(self, name: str) -> Interval:
        """Of a whole image, over the plain model's."""
        return speedup(self.times[PLAIN].image, self.times[name].image)

    def shots(self, series: str, key: str) -> Front:
        """The front of a series; the plain model itself belongs to every one that its figure exists for."""
        names = [player.name for player in self.players if player.series in (series, PLAIN)]
        figures = {name: self.figures[name][key] for name in names if key in self.figures[name]}
        return front(Shot(1 / self.speed(name).value, figure.value) for name, figure in figures.items())


def inherit_report(measured: Measured, card: Card, nodes: Nodes | None, grid: int) -> Report:
    keys = [key for key in ("psnr_db", CONVERGED) if any(key in each for each in measured.figures.values())]
    parts: list[Part] = [_players(measured)]
    for key in keys:
        parts += [_plot(measured, key), *equal_fidelity(*_fronts(measured, key), _title(key))]
        parts += equal_speed(measured.shots(ASDM, key), measured.shots(DEEPCACHE, key), _title(key))
    parts += _products(measured)
    shown = nodes or next((player.nodes for player in measured.players if player.nodes), None)
    if shown:
        steps = next(measured.costs[player.name].steps for player in measured.players if player.nodes is shown)
        parts += [picture(shown, steps)] if steps else []  # the first of several UNets may have served no call
    parts.append(_grid(measured, grid))
    title = f"Inheritance: {len(measured.others)} ways to draw beside the plain one"
    return Report("inherit", title, _summary(measured), parts, {CARD: card})


def picture(nodes: Nodes, steps: Sequence[Resting]) -> Timeline:
    """Nodes by calls, neighbours that fare alike in one row; of sub-units, those that the plan names."""
    states = [nodes.states(resting) for resting in steps]
    fares = [(name, "".join(each[name] for each in states)) for name in _in_order(nodes.anatomy, states[0])]
    alike = [(cells, [name for name, _ in group]) for cells, group in groupby(fares, key=itemgetter(1))]
    rows = [names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}" for _, names in alike]
    full = sum(not resting for resting in steps)
    note = f"{full} of {len(steps)} calls are computed in full."
    return Timeline("What each UNet call computes", rows, [cells for cells, _ in alike], note)


def _in_order(anatomy: Anatomy, states: Mapping[str, str]) -> list[str]:
    inside = [address for address in anatomy.addresses if address in states]
    outside = [name for name in states if name not in anatomy]
    return [*outside[:-1], *inside, *outside[-1:]]


def _players(measured: Measured) -> Table:
    shown = [
        Column("name", "way to draw"),
        Column("steps", "steps", digits=0),
        Column("full_calls", "UNet calls in full"),
        Column("unet_macs_g", "UNet GMACs per image", "lower", 1),
        Column("unet_macs_share", "of the plain model's", "lower", 3),
        Column("image_ms", "image (ms)", "lower", 0),
        Column("speedup", "image speed-up", "higher"),
        Column("unet_speedup", "UNet speed-up", "higher"),
        Column("cache_mb", "kept (MB)", "lower"),
        *measured.columns,
    ]
    note = (
        "Speed-ups are over the plain model, median of ratios within rounds; the image counts text encoder and "
        "decoder. Fidelity is to the plain model's pictures of the same prompts and seeds. "
        "Fewer steps cost nothing to set up: a plan that they beat is of no use."
    )
    return Table("Speed and fidelity", shown, [_row(measured, player) for player in measured.players], note, CARD)


def _row(measured: Measured, player: Player) -> Row:
    found, times = measured.costs[player.name], measured.times[player.name]
    unet, plain = found.trajectory.components["unet"], measured.costs[PLAIN].trajectory.components["unet"]
    full = found.full
    calls = found.trajectory.calls
    return {
        "name": player.name,
        "steps": player.steps,
        "full_calls": None if player.package else f"{calls if full is None else full}/{calls}",
        "unet_macs_g": unet.total / 1e9,
        "unet_macs_share": unet.total / plain.total,
        "image_ms": quartiles(times.image, 1e3),
        "speedup": measured.speed(player.name),
        "unet_speedup": speedup(measured.times[PLAIN].unet, times.unet),
        "cache_mb": None if found.cache_bytes is None else found.cache_bytes / 1e6,
        **measured.figures[player.name],
    }


def _plot(measured: Measured, key: str) -> Scatter:
    """Only fronts: what something of the same series beats in both is left to the table."""
    points = []
    for series in _series(measured):
        on_front = set(measured.shots(series, key))
        for player in measured.players:
            figure = measured.figures[player.name].get(key)
            if figure and player.series in (series, PLAIN):
                speed = measured.speed(player.name).value
                if Shot(1 / speed, figure.value) in on_front:
                    points.append(Point(speed, figure.value, player.name, series, figure.low, figure.high))
    note = "Higher and further right is better. Of each series only its front is drawn."
    title, across = f"Speed and {_title(key).split(',')[0]}", "image speed-up over the plain model"
    return Scatter(title, across, _title(key), points, note)


def _series(measured: Measured) -> list[str]:
    return list(dict.fromkeys(player.series for player in measured.others))


def _fronts(measured: Measured, key: str) -> tuple[Front, dict[str, Front]]:
    others = {name: measured.shots(name, key) for name in _series(measured) if name in (FEWER, DEEPCACHE)}
    return measured.shots(ASDM, key), others


def _title(key: str) -> str:
    return TO_CONVERGED if key == CONVERGED else TO_PLAIN


def _products(measured: Measured) -> list[Table]:
    """Nodes and mode down, intervals across; the figure is PSNR, and the image speed-up beside it."""
    players = {player.place: player for player in measured.players if player.place}
    intervals = list(dict.fromkeys(place[2] for place in players))
    heads = [Column("nodes", "nodes"), Column("mode", "mode")]
    for interval in intervals:
        heads += [
            Column(f"psnr_{interval}_db", f"every {interval}: PSNR, dB", digits=1),
            Column(f"speedup_{interval}", f"every {interval}: speed-up"),
        ]
    rows: list[Row] = []
    for nodes, mode in dict.fromkeys(place[:2] for place in players):
        row: Row = {"nodes": nodes, "mode": mode}
        for interval in intervals:
            name = players[nodes, mode, interval].name
            row[f"psnr_{interval}_db"] = measured.figures[name].get("psnr_db")
            row[f"speedup_{interval}"] = measured.speed(name)
        rows.append(row)
    return [Table("Level, mode and interval", heads, rows, "", CARD)] if rows else []


def _grid(measured: Measured, count: int) -> Grid:
    names = [PLAIN, *_worth_showing(measured)]
    rows = list(measured.prompts[:count])
    cells: list[list[Path | None]] = [
        [measured.pictures[name].path(index) for name in names] for index in range(len(rows))
    ]
    return Grid("The same prompts and seeds", names, rows, cells)


def _worth_showing(measured: Measured) -> list[str]:
    """All, or where they are many some of ours from fast to slow, the fastest of them first."""
    names = [player.name for player in measured.others]
    if len(names) <= MOST_COLUMNS:
        return names
    ours = sorted(_names(measured, ASDM), key=lambda name: -measured.speed(name).value)
    rest = [name for series in (DEEPCACHE, FEWER) for name in _names(measured, series)[:1]]
    wanted = MOST_COLUMNS - len(rest)
    step = max(1, len(ours) // wanted)
    return [*ours[::step][:wanted], *rest]


def _names(measured: Measured, series: str) -> list[str]:
    return [player.name for player in measured.others if player.series == series]


def _summary(measured: Measured) -> str:
    """What the first plans gain, each beside what fewer steps draw in the same time."""
    said = [f"{len(measured.prompts)} prompts, {measured.players[0].steps} steps."]
    for player in [player for player in measured.others if player.nodes][:3]:
        speed, figure = measured.speed(player.name).value, measured.figures[player.name].get("psnr_db")
        told = f"{player.name}: {speed:.2f} times as fast"
        if figure:
            told += f" at {figure.value:.1f} dB to the plain pictures{_beside(measured, 1 / speed, figure.value)}"
        said.append(f"{told}.")
    return " ".join(said)


def _beside(measured: Measured, time: float, psnr: float) -> str:
    other = psnr_at(measured.shots(FEWER, "psnr_db"), time)
    if other is None:
        return ""
    verdict = ", which is better: this plan is of no use here" if other >= psnr else ""
    return f" (fewer steps in that time: {other:.1f} dB{verdict})"


def rules_table(nodes: Nodes, calls: int, rows: Iterable[Row]) -> Table:
    heads = [
        Column("rule", "rule"),
        Column("nodes", "nodes"),
        Column("units", "units", digits=0),
        Column("schedule", "schedule"),
        Column("keys", "key steps", digits=0),
        Column("carry", "hands on"),
    ]
    return Table(
        "Rules",
        heads,
        list(rows),
        f"{len(nodes.flow.reads)} units in this UNet; key steps of a run of {calls} UNet calls.",
    )
