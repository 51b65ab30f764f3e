"""What a report says in words: one title that states the result, and a few lines below it."""

from __future__ import annotations

import math

from asdm_cli.compare.pareto import PEERS
from asdm_cli.records import Record, Report
from asdm_cli.report.metrics import QUALITY, metric, number, shown
from asdm_cli.report.tables import Columns, is_reference, leading, named, whole

LINES = 4
"""Set-ups that are told of below the title."""
SPEEDS = {"image_speedup": "image", "unet_speedup": "UNet call"}
COSTS = {"params_m": ("M", "parameters"), "macs_g": ("G", "MACs a call")}


def headline(report: Report) -> tuple[str, str]:
    """Of the set-up that most is known of beside the first one, ours before what a user would do instead."""
    columns, (first, *others) = whole(report), named(report) or [""]
    others = [name for name in others if not is_reference(report, name)]
    others = sorted(others, key=lambda name: report.setups.get(name, {}).get("series") in PEERS)
    told = {name: _beside(columns, first, name) for name in others}
    if any(told.values()):
        ours = [name for name in others if report.setups.get(name, {}).get("series") not in PEERS] or others
        hero = max(ours, key=lambda name: len(told[name]))
        told = {name: told[name] + _learned(report, name) for name in [hero, *others] if told[name]}
    else:
        told = {name: _alone(columns, name) + _learned(report, name) for name in named(report)}
    lines = [f"{name}: {', '.join(words)}" for name, words in told.items() if words][: LINES + 1]
    title, *more = lines or [report.facts.get("title") or ", ".join([f"asdm {report.verb}", *named(report)[:LINES]])]
    return title, "\n".join(f"{line}." for line in more)


def _beside(columns: Columns, first: str, name: str) -> list[str]:
    """What a set-up gains and loses beside the first one."""
    mine = {key: column[name] for key, column in columns.items() if name in column}
    words = [f"{shown(mine[key])} times as fast ({what})" for key, what in SPEEDS.items() if key in mine][:1]
    for key, (unit, what) in COSTS.items() if not words else ():
        before, after = columns.get(key, {}).get(first), mine.get(key)
        if before and after and _finite(before, after) and before.value and shown(before) != shown(after):
            change = f"{100 * (after.value / before.value - 1):+.0f}".replace("-", "−")
            words.append(f"{shown(after)} {unit} of {shown(before)} {unit} {what} ({change} %)")
    for key in [key for key in mine if metric(key).group == QUALITY and metric(key).rank <= 2][:2]:
        before = columns[key].get(first)
        ahead = f"{shown(before)} → " if before and _finite(before, mine[key]) else ""
        words.append(f"{metric(key).title} {ahead}{shown(mine[key])} {metric(key).unit}".strip())
    return words


def _finite(before: Record, after: Record) -> bool:
    return math.isfinite(before.value) and math.isfinite(after.value)


def _alone(columns: Columns, name: str) -> list[str]:
    """The figures that matter most of a set-up."""
    mine = {key: {name: column[name]} for key, column in columns.items() if name in column}
    return [f"{metric(key).title} {shown(mine[key][name])} {metric(key).unit}".strip() for key in leading(mine, 3)]


def _learned(report: Report, name: str) -> list[str]:
    """How the first of its losses went."""
    line = [each for each in report.records if each.setup == name and each.metric == "loss" and each.at is not None]
    line = [each for each in line if each.of == line[0].of]
    if len(line) < 2:
        return []
    ends = f"{number(line[0].value)} → {number(line[-1].value)}"
    return [f"{line[0].of.rpartition('/')[2]} loss {ends} in {number(line[-1].at or 0, 0)} steps"]
