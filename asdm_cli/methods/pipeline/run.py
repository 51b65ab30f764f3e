"""`asdm run`: stages one after the other, each of them once, and one report of all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from asdm_cli.console import console, note
from asdm_cli.errors import ModelError
from asdm_cli.methods import method
from asdm_cli.methods.pipeline.early import check_all
from asdm_cli.methods.pipeline.process import checked, command, run_stage
from asdm_cli.methods.pipeline.report import stages_table, whole_report
from asdm_cli.methods.pipeline.stages import Stage, stages
from asdm_cli.models.origin import made_from, refuse_changes
from asdm_cli.models.write import refuse_sources
from asdm_cli.recipe.load import dump, dump_public
from asdm_cli.recipe.schema import places, referenced_paths
from asdm_cli.recipe.verbs import RunRecipe
from asdm_cli.report.document import Report
from asdm_cli.report.run_directory import Run, run_directory

RESUMABLE = True
HERE = {"prune", "assemble"}
RECIPES, STAGES = "recipes", "stages"


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
        said = "\n".join(f"{name}: {about}" for name, about in self.summaries.items())
        return Report("run", self.title, summary, [stages_table(self.stages, note=said)])


def plan(recipe: RunRecipe, launch: str = "", allow_pipes: bool = False) -> Plan:
    """Find every stage's directory, and check those that could run now. Raises ModelError, with the stage."""
    if "WORLD_SIZE" in os.environ:
        raise ModelError('asdm run: starts processes itself; start it alone, with --launch "torchrun ..."')
    found = tuple(stages(recipe))
    read = [place for stage in found for text in referenced_paths(stage.recipe) for place in places(text)]
    refuse_sources(Path(recipe.out), [*read, *(stage.home for stage in found)])
    words = tuple(checked(launch))
    unfinished = {stage.name for stage in found if not stage.finished}
    ready = [stage for stage in found if stage.name in unfinished and not unfinished & {*stage.needs}]
    waiting = [stage for stage in found if stage.name in unfinished and stage not in ready]
    return Plan(recipe, found, words, allow_pipes, check_all(ready, waiting, allow_pipes))


def run(plan: Plan, run: Run) -> Report:
    """Run what is not finished; a stage that ends badly ends the run, and what was done is kept."""
    seconds: dict[str, float] = {}
    for number, stage in enumerate(plan.stages, 1):
        _write_recipe(stage, run)
        if stage.finished:
            note(f"stage {number} of {len(plan.stages)}, {stage.name}: kept from an earlier run ({stage.home})")
            continue
        console.rule(f"stage {number} of {len(plan.stages)}: {stage.name} (asdm {stage.verb})", align="left")
        start = time.monotonic()
        _run_stage(plan, stage, run.link)
        seconds[stage.name] = time.monotonic() - start
    _link(plan, run)
    return whole_report(plan.title, plan.recipe, plan.stages, run, seconds)


def _run_stage(plan: Plan, stage: Stage, link: bool) -> None:
    """Copying weights from file to file needs no process of its own; all else gets one."""
    how = method(stage.verb)
    if stage.verb not in HERE or getattr(stage.recipe, "explore", None):
        with _recipe_file(stage) as file:
            run_stage(stage.name, command(stage.verb, file, plan.launch, plan.pipes, link))
        return
    before = made_from(referenced_paths(stage.recipe))
    try:
        made = how.plan(stage.recipe)
    except ModelError as error:
        raise ModelError(f"stage '{stage.name}': {error}") from None
    with run_directory(stage.home, False, how.RESUMABLE, dump_public(stage.recipe), link) as run:
        report = how.run(made, run)
        refuse_changes(before, made_from(referenced_paths(stage.recipe)))
        run.write(report)


def _write_recipe(stage: Stage, run: Run) -> None:
    """The stage's recipe as resolved, which runs alone too, without passwords."""
    file = run.path / RECIPES / f"{stage.name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(dump_public(stage.recipe), encoding="utf-8")


@contextmanager
def _recipe_file(stage: Stage) -> Iterator[Path]:
    """The recipe whole, where only this user can read it, while its stage runs."""
    with TemporaryDirectory(prefix="asdm-") as folder:
        file = Path(folder) / f"{stage.name}.yaml"
        file.write_text(dump(stage.recipe), encoding="utf-8")
        yield file


def _link(plan: Plan, run: Run) -> None:
    """`stages/NAME` in the run directory leads to where the stage is kept."""
    folder = run.path / STAGES
    folder.mkdir(exist_ok=True)
    for stage in plan.stages:
        link = folder / stage.name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(stage.home.resolve(), folder.resolve()))
