"""The report of `asdm inherit`: every player's cost and fidelity, the fronts, the plan's picture and the pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter

from asdm_cli.inheritance.course import Nodes, Resting
from asdm_cli.measure.cards import Card
from asdm_cli.measure.front import Front
from asdm_cli.measure.front_tables import equal_fidelity, equal_speed
from asdm_cli.measure.players import ASDM, DEEPCACHE, FEWER, Player
from asdm_cli.measure.ways_report import CARD, KID, PSNR, Measured, Own, Row, axis, pictures, plot, told, ways_table
from asdm_cli.report.document import Cell, Column, Part, Report, Table, Timeline
from asdm_cli.unet.addresses import Anatomy

NOTE = "Fewer steps cost nothing to set up: a plan that they beat is of no use."


def inherit_report(measured: Measured, card: Card, nodes: Nodes | None, grid: int) -> Report:
    parts: list[Part] = [*_products(measured), ways_table(measured, _own(measured), NOTE)]
    for key in measured.keys:
        parts.append(plot(measured, key))
        if key != KID:
            what = axis(measured, key)
            parts += equal_fidelity(*_fronts(measured, key), what)
            parts += equal_speed(measured.shots(ASDM, key), measured.shots(DEEPCACHE, key), what)
    shown = nodes or next((player.nodes for player in measured.players if player.nodes), None)
    if shown:
        steps = next(measured.costs[player.name].steps for player in measured.players if player.nodes is shown)
        parts += [picture(shown, steps)] if steps else []  # the first of several UNets may have served no call
    parts.append(pictures(measured, grid, [ASDM], (DEEPCACHE, FEWER)))
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


def _own(measured: Measured) -> Own:
    def full(player: Player) -> Cell:
        found = measured.costs[player.name]
        calls = found.trajectory.calls
        return None if player.package else f"{calls if found.full is None else found.full}/{calls}"

    return {Column("full_calls", "UNet calls in full"): full}


def _fronts(measured: Measured, key: str) -> tuple[Front, dict[str, Front]]:
    others = {name: measured.shots(name, key) for name in measured.series if name in (FEWER, DEEPCACHE)}
    return measured.shots(ASDM, key), others


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
            row[f"psnr_{interval}_db"] = measured.figures[name].get(PSNR)
            row[f"speedup_{interval}"] = measured.speed(name)
        rows.append(row)
    return [Table("Level, mode and interval", heads, rows, "", CARD)] if rows else []


def _summary(measured: Measured) -> str:
    """What the first plans gain, each beside what fewer steps draw in the same time."""
    said = [f"{len(measured.prompts)} prompts, {measured.first.steps} steps."]
    said += [told(measured, player) for player in [player for player in measured.others if player.nodes][:3]]
    return " ".join(said)


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
