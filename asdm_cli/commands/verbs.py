"""`asdm prune|inherit|bench|eval FILE`: one way to run every verb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from asdm_cli.commands.options import (
    Device,
    DryRun,
    Dtype,
    Out,
    Overwrite,
    Quiet,
    Recipe,
    Set,
    Verbose,
    examples,
    set_verbosity,
)
from asdm_cli.commands.ranks import is_first, wait_for_everyone
from asdm_cli.methods import Method, Plan, method
from asdm_cli.progress import console
from asdm_cli.recipe.load import dump, load
from asdm_cli.recipe.override import Override, parse_override


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "asdm prune recipes/prune-pocket-base.yaml",
            "# another set, another place",
            "asdm prune recipes/prune-pocket-base.yaml --set remove=small --out runs/small",
            "# what would be removed, and what is left",
            "asdm prune recipes/prune-pocket-base.yaml --dry-run",
        )
    )(prune)
    app.command(
        epilog=examples(
            "asdm inherit recipes/inherit-pocket-block.yaml",
            "# what each UNet call would compute, and nothing else",
            "asdm inherit recipes/inherit-pocket-block.yaml --dry-run",
            "# your own model",
            "asdm inherit recipes/inherit-sd15-block.yaml --set model=PATH --out runs/mine",
        )
    )(inherit)
    app.command(
        epilog=examples(
            "asdm bench recipes/bench-pocket.yaml",
            "# on a GPU, more rounds",
            "asdm bench recipes/bench-pocket.yaml --device cuda --set repeats=50",
        )
    )(bench)
    app.command(
        "eval",
        epilog=examples(
            "asdm eval recipes/eval-pocket.yaml",
            "# a quick look at 64 prompts",
            "asdm eval recipes/eval-pocket.yaml --set limit=64 --out runs/eval-quick",
            "# several processes draw the same pictures, faster",
            "accelerate launch -m asdm_cli eval recipes/eval-pocket.yaml",
        ),
    )(evaluate)


def prune(
    file: Recipe,
    set_: Set = None,
    out: Out = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Remove blocks or layers from a UNet.

    Writes a run directory whose [bold]model/[/] plain diffusers loads.
    Weights go from file to file: a model larger than memory is no trouble.
    """
    set_verbosity(verbose, quiet)
    run_verb("prune", file, overrides(set_, out=out), dry_run, overwrite)


def inherit(
    file: Recipe,
    set_: Set = None,
    out: Out = None,
    device: Device = None,
    dtype: Dtype = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Compute less at some steps, without training.

    The features of chosen blocks, layers or units are inherited from earlier
    steps, or forecast from them. Writes a [bold]model/[/] that carries the plan, and
    says what it gains in speed and loses in fidelity, beside fewer steps.
    """
    set_verbosity(verbose, quiet)
    run_verb("inherit", file, overrides(set_, out=out, device=device, dtype=dtype), dry_run, overwrite)


def bench(
    file: Recipe,
    set_: Set = None,
    out: Out = None,
    device: Device = None,
    dtype: Dtype = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure what models cost, side by side.

    Parameters, multiply-adds, latency and peak memory. Contestants take
    turns, so that a machine that slows down slows all of them down.
    """
    set_verbosity(verbose, quiet)
    run_verb("bench", file, overrides(set_, out=out, device=device, dtype=dtype), dry_run, overwrite)


def evaluate(
    file: Recipe,
    set_: Set = None,
    out: Out = None,
    device: Device = None,
    dtype: Dtype = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure what models' pictures are worth.

    Every contestant draws the same prompts with the same seeds. The same
    command given again after an interruption goes on where it stopped.
    """
    set_verbosity(verbose, quiet)
    run_verb("eval", file, overrides(set_, out=out, device=device, dtype=dtype), dry_run, overwrite)


def overrides(settings: list[str] | None, **options: str | None) -> list[Override]:
    """--set texts, then the options that stand for a recipe's key of the same name."""
    named = [Override((key,), value, f"--{key}") for key, value in options.items() if value is not None]
    return [parse_override(text) for text in settings or []] + named


def run_verb(verb: str, file: Path, changes: list[Override], dry_run: bool, overwrite: bool) -> None:
    """The three gates, then the work, then the report; prints the run directory."""
    from asdm_cli.report.terminal import show

    recipe: Any = load(file, verb, changes)
    how = method(verb)
    plan = how.plan(recipe)
    show(plan.report(), console)
    if dry_run:
        return
    target = Path(recipe.out)
    if not is_first():
        _follow(how, plan, target)
        return
    _lead(how, plan, target, dump(recipe), overwrite)
    typer.echo(target)


def _lead(how: Method, plan: Plan, target: Path, recipe_yaml: str, overwrite: bool) -> None:
    from asdm_cli.report.run_directory import run_directory
    from asdm_cli.report.terminal import show

    with run_directory(target, overwrite, how.RESUMABLE, recipe_yaml) as run:
        wait_for_everyone()
        report = how.run(plan, run)
        wait_for_everyone()
        run.write(report)
    show(report, console)


def _follow(how: Method, plan: Plan, target: Path) -> None:
    """Work in the folder that the first process made; it alone writes the report and publishes."""
    from asdm_cli.models.write import partial_path
    from asdm_cli.report.run_directory import Run

    wait_for_everyone()
    how.run(plan, Run(partial_path(target)))
    wait_for_everyone()
