"""The report of a pipeline: cost and quality after each stage, then every stage's own report, folded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asdm_cli.methods.pipeline.stages import Stage
from asdm_cli.models.write import carry
from asdm_cli.recipe.stages import Scope, resolve
from asdm_cli.recipe.verbs import RunRecipe
from asdm_cli.report import literature, merge
from asdm_cli.report.document import (
    Bars,
    Cell,
    Column,
    Curves,
    Grid,
    Interval,
    Part,
    Report,
    Scatter,
    Section,
    Table,
)
from asdm_cli.report.path import Measured, gain, path_parts
from asdm_cli.report.run_directory import Run

PICTURES = "pictures"
OPENING = (Table,), (Scatter, Bars, Curves)
"""Of a stage that opens the report: the first of each of these."""
WAYS = ("remove", "expand", "plan", "steps")
"""Keys of a contestant that make something else of its model."""


def whole_report(
    title: str, recipe: RunRecipe, stages: Sequence[Stage], run: Run, seconds: Mapping[str, float]
) -> Report:
    """Of finished stages; `seconds` has those that ran this time."""
    reports = [_brought_in(merge.read(stage.home), run, stage.name) for stage in stages]
    joined = merge.combine(title, reports, folded=True)
    sections = dict(zip((stage.name for stage in stages), _sections(joined.parts), strict=True))
    measured = [Measured(each, _origins(stage, recipe)) for each, stage in zip(reports, stages, strict=True)]
    lead = [part for name in recipe.lead for part in _opening(name, sections[name])]
    published, cards = literature.tables(recipe.beside)
    ran = f"Stages that ran: {len(seconds)} of {len(stages)}; the others were finished before."
    path = path_parts(measured, [stage.name for stage in stages])
    drawn = _pictures(joined.parts, {each.report.title for each in measured if each.origins})
    parts: list[Part] = [*path, *drawn, *lead, *published, stages_table(stages, seconds), *joined.parts]
    return Report("run", title, " ".join([gain(path), ran]).strip(), parts, {**cards, **joined.cards})


def _pictures(parts: Sequence[Part], judged: set[str]) -> list[Part]:
    """The last grid of those whose contestants the path has."""
    sections = [part.title for part in parts if isinstance(part, Section)]
    found = [
        part
        for title, section in zip(sections, _sections(parts), strict=True)
        if title in judged
        for part in section
        if isinstance(part, Grid)
    ]
    return list(found[-1:])


def stages_table(stages: Sequence[Stage], seconds: Mapping[str, float] | None = None, note: str = "") -> Table:
    """What each is made from and where it is kept; with `seconds`, how long those took that ran."""
    took = seconds or {}
    columns = [
        Column("stage", "stage"),
        Column("verb", "verb"),
        Column("made_from", "made from"),
        Column("state", "state"),
        *([Column("minutes", "minutes", digits=1)] if took else []),
        Column("home", "kept in"),
    ]
    return Table("Stages", columns, [_row(stage, took) for stage in stages], note)


def _row(stage: Stage, seconds: Mapping[str, float]) -> dict[str, Cell | Interval]:
    ran = seconds.get(stage.name)
    state = "finished before" if stage.finished else "to run"
    return {
        "stage": stage.name,
        "verb": stage.verb,
        "made_from": ", ".join(stage.needs),
        "state": state if ran is None else "ran",
        "minutes": None if ran is None else ran / 60,
        "home": stage.home.name,
    }


def _sections(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """The parts of each section of a joined report."""
    starts = [index for index, part in enumerate(parts) if isinstance(part, Section)]
    for start, end in zip(starts, [*starts[1:], len(parts)], strict=True):
        yield list(parts[start + 1 : end])


def _opening(name: str, section: Sequence[Part]) -> list[Part]:
    """A stage's first table and first plot, under its name."""
    found = [next((part for part in section if isinstance(part, kinds)), None) for kinds in OPENING]
    return [replace(part, title=f"{name}: {part.title}") for part in found if part is not None]


def _origins(stage: Stage, recipe: RunRecipe) -> dict[str, str]:
    """Contestant -> its model, as the file names it, and how it draws; nothing for verbs that have no contestants."""
    models = stage.given.get("models") if stage.verb in ("bench", "eval") else None
    contestants = resolve(models or [], Scope(recipe.inputs))
    return {str(each["name"]): _origin(each) for each in contestants}


def _origin(contestant: Mapping[str, Any]) -> str:
    source = contestant.get("model") or f"random {contestant['random']}"
    return ", ".join([str(source), *(f"{key} {_in_a_line(contestant[key])}" for key in WAYS if key in contestant)])


def _in_a_line(value: Any) -> str:
    """A part of a recipe without its punctuation."""
    return value if isinstance(value, str) else json.dumps(value).translate(str.maketrans("", "", '"{}[]'))


def _brought_in(report: Report, run: Run, name: str) -> Report:
    """Under its stage's name, with its pictures in the run directory: this can then be moved, or sent, alone."""
    parts = [_own(part, run, name) if isinstance(part, Grid) else part for part in report.parts]
    return replace(report, title=f"{name}: {report.title}", parts=parts)


def _own(grid: Grid, run: Run, name: str) -> Grid:
    return replace(grid, pictures=[[path and _brought(path, run, name) for path in row] for row in grid.pictures])


def _brought(picture: Path, run: Run, name: str) -> Path:
    target = run.path / PICTURES / name / picture.parent.name / picture.name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # an interrupted run may have brought it from a stage that was made anew since
    carry(picture, target)
    return target
