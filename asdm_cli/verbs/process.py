"""A stage in a process of its own: what it allocates goes when it ends, and a launcher may start several of it."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from asdm_cli.console import BRIEF, console
from asdm_cli.errors import ModelError, RunError

TOGETHER = {"distill", "eval", "inherit", "switch"}
"""Verbs whose work several processes share; a launcher starts no others."""
MEASURE = {"bench", "eval"}
"""Verbs that write no model."""
INTERRUPTED = 130
log = logging.getLogger("asdm")


def checked(launch: str) -> list[str]:
    """A launcher's words; ModelError if they cannot be told apart, or if there is no such program."""
    try:
        words = shlex.split(launch)
    except ValueError as error:
        raise ModelError(f"--launch: {error}; write it as you would type it, quotes closed") from None
    if words and shutil.which(words[0]) is None:
        raise ModelError(f"--launch: there is no program {words[0]!r}; write it as you would type it, with its options")
    return words


def command(verb: str, recipe: Path, launch: Sequence[str], pipes: bool, link: bool = False) -> list[str]:
    """The command line of a stage."""
    start = launch if launch and verb in TOGETHER else [sys.executable]
    allowed = ["--allow-pipes"] if pipes and verb == "distill" else []
    linked = ["--link"] if link and verb not in MEASURE else []
    quiet = ["--quiet"] if console.quiet else []
    verbose = ["--verbose"] if log.isEnabledFor(logging.DEBUG) else []
    return [*start, "-m", "asdm_cli", verb, str(recipe), *allowed, *linked, *quiet, *verbose]


def run_stage(name: str, words: Sequence[str]) -> None:
    """Run it to its end. Its messages are its own; what follows from how it ended is raised here."""
    with (
        subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env={**os.environ, BRIEF: "1"}
        ) as process,
        _passed_on(process),
    ):
        code = process.wait()
    if code in (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    if code == ModelError.exit_code:
        raise ModelError(f"stage '{name}': see above; what is done is kept, and the same command goes on from there")
    if code:
        raise RunError(f"stage '{name}' failed ({code}); what is done is kept, and the same command goes on from there")


def end_with_starter() -> None:
    """In a stage: be interrupted when the run that started it is gone, however it went.

    Its stdin, which launchers hand on, is a pipe from that run, and the kernel closes it.
    """
    if BRIEF in os.environ:
        threading.Thread(target=_interrupt_at_end_of_stdin, daemon=True).start()


def _interrupt_at_end_of_stdin() -> None:
    with suppress(OSError):
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def _passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """While it runs, the stage decides what an interruption means. A terminal tells both of us, `kill` only one."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        process.terminate()

    before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
