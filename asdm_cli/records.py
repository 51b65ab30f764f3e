"""What measuring finds out: one figure a row. Plain data, without torch; views of it (titles, tables, plots) are the
report's affair."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

Card = dict[str, Any]
"""A protocol card: how figures were made. Values are numbers, texts, or lists of texts."""


class Interval(NamedTuple):
    """A figure with its spread; `kind` says what low and high are ("quartiles", "95 % bootstrap"). In the order of a
    record's fields: `Record(setup, metric, *interval)`."""

    value: float
    low: float | None
    high: float | None
    kind: str


@dataclass(frozen=True)
class Record:
    """One figure of a set-up.

    `metric` is a key of the report's table of figures (`image_ms`, `kid`, ...), `low` and `high` are what `interval`
    says ("quartiles", "95 % bootstrap"). `of` is a part of the whole, as `kind/name` (`block/down.0`, `batch/4`,
    `split/held-out`, `component/vae`), '' for the whole; `at` is a place along an axis, where there is one: a training
    step, a UNet call. `against` names the set-up that a ratio or a distance is to. `n` is how many things were
    measured. `protocol` names a card.
    """

    setup: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    interval: str = ""
    of: str = ""
    at: float | None = None
    against: str = ""
    n: int = 1
    seed: int | None = None
    unit: str = ""
    protocol: str = ""


@dataclass(frozen=True)
class Images:
    """Image i of a set-up is `folders[name]/00000i.png`, below the run directory; `prompts` are the first of all."""

    prompts: list[str]
    folders: dict[str, str]


@dataclass(frozen=True)
class Timeline:
    """Something down the rows, the UNet calls of one generation (or another `axis`) across: `rows[name]` has one letter
    for each call."""

    title: str
    rows: dict[str, str]
    letters: dict[str, str]
    note: str = ""
    axis: str = "UNet call"


@dataclass(frozen=True)
class Report:
    """All that a run found out; what `report.json` holds.

    `setups` has, for each that took part, the first of which the others are compared with, what it is: `model` (as a
    later recipe would name it; `written` instead, below the run, of one that the run itself made), `steps` and what
    else decides what it draws: where reports are joined, set-ups of one model that disagree in none of these are one.
    `made`: the verbs that made its model, oldest first. `series`: points of one series are joined by a line in
    plots; those of "fewer steps" and "DeepCache" are what the others are held against. `varied`: of one of many
    combinations, what it is of by name (`level`, `mode`, `every`); plots have a line for each of the first of
    these. `reference`: true of real images and the like, which compete with nobody. `facts` are no figures, by
    name: texts, numbers and lists, mappings, or lists of rows that are mappings; `title` is what a user calls the
    whole. `notes` are sentences that a reader of the figures must know.
    """

    verb: str
    setups: dict[str, dict[str, Any]] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    protocols: dict[str, Card] = field(default_factory=dict)
    images: Images | None = None
    timelines: list[Timeline] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def under(protocol: str, records: Iterable[Record]) -> list[Record]:
    """The same records, made as this card says."""
    return [replace(record, protocol=protocol) for record in records]
