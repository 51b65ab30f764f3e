"""`asdm check FILE...`: are these recipes right?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm_cli.commands.options import Verbose, examples, set_verbosity
from asdm_cli.errors import RecipeError
from asdm_cli.progress import hand_over, say
from asdm_cli.recipe.load import load

Files = Annotated[list[Path], typer.Argument(metavar="FILE", help="Recipes of any verb.", show_default=False)]


def register(app: typer.Typer) -> None:
    app.command(epilog=examples("asdm check recipes/*.yaml"))(check)


def check(files: Files, verbose: Verbose = False) -> None:
    """Check recipes without running them.

    Every fault is printed with its file, line and column. Models are not
    looked at; [bold]asdm VERB FILE --dry-run[/] does that too.
    """
    set_verbosity(verbose)
    wrong = [file for file in files if not _is_right(file)]
    if wrong:
        raise typer.Exit(RecipeError.exit_code)


def _is_right(file: Path) -> bool:
    """Print the verdict on one file. The one error caught outside of main(): the next file is to be checked too."""
    try:
        recipe = load(file)
    except RecipeError as error:
        say(str(error))
        return False
    hand_over(f"{file}: OK, a recipe for asdm {recipe.verb}")
    return True
