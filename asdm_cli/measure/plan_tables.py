"""What plans cost, as tables: call by call, and over a generation beside the bound that their multiply-adds set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from asdm_cli.inheritance.course import Resting
from asdm_cli.measure.contestants import Entrant, first_of_one
from asdm_cli.measure.latency import quartiles
from asdm_cli.measure.plan_times import FULL, CallTimes, PlanTimes, pattern_macs, patterns
from asdm_cli.report.document import Cell, Column, Interval, Table
from asdm_cli.unet.flops import Macs, rows

Row = dict[str, Cell | Interval]
NAME = Column("name", "contestant")


def plan_tables(entrants: Sequence[Entrant], times: PlanTimes, guidance: float, card: str) -> list[Table]:
    """Nothing where no contestant inherits."""
    inheriting = [entrant for entrant in entrants if entrant.nodes and entrant.name in times]
    if not inheriting:
        return []
    against = first_of_one(entrants)
    plain = times[against.name].by_pattern[FULL]
    macs = {entrant.name: _macs(entrant) for entrant in inheriting}
    calls = [
        row for entrant in inheriting for row in _call_rows(entrant, macs[entrant.name], times[entrant.name], plain)
    ]
    whole = [_whole_row(entrant, macs[entrant.name], times[entrant.name], plain, guidance) for entrant in inheriting]
    return [_calls_table(calls, card), _whole_table([row for row in whole if row], against.name, card)]


def _macs(entrant: Entrant) -> dict[Resting, Macs]:
    assert entrant.nodes is not None, "asked for only where there is a plan"
    shape = {"size": entrant.latent[1:], "tokens": entrant.tokens}
    return pattern_macs(entrant.config, entrant.nodes, entrant.calls, **shape)


def _call_rows(entrant: Entrant, macs: Mapping[Resting, Macs], times: CallTimes, plain: list[float]) -> list[Row]:
    assert entrant.nodes is not None, "asked for only where there is a plan"
    counts = patterns(entrant.nodes, entrant.calls)
    return [
        {
            "name": entrant.name,
            "rests": ", ".join(f"rules[{rule}]" for rule in sorted(pattern)) or "nothing",
            "calls": counts[pattern] if counts else None,
            "macs_g": macs[pattern].total / 1e9,
            "macs_share": macs[pattern].total / entrant.macs.total,
            "plain_macs_share": macs[pattern].plain / entrant.macs.plain,
            "call_ms": quartiles(taken, 1e3),
            "time_share": _ratio(taken, plain),
        }
        for pattern, taken in times.by_pattern.items()
    ]


def _whole_row(
    entrant: Entrant, macs: Mapping[Resting, Macs], times: CallTimes, plain: list[float], guidance: float
) -> Row | None:
    assert entrant.nodes is not None, "asked for only where there is a plan"
    counts = patterns(entrant.nodes, entrant.calls)
    if not counts:
        return None
    calls = entrant.calls
    share = sum(count * macs[pattern].total for pattern, count in counts.items()) / (calls * entrant.macs.total)
    without = sum(count * macs[pattern].plain for pattern, count in counts.items()) / (calls * entrant.macs.plain)
    time_share = sum(count * _ratio(times.by_pattern[pattern], plain) for pattern, count in counts.items()) / calls
    return {
        "name": entrant.name,
        "full_calls": f"{counts[FULL]}/{calls}",
        "macs_g": share * calls * rows(entrant.config, guidance) * entrant.macs.total / 1e9,
        "saved_macs_pct": 100 * (1 - share),
        "saved_plain_macs_pct": 100 * (1 - without),
        "saved_time_pct": 100 * (1 - time_share),
        "achieved": (1 - time_share) / (1 - share) if share < 1 else None,
        "speedup": 1 / time_share,
        "cache_mb": times.cache_bytes / 1e6,
    }


def _ratio(taken: list[float], plain: list[float]) -> float:
    """Median of the ratios within rounds."""
    return median(mine / theirs for mine, theirs in zip(taken, plain, strict=True))


def _calls_table(rows: list[Row], card: str) -> Table:
    columns = [
        NAME,
        Column("rests", "inherited"),
        Column("calls", "calls", digits=0),
        Column("macs_g", "MACs (G)"),
        Column("macs_share", "share of a plain call", digits=3),
        Column("plain_macs_share", "without attention matmuls", digits=3),
        Column("call_ms", "time (ms)"),
        Column("time_share", "share of a plain call's time", digits=3),
    ]
    note = "MACs of one latent. Every pattern of a generation once a round, beside one plain call."
    return Table("UNet calls of the plans", columns, rows, note, card)


def _whole_table(rows: list[Row], against: str, card: str) -> Table:
    columns = [
        NAME,
        Column("full_calls", "calls in full"),
        Column("macs_g", "UNet MACs of an image (G)", "lower", 1),
        Column("saved_macs_pct", "MACs saved, %", "higher", 1),
        Column("saved_plain_macs_pct", "without attention matmuls, %", "higher", 1),
        Column("saved_time_pct", "UNet time saved, %", "higher", 1),
        Column("achieved", "share of the bound", "higher"),
        Column("speedup", "UNet speed-up", "higher"),
        Column("cache_mb", "kept (MB)", "lower"),
    ]
    note = (
        f"Against {against}, from the calls above and how many of each a generation has. "
        "The bound is the share of multiply-adds that is saved; time saved over it is the share that is reached."
    )
    return Table("A generation under the plans", columns, rows, note, card)
