"""Several trainings of one thing as one set-up: its mean, with an interval over prompts and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from asdm_cli.records import Record, Report
from asdm_cli.report.metrics import COST, QUALITY, metric

STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Seeds -> the 97.5 % point of Student's distribution with one degree of freedom less."""
BOTH = "95 % over prompts and seeds"


def over_seeds(report: Report, groups: Mapping[str, Sequence[str]]) -> Report:
    """With each group as a set-up in front of its members: of what its pictures are worth the members' mean, of what it
    costs the first member's figures, since all are of one shape.

    All members draw the same prompts, so a mean over members leaves the error of the prompts as large as it is in one:
    half of the interval is the root of the sum of two squares, the members' own half widths (their root mean square),
    and t * s / sqrt(k) of the k members' figures.
    """
    setups, records, notes = dict(report.setups), list(report.records), list(report.notes)
    for name, members in groups.items():
        missing = [member for member in members if member not in report.setups]
        if missing or name in report.setups:
            why = f"{', '.join(missing)} stands under another name; use one in all stages"
            notes.append(f"{name}: no mean: {why if missing else 'something else is called that; choose another name'}")
            continue
        first, *_ = members
        setups = _beside(setups, first, name, {**_shared(report, members), "seeds": list(members)})
        own = [[each for each in report.records if each.setup == member and each.at is None] for member in members]
        by_key = [{(each.metric, each.of, each.protocol): each for each in found} for found in own]
        sizes = {found[key].value for found in by_key for key in found if key[0] == "params_m"}
        if len(sizes) > 1:
            notes.append(f"{name}: no costs: {', '.join(members)} are not of one size")
        judged = [key for key in by_key[0] if metric(key[0]).group == QUALITY]
        if judged and not any(all(key in found for found in by_key) for key in judged):
            notes.append(f"{name}: no mean: the pictures of {', '.join(members)} were not judged alike")
        for key, one in by_key[0].items():
            group, alike = metric(one.metric).group, [found[key] for found in by_key if key in found]
            if group == COST and len(sizes) <= 1:
                records.append(replace(one, setup=name))
            elif group == QUALITY and len(alike) == len(members):
                records.append(_mean(name, alike))
    return replace(report, setups=setups, records=records, notes=notes)


def _mean(name: str, alike: Sequence[Record]) -> Record:
    values, seeds = [each.value for each in alike], len(alike)
    record = replace(alike[0], setup=name, value=fmean(values), low=None, high=None, interval="", seed=None)
    halves = [(each.high - each.low) / 2 for each in alike if each.low is not None and each.high is not None]
    if len(halves) < seeds or not all(each.interval.startswith("95 %") for each in alike):
        return record
    half = sqrt(fmean(half**2 for half in halves) + (STUDENT_T[seeds] * stdev(values)) ** 2 / seeds)
    low, high = record.value - half, record.value + half
    if all(each.interval.endswith("Wilson") for each in alike):  # of shares
        low, high = max(0.0, low), min(1.0, high)
    return replace(record, low=low, high=high, interval=BOTH)


def _shared(report: Report, members: Sequence[str]) -> dict[str, Any]:
    """What all say of how they draw; not their models, which differ."""
    facts = [report.setups.get(member, {}) for member in members]
    return {key: value for key, value in facts[0].items() if all(each.get(key) == value for each in facts)}


def _beside(
    setups: dict[str, dict[str, Any]], other: str, name: str, about: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """In front of the other, but behind what all are compared with."""
    place = list(setups).index(other) or 1
    items = list(setups.items())
    return dict([*items[:place], (name, about), *items[place:]])
