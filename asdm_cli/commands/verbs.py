"""`asdm VERB FILE`: a command for every verb."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from asdm_cli.commands.options import (
    Device,
    DryRun,
    Dtype,
    Link,
    Out,
    Overwrite,
    Quiet,
    Recipe,
    Set,
    Verbose,
    examples,
    set_verbosity,
)
from asdm_cli.commands.running import overrides, run_verb

AllowPipes = Annotated[
    bool,
    typer.Option("--allow-pipes", help="Let the recipe's [bold]pipe:[/] data sources run their shell commands here."),
]
EXAMPLES = {
    "prune": (
        "asdm prune recipes/prune-pocket-base.yaml",
        "# another set, another place",
        "asdm prune recipes/prune-pocket-base.yaml --set remove=small --out runs/small",
        "# what would be removed, and what is left",
        "asdm prune recipes/prune-pocket-base.yaml --dry-run",
    ),
    "assemble": (
        "asdm assemble recipes/assemble-pocket-1122.yaml",
        "# other donors for the levels, from fine to coarse",
        "asdm assemble recipes/assemble-pocket-1122.yaml --set levels=[base,base,base,original] --out runs/1112",
        "# what would come from where, and nothing else",
        "asdm assemble recipes/assemble-pocket-1122.yaml --dry-run",
        "# all combinations under a budget, ranked",
        "asdm assemble recipes/assemble-pocket-explore.yaml",
    ),
    "distill": (
        "asdm distill recipes/distill-pocket-base.yaml",
        "# who learns what from which nodes, and what is known of the data",
        "asdm distill recipes/distill-pocket-base.yaml --dry-run",
        "# on all GPUs of a machine",
        "accelerate launch -m asdm_cli distill recipes/distill-sd15-base.yaml --set teacher=PATH",
    ),
    "condconv-expand": (
        "asdm condconv-expand recipes/condconv-pocket-base.yaml",
        "# more experts, and what that means, but nothing written",
        "asdm condconv-expand recipes/condconv-pocket-base.yaml --set expand.experts=8 --dry-run",
        "# after distilling: a plain model again, which stock diffusers loads",
        "asdm condconv-expand recipes/condconv-pocket-fold.yaml",
    ),
    "inherit": (
        "asdm inherit recipes/inherit-pocket-block.yaml",
        "# what each UNet call would compute, and nothing else",
        "asdm inherit recipes/inherit-pocket-block.yaml --dry-run",
        "# your own model",
        "asdm inherit recipes/inherit-sd15-block.yaml --set model=PATH --out runs/mine",
    ),
    "switch": (
        "asdm switch recipes/switch-pocket-base.yaml",
        "# who would serve what, and nothing else",
        "asdm switch recipes/switch-pocket-base.yaml --dry-run",
        "# find the best schedules within budgets of time",
        "asdm switch recipes/switch-pocket-search.yaml",
    ),
    "bench": (
        "asdm bench recipes/bench-pocket.yaml",
        "# on a GPU, more rounds",
        "asdm bench recipes/bench-pocket.yaml --device cuda --set repeats=50",
    ),
    "eval": (
        "asdm eval recipes/eval-pocket.yaml",
        "# a quick look at 64 prompts",
        "asdm eval recipes/eval-pocket.yaml --set limit=64 --out runs/eval-quick",
        "# several processes draw the same pictures, faster",
        "accelerate launch -m asdm_cli eval recipes/eval-pocket.yaml",
    ),
    "run": (
        "asdm run recipes/tables/table1.yaml",
        "# what is finished, what would run, and whether it could",
        "asdm run recipes/tables/table1.yaml --dry-run",
        "# your own model; the stages that share work on two processes",
        'asdm run recipes/tables/table1.yaml --set inputs.model=PATH --launch "torchrun --nproc-per-node 2"',
    ),
}
"""Verb -> lines of its help page's end: commands, and what is behind them."""


FROM_FILE_TO_FILE = {
    "prune": """Remove blocks or layers from a UNet.

    Writes a run directory whose [bold]model/[/] plain diffusers loads.
    Weights go from file to file: a model larger than memory is no trouble.
    """,
    "assemble": """Put a UNet together from levels, blocks or layers of several.

    Writes a run directory whose [bold]model/[/] plain diffusers loads, weights copied
    from file to file. With [bold]explore[/] in the recipe it measures many combinations
    and ranks them, and goes on where an interrupted run stopped.
    """,
}
"""Verb -> its help page, of verbs that compute nothing."""
ON_A_DEVICE = {
    "condconv-expand": """Give convolutions several experts, or fold them again.

    A convolution's kernel becomes a mixture of several, chosen by a router.
    The written model draws what it drew before; [bold]asdm distill[/] then teaches
    it to use its experts. Stock diffusers refuses such a model, [bold]asdm_cli.load[/]
    reads it, and [bold]fold[/] in the recipe makes it a plain one.
    """,
    "inherit": """Compute less at some steps, without training.

    The features of chosen blocks, layers or units are inherited from earlier
    steps, or forecast from them. Writes a [bold]model/[/] that carries the plan, and
    says what it gains in speed and loses in fidelity, beside fewer steps.
    """,
    "switch": """Let several UNets take turns in one generation.

    Each serves a part of it, from pure noise to the picture: by a schedule of
    yours, or by one that a [bold]search[/] finds within a budget of time. Writes a
    [bold]model/[/] that switches by itself, and says what schedules gain in speed and
    lose in fidelity, beside fewer steps.
    """,
}
"""Verb -> its help page, of verbs that run models and write one."""
MEASURING = {
    "bench": """Measure what models cost, side by side.

    Parameters, multiply-adds, latency and peak memory. Contestants take
    turns, so that a machine that slows down slows all of them down.
    """,
    "eval": """Measure what models' pictures are worth.

    Every contestant draws the same prompts with the same seeds. The same
    command given again after an interruption goes on where it stopped.
    """,
}
"""Verb -> its help page, of verbs that run models and write none."""


def from_file_to_file(verb: str) -> Callable[..., None]:
    """The command of a verb of FROM_FILE_TO_FILE."""

    def command(
        file: Recipe,
        set_: Set = None,
        out: Out = None,
        link: Link = False,
        dry_run: DryRun = False,
        overwrite: Overwrite = False,
        verbose: Verbose = False,
        quiet: Quiet = False,
    ) -> None:
        set_verbosity(verbose, quiet)
        run_verb(verb, file, overrides(set_, out=out), dry_run, overwrite, link)

    command.__doc__ = FROM_FILE_TO_FILE[verb]
    return command


def on_a_device(verb: str) -> Callable[..., None]:
    """The command of a verb of ON_A_DEVICE."""

    def command(
        file: Recipe,
        set_: Set = None,
        out: Out = None,
        device: Device = None,
        dtype: Dtype = None,
        link: Link = False,
        dry_run: DryRun = False,
        overwrite: Overwrite = False,
        verbose: Verbose = False,
        quiet: Quiet = False,
    ) -> None:
        set_verbosity(verbose, quiet)
        run_verb(verb, file, overrides(set_, out=out, device=device, dtype=dtype), dry_run, overwrite, link)

    command.__doc__ = ON_A_DEVICE[verb]
    return command


def measuring(verb: str) -> Callable[..., None]:
    """The command of a verb of MEASURING."""

    def command(
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
        set_verbosity(verbose, quiet)
        run_verb(verb, file, overrides(set_, out=out, device=device, dtype=dtype), dry_run, overwrite)

    command.__doc__ = MEASURING[verb]
    return command


def distill(
    file: Recipe,
    set_: Set = None,
    out: Out = None,
    device: Device = None,
    allow_pipes: AllowPipes = False,
    link: Link = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train smaller UNets against the original.

    Task, output and feature losses, for one student or several that share
    the teacher's work. Pictures and captions are encoded once and kept.
    Stopped at any moment, the same command goes on from the last checkpoint
    to the same weights. Each student becomes a [bold]model/[/].
    """
    set_verbosity(verbose, quiet)
    changes = overrides(set_, out=out, device=device)
    run_verb("distill", file, changes, dry_run, overwrite, link, allow_pipes=allow_pipes)


def run(
    file: Recipe,
    set_: Set = None,
    out: Out = None,
    launch: Annotated[
        str | None,
        typer.Option(
            "--launch",
            metavar="COMMAND",
            help="Start distill, eval, inherit and switch with this, as in "
            '[bold]"torchrun --nproc-per-node 2"[/] or [bold]"accelerate launch"[/].',
        ),
    ] = None,
    allow_pipes: AllowPipes = False,
    link: Link = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run several recipes, each made from what earlier ones wrote.

    A file with [bold]stages[/]: prune, distill, measure ... Finished stages do not
    run again unless what they are made from has changed; stopped at any
    moment, the same command goes on. One report shows cost and quality
    after each stage.
    """
    set_verbosity(verbose, quiet)
    changes = overrides(set_, out=out)
    run_verb("run", file, changes, dry_run, overwrite, link, launch=launch or "", allow_pipes=allow_pipes)


COMMANDS: dict[str, Callable[..., None]] = {
    "prune": from_file_to_file("prune"),
    "assemble": from_file_to_file("assemble"),
    "distill": distill,
    **{verb: on_a_device(verb) for verb in ON_A_DEVICE},
    **{verb: measuring(verb) for verb in MEASURING},
    "run": run,
}


def register(app: typer.Typer) -> None:
    """A command for every verb, in this order."""
    for name, command in COMMANDS.items():
        app.command(name, epilog=examples(*EXAMPLES[name]))(command)
