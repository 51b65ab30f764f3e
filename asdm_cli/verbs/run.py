"""`asdm run`: stages one after the other, each of them once, and one report of all. Where each lies on the disk, and
whether what lies there is made from what it names now."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from asdm_cli import __version__
from asdm_cli.console import console, note
from asdm_cli.data.shards import SHIPPED
from asdm_cli.errors import ModelError
from asdm_cli.metrics.features import require
from asdm_cli.metrics.suite import needed
from asdm_cli.models.directory import find
from asdm_cli.models.metadata import Stamps, read_with, stamps_of
from asdm_cli.models.sources import hub_name
from asdm_cli.models.write import carry, refuse_sources
from asdm_cli.profiling.expected import Work
from asdm_cli.recipe.load import Scope, dump, references, stage_recipe
from asdm_cli.recipe.schema import places, referenced_paths
from asdm_cli.recipe.verbs import DistillRecipe, Drawing, Recipe, RunRecipe
from asdm_cli.records import Card, Images, Report
from asdm_cli.report.join import join, moved
from asdm_cli.report.run_directory import SCHEMA, Run, is_run, read
from asdm_cli.report.seeds import over_seeds
from asdm_cli.report.words import headline
from asdm_cli.sampling.prompts import locate
from asdm_cli.training.plan import ErrorCollector, check_settings
from asdm_cli.verbs import Plan as StagePlan
from asdm_cli.verbs import SlowPlan, verb_of
from asdm_cli.verbs.process import checked, command, run_stage

RESUMABLE = False
"""Of itself: its stages are kept."""
RECIPES, STAGES, IMAGES = "recipes", "stages", "images"
MANY = 4
"""Set-ups of a stage, from which their number stands for their names."""
DIGITS = 8
"""Of a stage's digest, in the name of its directory: one of four thousand million."""
PAGES = (".md", ".png")
"""Of what is bundled, files that are for people alone."""


@dataclass(frozen=True)
class Stage:
    """One stage, with every reference replaced. `home` is its run directory."""

    name: str
    recipe: Recipe
    home: Path
    needs: tuple[str, ...]
    """The earlier stages that it names."""

    @property
    def finished(self) -> bool:
        return is_run(self.home)


@dataclass(frozen=True)
class Plan:
    recipe: RunRecipe
    stages: tuple[Stage, ...]
    launch: tuple[str, ...]
    pipes: bool
    ready: Mapping[str, StagePlan]
    """Those of stages that could run now."""

    def work(self) -> Work | None:
        """Of these."""
        found = [each for one in self.ready.values() if isinstance(one, SlowPlan) and (each := one.work())]
        some = any(each.at_most for each in found)
        return replace(found[0], macs=sum(each.macs for each in found), at_most=some) if found else None

    def report(self) -> Report:
        done = sum(stage.finished for stage in self.stages)
        notes = [f"{len(self.stages)} stages, {done} of them finished before."]
        notes += [f"{name}: {_in_short(ready.report())}" for name, ready in self.ready.items()]
        if waiting := len(self.stages) - done - len(self.ready):
            notes.append(f"What {waiting} more will take is told when the models that they name are there.")
        facts = {"title": self.recipe.title or f"Stages {', '.join(stage.name for stage in self.stages)}"}
        return Report("run", facts={**facts, "Stages": [_row(stage) for stage in self.stages]}, notes=notes)


def plan(recipe: RunRecipe, launch: str | None = None, allow_pipes: bool = False) -> Plan:
    """Find every stage's directory, and check those that could run now whole, of the others what can be known before
    the models that they name exist. Raises one ModelError with all that is wrong, each with its stage."""
    if "WORLD_SIZE" in os.environ:
        raise ModelError('asdm run: starts processes itself; start it alone, with --launch "torchrun ..."')
    found = tuple(stages(recipe))
    read = [place for stage in found for text in referenced_paths(stage.recipe) for place in places(text)]
    refuse_sources(Path(recipe.out), [*read, *(stage.home for stage in found)])
    words, faults, ready = tuple(checked(launch or "")), dict[str, list[str]](), dict[str, StagePlan]()
    unfinished = {stage.name for stage in found if not stage.finished}
    for stage in (stage for stage in found if stage.name in unfinished):
        try:
            if unfinished & {*stage.needs}:
                _check_early(stage.recipe, allow_pipes)
            else:
                permissions = {"allow_pipes": allow_pipes} if stage.recipe.verb == "distill" else {}
                ready[stage.name] = verb_of(stage.recipe).plan(stage.recipe, **permissions)
        except ModelError as error:  # often the same of all
            faults.setdefault(str(error), []).append(f"'{stage.name}'")
    if faults:
        raise ModelError("\n".join(f"stage {', '.join(names)}: {told}" for told, names in faults.items()))
    return Plan(recipe, found, words, allow_pipes, ready)


def _in_short(report: Report) -> str:
    title, *_ = headline(report)
    return title if len(report.setups) < MANY else f"asdm {report.verb}, {len(report.setups)} set-ups"


def _check_early(recipe: Recipe, allow_pipes: bool) -> None:
    """Data, prompts, networks and settings."""
    errors = ErrorCollector()
    if isinstance(recipe, DistillRecipe):
        check_settings(recipe, errors, allow_pipes)
    if isinstance(recipe, Drawing):
        with errors.at("prompts"):
            locate(recipe.prompts)
        if "features" in needed(recipe.metrics):
            with errors.at("features"):
                require(recipe.features)
    errors.raise_all()


def run(plan: Plan, run: Run) -> Report:
    """Run what is not finished; a stage that ends badly ends the run, and what was done is kept."""
    seconds: dict[str, float] = {}
    for folder in (RECIPES, STAGES):
        (run.path / folder).mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="asdm-") as private:  # recipes whole, where only this user can read them
        for number, stage in enumerate(plan.stages, 1):
            recipe, link = run.path / RECIPES / f"{stage.name}.yaml", run.path / STAGES / stage.name
            recipe.write_text(dump(stage.recipe, public=True), encoding="utf-8")  # runs alone too, but has no passwords
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(stage.home.resolve(), link.parent.resolve()))
            if stage.finished:
                note(f"stage {number} of {len(plan.stages)}, {stage.name}: kept from an earlier run ({stage.home})")
                continue
            console.rule(f"stage {number} of {len(plan.stages)}: {stage.name} (asdm {stage.recipe.verb})", align="left")
            start, file = time.monotonic(), Path(private) / recipe.name
            file.write_text(dump(stage.recipe), encoding="utf-8")
            run_stage(stage.name, command(stage.recipe.verb, file, plan.launch, plan.pipes, run.link))
            seconds[stage.name] = time.monotonic() - start
    return _report(plan, run, seconds)


def _report(plan: Plan, run: Run, seconds: Mapping[str, float]) -> Report:
    """The records of all stages put together, those that `lead` first, with published figures beside them."""
    homes = {stage.name: stage.home for stage in plan.stages}
    lead = plan.recipe.lead
    whole = join({name: moved(read(homes[name]), homes[name]) for name in dict.fromkeys([*lead, *homes])}, lead)
    whole = over_seeds(whole, plan.recipe.seeds)
    rows, cards = published(plan.recipe.beside)
    planned = plan.report().facts
    facts = whole.facts | planned | {"Stages": [_row(stage, seconds) for stage in plan.stages]} | rows
    images = _brought(whole.images, run.path) if whole.images else None
    ran = f"Stages that ran: {len(seconds)} of {len(plan.stages)}; the others were finished before."
    cards |= whole.protocols
    return replace(whole, verb="run", images=images, protocols=cards, facts=facts, notes=[*whole.notes, ran])


def published(names: Iterable[str]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Card]]:
    """Figures that others published, to stand beside measured ones and never among them: the rows of a table per name,
    and the cards that say how they were made."""
    rows, cards = {}, {}
    for name in names:
        file = resources.files("asdm_cli.report") / "published" / f"{name}.yaml"
        held = yaml.safe_load(file.read_text(encoding="utf-8"))
        rows[held["title"]] = [dict(zip(held["columns"], row, strict=True)) for row in held["rows"]]
        cards[held["title"]] = held["card"]
    return rows, cards


def _row(stage: Stage, seconds: Mapping[str, float] | None = None) -> dict[str, Any]:
    """What a stage is made from and where it is kept; with `seconds`, which have those that ran, whether it did."""
    took = (seconds or {}).get(stage.name)
    state = "ran" if took is not None else "finished before" if stage.finished else "to run"
    row = {"stage": stage.name, "verb": stage.recipe.verb, "made from": ", ".join(stage.needs), "state": state}
    return row | ({"minutes": round(took / 60, 1)} if took is not None else {}) | {"kept in": stage.home.name}


def _brought(images: Images, run: Path) -> Images:
    """Copies in the run directory: this can then be moved, or sent, alone. What an interrupted run brought goes first,
    it may be from a stage that was made anew since."""
    shutil.rmtree(run / IMAGES, ignore_errors=True)
    folders = {
        name: f"{IMAGES}/{place:02}-{Path(folder).name}" for place, (name, folder) in enumerate(images.folders.items())
    }
    for name, folder in images.folders.items():
        (run / folders[name]).mkdir(parents=True)
        for file in (Path(folder) / f"{place:06}.png" for place in range(len(images.prompts))):
            if file.is_file():
                carry(file, run / folders[name] / file.name)
    return Images(images.prompts, folders)


def stages(recipe: RunRecipe) -> list[Stage]:
    """All stages in their order.

    The directory of each is named by a digest of its recipe, of the files that this reads (names, sizes, and times of
    change; of small ones, and of what is bundled, the contents) and, by way of the directories that it names, of the
    stages before it: whatever changes, what was made before stays where it is, and is found again. One that an asdm of
    other reports made
    is not.
    """
    kept = Path(recipe.kept or Path(recipe.out).parent / "stages")
    scope, found = Scope(recipe.inputs), list[Stage]()
    for name, given in recipe.stages.items():
        draft = stage_recipe(given, scope, "out")
        home = kept / f"{name}-{_digest(draft, kept)}"
        scope.stages[name] = str(home)
        needs = dict.fromkeys(each.name for each in references(given) if each.name in recipe.stages)
        whole = draft.model_copy(update={"out": str(home)})
        found.append(Stage(name, whole, home, tuple(needs)))
    return found


def _digest(recipe: Recipe, kept: Path) -> str:
    """Of URLs, and of words that are no files, nothing is in it."""
    files: list[str | list[Stamps]] = []
    for text in referenced_paths(recipe):
        if text in SHIPPED:
            files.append(_bundled())
            continue
        read = places(text)
        if hub_name(text):
            with suppress(ModelError):  # the stage that reads it says so
                read = [find(text).path]
        if not Path(text).is_relative_to(kept):
            inside = {place: place.rglob("*") if place.is_dir() else read_with([place]) for place in read}
            files.append([stamps_of(place, each) for place, each in inside.items()])
    whole = {"asdm": [__version__, SCHEMA], "recipe": recipe.model_dump(mode="json", exclude={"out"}), "files": files}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:DIGITS]


@cache
def _bundled() -> str:
    """The contents of what is bundled: every checkout has them written at another time."""
    root, digest = Path(str(resources.files("asdm_cli") / "pocket")), hashlib.sha256()
    found = (file for part in ("weights", "data") for file in (root / part).rglob("*"))
    for file in sorted(file for file in found if file.is_file() and file.suffix not in PAGES):
        contents = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(root).as_posix()} {contents}\n".encode())
    return digest.hexdigest()
