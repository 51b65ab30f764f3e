"""One verb, one file: what it would do (`plan`, from the recipe and from file headers only), and doing it (`run`).

Here is how every verb runs: the three gates, then the work, then the report.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from asdm_cli.console import BRIEF, console, hand_over, is_first, note
from asdm_cli.errors import ModelError, reason
from asdm_cli.models.addressed import unknown_addresses
from asdm_cli.models.directory import find
from asdm_cli.models.metadata import history, made_from, measured_with, read_metadata, refuse_changes
from asdm_cli.models.pipelines import PIPELINES, Kind
from asdm_cli.models.write import partial_path, refuse_existing, refuse_sources
from asdm_cli.recipe.load import dump, load
from asdm_cli.recipe.reader import Override, Source
from asdm_cli.recipe.schema import places, referenced_paths
from asdm_cli.recipe.typed import is_recipe, typed
from asdm_cli.recipe.verbs import VERBS, Recipe
from asdm_cli.records import Report
from asdm_cli.verbs.process import end_with_starter

if TYPE_CHECKING:
    from asdm_cli.profiling.expected import Work

KEYS = (
    *(
        "out",
        "device",
        "dtype",
        "remove",
        "plan",
        "target",
        "minutes",
        "measure",
        "sampler",
        "steps",
        "guidance",
        "size",
        "prompts",
        "inputs",
        "limit",
    ),
    *("metrics", "repeats"),
)
"""Options that stand for the recipe's key of the same name."""


class Plan(Protocol):
    """What a verb would do, found out from the recipe and from file headers only (gate 3)."""

    def report(self) -> Report: ...


@runtime_checkable
class SlowPlan(Protocol):
    """That of what may take minutes, so that processes share it; what has other plans only the first one does."""

    def work(self) -> Work | None: ...


class Verb(Protocol):
    """What the file of a verb offers. `recipe`, `plan` and `run` are of the verb's own types."""

    RESUMABLE: bool
    """Whether an interrupted run goes on where it stopped."""

    def plan(self, recipe: Any, **permissions: Any) -> Plan:
        """Check shapes and files; raises ModelError. Nothing slow, nothing written."""

    def run(self, plan: Any, run: Any) -> Report:
        """Do it, writing below `run.path`."""


def verb_of(recipe: Recipe) -> Verb:
    """Imported only when it runs."""
    return cast(Verb, import_module(f"asdm_cli.verbs.{recipe.module}"))


def run_verb(
    verb: str,
    given: Sequence[str],
    set_: list[str] | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    link: bool = False,
    **more: Any,
) -> None:
    """The three gates, then the work, then the report; prints the run directory.

    `given` is a recipe's file, or models in its place. `more` are options that stand for a recipe's key of the same
    name (KEYS), and what only a command line can allow.
    """
    end_with_starter()
    changes = list[Override]()
    for key in [key for key in KEYS if key in more]:
        value = more.pop(key)
        changes += [Override((key,), value, f"--{key}")] if value is not None else []
    changes += [Override.parse(text) for text in set_ or []]
    look = unknown_addresses if verb != "run" else lambda _: ()  # of all its stages at once the plan tells more
    source: Path | Source = Path(given[0])
    if len(given) > 1 or not is_recipe(given[0]):
        source = typed(verb, given, changes)
    recipe: Any = load(source, verb, changes, look)
    from asdm_cli.report.run_directory import Run, refuse_unfinished, run_directory, with_links

    target = Path(recipe.out)
    if is_first():
        refuse_existing(target, overwrite or dry_run)
    refuse_sources(target, (place for text in referenced_paths(recipe) for place in places(text)))
    if isinstance(source, Source) and "guidance" in VERBS[verb].model_fields:  # by now a model may be fetched
        source.data |= _usual(given[0])
        recipe = load(source, verb, changes, look)
    recipe_yaml = dump(recipe, public=True)
    if is_first():
        refuse_unfinished(target, overwrite or dry_run, recipe_yaml)
    how, before = verb_of(recipe), made_from(referenced_paths(recipe))
    plan = how.plan(recipe, **more)
    planned = with_links(plan.report(), link)
    _show(planned)
    if dry_run:
        _tell_time(plan)
        if target.exists() and not overwrite:
            note(f"{target}: exists already; the run itself needs --overwrite, or another place")
        return
    device = getattr(recipe, "device", "auto")
    if not is_first():  # work in the folder that the first process made; it alone writes the report and publishes
        wait_for_everyone(device)
        if isinstance(plan, SlowPlan):
            how.run(plan, Run(partial_path(target)))
        wait_for_everyone(device)
        return
    with run_directory(target, overwrite, how.RESUMABLE, recipe_yaml, link) as run:
        wait_for_everyone(device)
        report = how.run(plan, run)
        wait_for_everyone(device)
        refuse_changes(before, made_from(referenced_paths(recipe)))
        report = run.write(report)
        written = {run.path / "model": target.name, **{model: model.name for model in run.path.glob("models/*")}}
        written |= {student / "model": student.name for student in run.path.glob("students/*")}
        _leave_cards(written, report)
    _show(report, target / "report.html", planned)
    hand_over(target)


def _leave_cards(models: Mapping[Path, str], report: Report) -> None:
    """Beside models, by their names, that were written and have none yet: they may be handed on without their run.
    `export` adds figures."""
    from asdm_cli.models.card import CARD, drawing, loading, model_card

    for model, name in models.items():
        if not model.is_dir() or (model / CARD).exists():
            continue
        directory = find(str(model))
        patches = read_metadata(directory).patches
        told = [f"* {line}" for line in drawing(patches, measured_with(directory))]
        load = loading(directory, "PATH", patched=bool(patches))
        what = [f"Made by `asdm {report.verb}`.", *(["", *told] if told else [])]
        model_card(name, what, history(directory), load).save(model / CARD)


def _usual(model: str) -> dict[str, Any]:
    """The guidance that a model was measured with, or that its pipeline has, and its steps where those say something of
    the model; a recipe's defaults are pocket's."""
    try:
        directory = find(model)
    except ModelError:  # its verb tells
        return {"guidance": Kind.guidance}
    kind = PIPELINES.get(str(directory.index.get("_class_name")), Kind())
    steps = {"steps": kind.steps} if kind.steps else {}
    return steps | {"guidance": measured_with(directory).get("guidance", kind.guidance)}


def wait_for_everyone(device: str = "auto") -> None:
    """Return when every process of this run has come here; at once when there is only one."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from asdm_cli.sampling.generate import processes

        processes(device).wait_for_everyone()


def _tell_time(plan: Plan) -> None:
    """How long it would take; a figure that cannot be had stops nothing."""
    work = plan.work() if isinstance(plan, SlowPlan) else None
    if work is None:
        return
    from asdm_cli.profiling.expected import expected

    try:
        note(f"It would take {expected(work)}.")
    except Exception as error:
        note(f"How long it would take cannot be told here: {reason(error)}.")


def _show(report: Report, page: Path | None = None, planned: Report | None = None) -> None:
    """Figures that the plan had already are not shown twice."""
    from asdm_cli.report.terminal import show
    from asdm_cli.report.words import headline

    if BRIEF not in os.environ:
        told = [(each.records, headline(each), each.facts.get("title")) for each in (report, planned) if each]
        known = len(told) == 2 and told[0] == told[1]
        notes = [each for each in report.notes if planned is None or each not in planned.notes]
        show(replace(report, notes=notes), console, page, known)
