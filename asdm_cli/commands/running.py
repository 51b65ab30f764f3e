"""One way to run every verb: the three gates, then the work, then the report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from asdm_cli.commands.ranks import is_first, wait_for_everyone
from asdm_cli.methods import Method, Plan, method
from asdm_cli.methods.pipeline.process import end_with_starter
from asdm_cli.models.origin import made_from, refuse_changes
from asdm_cli.models.write import refuse_existing, refuse_sources
from asdm_cli.progress import BRIEF, console, hand_over
from asdm_cli.recipe.load import dump_public, load
from asdm_cli.recipe.override import Override, parse_override
from asdm_cli.recipe.reads import places, reads
from asdm_cli.report.document import Report


def overrides(settings: list[str] | None, **options: str | None) -> list[Override]:
    """--set texts, then the options that stand for a recipe's key of the same name."""
    named = [Override((key,), value, f"--{key}") for key, value in options.items() if value is not None]
    return [parse_override(text) for text in settings or []] + named


def run_verb(
    verb: str,
    file: Path,
    changes: list[Override],
    dry_run: bool,
    overwrite: bool,
    link: bool = False,
    **permissions: bool | str,
) -> None:
    """The three gates, then the work, then the report; prints the run directory.

    `link` and `permissions` are what only a command line can allow, no recipe.
    """
    end_with_starter()
    recipe: Any = load(file, verb, changes)
    from asdm_cli.report.run_directory import run_directory, with_links

    target = Path(recipe.out)
    if is_first() and not dry_run:
        refuse_existing(target, overwrite)
    refuse_sources(target, (place for text in reads(recipe) for place in places(text)))
    how, before = method(verb), made_from(reads(recipe))
    plan = how.plan(recipe, **permissions)
    _show(with_links(plan.report(), link))
    if dry_run:
        return
    if not is_first():
        _follow(how, plan, target)
        return
    with run_directory(target, overwrite, how.RESUMABLE, dump_public(recipe), link) as run:
        wait_for_everyone()
        report = how.run(plan, run)
        wait_for_everyone()
        refuse_changes(before, made_from(reads(recipe)))
        report = run.write(report)
    _show(report, target / "report.html")
    hand_over(target)


def _show(report: Report, page: Path | None = None) -> None:
    from asdm_cli.report.terminal import show

    if BRIEF not in os.environ:
        show(report, console, page)


def _follow(how: Method, plan: Plan, target: Path) -> None:
    """Work in the folder that the first process made; it alone writes the report and publishes."""
    from asdm_cli.models.write import partial_path
    from asdm_cli.report.run_directory import Run

    wait_for_everyone()
    how.run(plan, Run(partial_path(target)))
    wait_for_everyone()
