"""The report of `asdm switch`: every schedule's cost and fidelity, the fronts, who serves what, which order wins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from asdm_cli.measure.cards import Card
from asdm_cli.measure.front_tables import equal_fidelity
from asdm_cli.measure.players import FEWER, Player
from asdm_cli.measure.search_report import calibrated_parts, chosen_table, front_told, halves
from asdm_cli.measure.switch_search import SEARCHED, Searched
from asdm_cli.measure.ways_report import (
    CARD,
    KID,
    PSNR,
    Measured,
    Own,
    Row,
    axis,
    macs_share,
    pictures,
    plot,
    told,
    ways_table,
)
from asdm_cli.recipe.patches import NULLS
from asdm_cli.report.document import Cell, Column, Part, Report, Table, Timeline

ONE, HAND = "one UNet", "by hand"
FIRST, LAST = "first", "last"
ORDERS = {FIRST: "compressed first", LAST: "original first"}
"""Where the other UNet of a fixed schedule in two parts serves -> the series that it is of."""
NULL_LETTERS = dict(zip(NULLS, "·~", strict=True))
SPARE = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
NOTE = "Fewer steps need no second UNet: a schedule that they beat is of no use."
REASONS = {
    (FIRST, False): "it serves where it errs less",
    (LAST, True): "it serves where it errs less",
    (FIRST, True): "what is wrong early, later calls make good",
    (LAST, False): "but from what is wrong early all later calls go on",
}
"""The order that wins, and whether single calls err more early -> why."""
TOLD = 3
"""Of the schedules, in the summary."""


def switch_report(measured: Measured, searched: Searched | None, card: Card, grid: int, written: str) -> Report:
    """`written` says what the written model does."""
    ours = SEARCHED if searched else HAND
    rest = [name for name in (FEWER, *ORDERS.values()) if name in measured.series]
    parts: list[Part] = [ways_table(measured, _own(measured), NOTE)]
    for key in measured.keys:
        parts.append(plot(measured, key))
        if key != KID and measured.named(ours):
            others = {name: measured.shots(name, key) for name in rest}
            parts += equal_fidelity(measured.shots(ours, key), others, axis(measured, key), ours)
    parts += _orders(measured)
    parts += [chosen_table(searched)] if searched else []
    schedules = {name: each.served for name, each in measured.costs.items() if len(set(each.served)) > 1}
    parts += [who_serves(schedules, [measured.first.name, *measured.named(ONE)])] if schedules else []
    parts += calibrated_parts(searched) if searched else []
    parts.append(pictures(measured, grid, _theirs(measured), rest))
    return Report("switch", _title(measured), _summary(measured, searched, written), parts, {CARD: card})


def who_serves(schedules: Mapping[str, Sequence[str]], unets: Sequence[str]) -> Timeline:
    """Names of ways to draw -> who serves each call, as a row of letters. Those of another length than the first are
    left out."""
    calls = len(next(iter(schedules.values())))
    rows = {name: served for name, served in schedules.items() if len(served) == calls}
    letters = _letters(unets)
    by_name = {name: letter for letter, name in letters.items()}
    cells = ["".join(by_name[each] for each in served) for served in rows.values()]
    return Timeline("Who serves which call", list(rows), cells, letters=letters)


def _letters(unets: Sequence[str]) -> dict[str, str]:
    """A letter for each name, one of its own where that is free; the null model's have marks of their own."""
    found: dict[str, str] = {}
    for name in unets:
        own = [letter for letter in (name[0], name[0].upper(), *name) if letter.isalnum()]
        found[next(letter for letter in (*own, *SPARE) if letter not in found)] = name
    return found | {letter: name for name, letter in NULL_LETTERS.items()}


def _theirs(measured: Measured) -> list[str]:
    """Series that the report is about: the searched ones, or else those that the recipe names itself."""
    named = [name for name in measured.series if name not in (FEWER, ONE, *ORDERS.values())]
    return [SEARCHED] if SEARCHED in named else named


def _title(measured: Measured) -> str:
    return f"Switching: {len(measured.others)} ways to draw beside {measured.first.name} alone"


def _own(measured: Measured) -> Own:
    def served(player: Player) -> Cell:
        counts = Counter(measured.costs[player.name].served)
        return ", ".join(f"{count} {name}" for name, count in counts.items())

    return {Column("served", "UNet calls"): served}


def _pairs(measured: Measured) -> dict[tuple[str, str], dict[str, Player]]:
    """The other UNet and its share of the calls -> the schedule of either order."""
    found: dict[tuple[str, str], dict[str, Player]] = {}
    for player in measured.players:
        if player.place:
            other, share, order = player.place
            found.setdefault((other, share), {})[order] = player
    return found


def _orders(measured: Measured) -> list[Table]:
    """One row per pair of schedules that cost the same."""
    keys = [column for key in (PSNR, KID) for column in measured.columns if column.key == key]
    heads = [
        Column("other", "UNet"),
        Column("share", "of the calls"),
        Column("unet_macs_share", f"UNet MACs of {measured.who}'s", digits=3),
        *(
            Column(f"{column.key}_{order}", f"{ORDERS[order]}: {column.title}", digits=column.digits)
            for column in keys
            for order in ORDERS
        ),
    ]
    rows: list[Row] = []
    for (other, share), players in _pairs(measured).items():
        row: Row = {"other": other, "share": share}
        for order, player in players.items():
            row["unet_macs_share"] = macs_share(measured, player)
            row |= {f"{column.key}_{order}": measured.figures[player.name].get(column.key) for column in keys}
        rows.append(row)
    note = "Two schedules of a row make the same calls in another order."
    return [Table("Both orders", heads, rows, note, CARD)] if rows else []


def _summary(measured: Measured, searched: Searched | None, written: str) -> str:
    shown = [player for player in measured.others if player.series in _theirs(measured)]
    said = [f"{len(measured.prompts)} prompts, {measured.first.steps} steps."]
    said += [told(measured, player) for player in shown[:TOLD]]
    lines = [" ".join(said), *_order_told(measured, searched)]
    lines += front_told(measured, searched, [player for player in measured.players if player.place]) if searched else []
    return "\n".join([*lines, written])


def _order_told(measured: Measured, searched: Searched | None) -> list[str]:
    """Which order wins at equal cost, and why; nothing where both orders were not drawn."""
    pairs = [each for each in _pairs(measured).values() if len(each) == len(ORDERS)]
    if not pairs or PSNR not in measured.keys:
        return []
    gains = [_figure(measured, each[FIRST], PSNR) - _figure(measured, each[LAST], PSNR) for each in pairs]
    order, sign = (FIRST, 1) if fmean(gains) > 0 else (LAST, -1)
    wins = sum(sign * gain > 0 for gain in gains)
    said = (
        f"At equal cost, {ORDERS[order]} is nearer to {measured.who}'s pictures in {wins} of {len(gains)} pairs of "
        f"schedules, by {abs(fmean(gains)):.1f} dB on average."
    )
    if KID in measured.keys:
        better = sum(_figure(measured, each[FIRST], KID) < _figure(measured, each[LAST], KID) for each in pairs)
        said += f" Compressed first has the lower KID in {better} of them."
    return [f"{said}{_why(measured, searched, order)}"]


def _why(measured: Measured, searched: Searched | None, order: str) -> str:
    """From the calibration: in which half of the calls the other UNets err more."""
    if searched is None:
        return ""
    others = dict.fromkeys(other for other, _ in _pairs(measured))
    errors = {name: halves(searched.calibration.errors[name]) for name in others}
    each = [
        f"{name} errs {early:.2g} in the first half and {late:.2g} in the second"
        for name, (early, late) in errors.items()
    ]
    more_early = fmean(early - late for early, late in errors.values()) > 0
    return f" At single calls {', '.join(each)}: {REASONS[order, more_early]}."


def _figure(measured: Measured, player: Player, key: str) -> float:
    return measured.figures[player.name][key].value
