"""`asdm`: the app, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import errno
import logging
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from asdm_cli import __version__
from asdm_cli.commands import check, generate, pack, schema, show, verbs
from asdm_cli.commands.options import examples
from asdm_cli.commands.ranks import is_first, is_lost_company
from asdm_cli.errors import AsdmError
from asdm_cli.models.disk import TROUBLE
from asdm_cli.progress import hand_over, say

INTERRUPTED = 130
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENAMETOOLONG)
"""Refusals of the operating system that the person in front of it can do something about."""

app = typer.Typer(
    name="asdm",
    help="Make Stable Diffusion smaller and faster, and measure what that costs.\n\n"
    "A [bold]verb[/] reads one recipe (YAML) and writes one run directory: the recipe as resolved, report.json, "
    "report.html and, where a model comes out, model/: a plain diffusers directory. What one verb writes, "
    "every other verb reads.\n\n"
    "stdout is the path of what was written; everything else goes to stderr. "
    "Exit codes: 0 done, 2 the recipe or the arguments are wrong, 1 the run failed.",
    epilog=examples(
        "# prune the bundled model to BK-SDM Base, then compare the two",
        "asdm prune recipes/prune-pocket-base.yaml",
        "asdm bench recipes/bench-pocket.yaml",
        "# draw with the result",
        'asdm generate runs/prune-pocket-base "a fox" "a red apple"',
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (verbs, generate, pack, check, show, schema):
    module.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        hand_over(f"asdm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (the process's own if None) and return the exit code. Raises nothing."""
    try:
        app(args=arguments, prog_name="asdm")
    except SystemExit as end:
        return _ended(end.code)
    except KeyboardInterrupt:
        return _ended(INTERRUPTED)
    except AsdmError as error:
        return _refused(error)
    except Exception as error:
        return _failed(error)
    return 0


def _ended(code: str | int | None) -> int:
    if code == INTERRUPTED:
        say("interrupted; the same command again goes on from what was kept, or starts anew")
    return code if isinstance(code, int) else 0


def _refused(error: AsdmError) -> int:
    # What the user got wrong every process finds alike; what fails in one process only that one can tell.
    if is_first() or error.exit_code != 2:
        say(str(error))
    return error.exit_code


def _failed(error: Exception) -> int:
    say(_machine_trouble(error) or f"this is a bug in asdm ({type(error).__name__}: {error}); -v shows where")
    if logging.getLogger("asdm").isEnabledFor(logging.DEBUG):
        say("".join(traceback.format_exception(error)))
    return 1


def _machine_trouble(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in MACHINE:
        way_out = TROUBLE.get(error.errno)
        what = f"{way_out} ({error.strerror})" if way_out else error.strerror
        return f"{error.filename or 'the machine'}: {what}"
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if out_of_memory or "DefaultCPUAllocator" in str(error):  # torch has no kind of its own for the CPU's
        return "out of memory; try a smaller batch, a smaller size, or --dtype float16 on a GPU"
    if is_lost_company(error):
        return (
            "another process of this run ended or cannot be reached, and its own messages say why; "
            "then start the same command again"
        )
    return ""
