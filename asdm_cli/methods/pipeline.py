"""`asdm run`: stages one after the other, each of them once, and one report of all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asdm_cli.errors import ModelError
from asdm_cli.methods import method
from asdm_cli.methods.early import check_all
from asdm_cli.methods.stage_process import checked, command, run_stage
from asdm_cli.methods.stages import Stage, stages
from asdm_cli.models.write import link_or_copy
from asdm_cli.progress import console, note
from asdm_cli.recipe.load import dump
from asdm_cli.recipe.pipeline import Scope, resolve
from asdm_cli.recipe.verbs import RunRecipe
from asdm_cli.report import literature, merge
from asdm_cli.report.document import Bars, Cell, Column, Curves, Grid, Interval, Part, Report, Scatter, Table
from asdm_cli.report.path import Measured, path_parts
from asdm_cli.report.run_directory import Run, run_directory

RESUMABLE = True
HERE = {"prune", "assemble"}
RECIPES, PICTURES, STAGES = "recipes", "pictures", "stages"


@dataclass(frozen=True)
class Plan:
    recipe: RunRecipe
    stages: tuple[Stage, ...]
    launch: tuple[str, ...]
    pipes: bool
    summaries: Mapping[str, str]
    """What gate 3 says of a stage that could run now."""

    @property
    def title(self) -> str:
        return self.recipe.title or f"Stages {', '.join(stage.name for stage in self.stages)}"

    def report(self) -> Report:
        done = sum(stage.finished for stage in self.stages)
        summary = f"{len(self.stages)} stages, {done} of them finished before."
        return Report("run", self.title, summary, [_table(self, {})])


def plan(recipe: RunRecipe, launch: str = "", allow_pipes: bool = False) -> Plan:
    """Find every stage's directory, and check those that could run now. Raises ModelError, with the stage."""
    if "WORLD_SIZE" in os.environ:
        raise ModelError('asdm run: starts processes itself; start it alone, with --launch "torchrun ..."')
    found = tuple(stages(recipe))
    words = tuple(checked(launch))
    unfinished = {stage.name for stage in found if not stage.finished}
    ready = [stage for stage in found if stage.name in unfinished and not unfinished & {*stage.needs}]
    waiting = [stage for stage in found if stage.name in unfinished and stage not in ready]
    return Plan(recipe, found, words, allow_pipes, check_all(ready, waiting, allow_pipes))


def run(plan: Plan, run: Run) -> Report:
    """Run what is not finished; a stage that ends badly ends the run, and what was done is kept."""
    seconds: dict[str, float] = {}
    for number, stage in enumerate(plan.stages, 1):
        file = _write_recipe(stage, run)
        if stage.finished:
            note(f"stage {number} of {len(plan.stages)}, {stage.name}: kept from an earlier run ({stage.home})")
            continue
        console.rule(f"stage {number} of {len(plan.stages)}: {stage.name} (asdm {stage.verb})", align="left")
        start = time.monotonic()
        _run_stage(plan, stage, file)
        seconds[stage.name] = time.monotonic() - start
    _link(plan, run)
    return _report(plan, run, seconds)


def _run_stage(plan: Plan, stage: Stage, file: Path) -> None:
    """Copying weights from file to file needs no process of its own; all else gets one."""
    how = method(stage.verb)
    if stage.verb not in HERE or getattr(stage.recipe, "explore", None):
        run_stage(stage.name, command(stage.verb, file, plan.launch, plan.pipes))
        return
    try:
        made = how.plan(stage.recipe)
    except ModelError as error:
        raise ModelError(f"stage '{stage.name}': {error}") from None
    with run_directory(stage.home, False, how.RESUMABLE, dump(stage.recipe)) as run:
        run.write(how.run(made, run))


def _write_recipe(stage: Stage, run: Run) -> Path:
    """The stage's recipe as resolved, which runs alone too."""
    file = run.path / RECIPES / f"{stage.name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(dump(stage.recipe), encoding="utf-8")
    return file


def _link(plan: Plan, run: Run) -> None:
    """`stages/NAME` in the run directory leads to where the stage is kept."""
    folder = run.path / STAGES
    folder.mkdir(exist_ok=True)
    for stage in plan.stages:
        link = folder / stage.name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(stage.home.resolve(), folder.resolve()))


def _report(plan: Plan, run: Run, seconds: Mapping[str, float]) -> Report:
    reports = {stage.name: merge.read(stage.home) for stage in plan.stages}
    measured = [Measured(reports[stage.name], _origins(stage, plan.recipe)) for stage in plan.stages]
    joined = merge.combine(plan.title, [_brought_in(reports[s.name], run, s.name) for s in plan.stages], folded=True)
    lead = [part for name in plan.recipe.lead for part in _opening(name, reports[name])]
    tables, cards = literature.tables(plan.recipe.beside)
    kept = len(plan.stages) - len(seconds)
    ran = f"{len(seconds)} stages ran{f', {kept} were finished before' if kept else ''}."
    parts: list[Part] = [*path_parts(measured), *lead, *tables, _table(plan, seconds), *joined.parts]
    return Report("run", plan.title, ran, parts, {**cards, **joined.cards})


def _origins(stage: Stage, recipe: RunRecipe) -> dict[str, str]:
    """Contestant -> its model, as the file names it, and how it draws; nothing for verbs that have no contestants."""
    models = stage.given.get("models") if stage.verb in ("bench", "eval") else None
    contestants = resolve(models or [], Scope(recipe.inputs))
    return {str(each["name"]): _origin(each) for each in contestants}


def _origin(contestant: Mapping[str, Any]) -> str:
    """What it is made from, whatever it is called. Where there is a model, its name says enough of the rest."""
    source = contestant.get("model") or f"random {contestant['random']}"
    ways = [
        f"{key} {_in_a_line(contestant[key])}" for key in ("remove", "expand", "plan", "steps") if key in contestant
    ]
    return ", ".join([str(source), *ways])


def _in_a_line(value: Any) -> str:
    """A part of a recipe in one line."""
    return value if isinstance(value, str) else json.dumps(value).translate(str.maketrans("", "", '"{}[]'))


def _opening(name: str, report: Report) -> list[Part]:
    """The first table and the first plot of a stage, under its name."""
    kinds = (Table,), (Scatter, Bars, Curves)
    found = [next((part for part in report.parts if isinstance(part, kind)), None) for kind in kinds]
    return [replace(part, title=f"{name}: {part.title}") for part in found if part is not None]


def _brought_in(report: Report, run: Run, name: str) -> Report:
    """Under its stage's name, with its pictures in the run directory: this can then be moved, or sent, alone."""
    parts = [_own(part, run, name) if isinstance(part, Grid) else part for part in report.parts]
    return replace(report, title=f"{name}: {report.title}", parts=parts)


def _own(grid: Grid, run: Run, name: str) -> Grid:
    return replace(grid, pictures=[[path and _brought(path, run, name) for path in row] for row in grid.pictures])


def _brought(picture: Path, run: Run, name: str) -> Path:
    target = run.path / PICTURES / name / picture.parent.name / picture.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        link_or_copy(picture, target)
    return target


def _table(plan: Plan, seconds: Mapping[str, float]) -> Table:
    columns = [
        Column("stage", "stage"),
        Column("verb", "verb"),
        Column("made_from", "made from"),
        Column("state", "state"),
        *([Column("minutes", "minutes", digits=1)] if seconds else []),
        Column("home", "kept in"),
    ]
    rows = [_row(stage, seconds) for stage in plan.stages]
    return Table("Stages", columns, rows, "" if seconds else _note(plan))


def _note(plan: Plan) -> str:
    return "\n".join(f"{name}: {summary}" for name, summary in plan.summaries.items())


def _row(stage: Stage, seconds: Mapping[str, float]) -> dict[str, Cell | Interval]:
    state = "finished before" if stage.finished else "to run"
    if stage.name in seconds:
        state = "ran"
    return {
        "stage": stage.name,
        "verb": stage.verb,
        "made_from": ", ".join(stage.needs),
        "state": state,
        "minutes": seconds[stage.name] / 60 if stage.name in seconds else None,
        "home": stage.home.name,
    }
