"""What one front gains over others, as tables: times at equal fidelity, fidelity at equal speed."""

from __future__ import annotations

from collections.abc import Mapping

from asdm_cli.measure.front import Front, psnr_at, time_at
from asdm_cli.report.document import Cell, Column, Interval, Table

LEVELS_DB = (25, 30, 35, 40, 45, 50, 55, 60)
NOTE = (
    "Times are per cent of what the first way to draw takes, read off the fronts by straight lines between their "
    "points; a ratio above 1 says that ours is faster. Empty: a front does not reach that far."
)


def equal_fidelity(ours: Front, others: Mapping[str, Front], what: str, name: str = "asdm") -> list[Table]:
    """One row per PSNR level that ours, called `name`, reaches; none without competitors."""
    heads = [
        Column("level_db", what, digits=0),
        Column(f"{name}_pct", f"{name}: time, %", digits=1),
        *(Column(f"{other}_pct", f"{other}: time, %", digits=1) for other in others),
        *(Column(f"{other}_ratio", f"faster than {other}") for other in others),
        Column("best_ratio", "faster than the better of them"),
    ]
    rows = [row for level in LEVELS_DB if (row := _row(level, ours, others, name))]
    return [Table(f"At equal fidelity: {what}", heads, rows, NOTE)] if rows and others else []


def equal_speed(ours: Front, theirs: Front, what: str) -> list[Table]:
    """One row per point of DeepCache's front."""
    rows: list[dict[str, Cell | Interval]] = []
    for shot in theirs:
        mine = psnr_at(ours, shot.time)
        rows.append(
            {
                "time_pct": 100 * shot.time,
                "theirs_db": shot.psnr,
                "asdm_db": mine,
                "gain_db": None if mine is None else mine - shot.psnr,
            }
        )
    heads = [
        Column("time_pct", "time, % of the plain model's", digits=1),
        Column("theirs_db", "DeepCache, dB", digits=1),
        Column("asdm_db", "asdm, dB", digits=1),
        Column("gain_db", "gain, dB", digits=1),
    ]
    return [Table(f"At DeepCache's speed: {what}", heads, rows)] if rows and ours else []


def _row(level: float, ours: Front, others: Mapping[str, Front], name: str) -> dict[str, Cell | Interval] | None:
    mine = time_at(ours, level)
    if mine is None:
        return None
    theirs = {other: time_at(line, level) for other, line in others.items()}
    known = [each for each in theirs.values() if each is not None]
    return {
        "level_db": level,
        f"{name}_pct": 100 * mine,
        **{f"{other}_pct": None if each is None else 100 * each for other, each in theirs.items()},
        **{f"{other}_ratio": None if each is None else each / mine for other, each in theirs.items()},
        "best_ratio": min(known) / mine if known else None,
    }
