"""The options that commands share, said once; and what -v and -q do."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Annotated

import typer

from asdm_cli import progress
from asdm_cli.commands.ranks import is_first

log = logging.getLogger("asdm")

Recipe = Annotated[Path, typer.Argument(metavar="FILE", help="The recipe, a YAML file.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace one value of the recipe, as in [bold]models.0.name=teacher[/]. May be given again.",
    ),
]
Out = Annotated[
    str | None, typer.Option("--out", metavar="DIR", help="Write here instead of the recipe's [bold]out[/].")
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="Run on [bold]cpu[/], [bold]cuda[/], [bold]cuda:1[/], ..."),
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", metavar="NAME", help="[bold]float32[/], [bold]bfloat16[/] or [bold]float16[/]."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, and stop.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what asdm wrote there before.")]
Link = Annotated[
    bool,
    typer.Option("--link", help="Unchanged weights as hard links to the source's files: a change of one changes both."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show libraries' warnings, and tracebacks of bugs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors and the result's path.")]


def examples(*lines: str) -> str:
    """An epilog with one command a line; pairs of '# comment' and command read well."""
    shown = [f"[dim]{line}[/]" if line.startswith("#") else f"  [cyan]{line}[/]" for line in lines]
    return "\n".join(["[bold]Examples[/]", *shown])


def set_verbosity(verbose: bool, quiet: bool = False) -> None:
    if verbose and quiet:
        raise typer.BadParameter("--verbose and --quiet exclude each other")
    progress.quiet(quiet or not is_first())
    log.setLevel(logging.DEBUG if verbose else logging.WARNING)
    if verbose:
        return
    warnings.simplefilter("ignore")
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
