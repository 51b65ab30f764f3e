"""The three ways a command can fail; imports nothing that takes time, so that every room may use it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
LONGEST_KEY = 120
"""Of the way to a value in a message."""


class AsdmError(Exception):
    """Base of every error that a person should read as one message, without a traceback."""

    exit_code = 1


class RunError(AsdmError):
    """The run failed: the machine's fault or ours (disk full, killed worker, missing tool)."""


class ModelError(AsdmError):
    """A model directory cannot be used as asked: wrong files, shapes or formats."""

    exit_code = 2


def reason(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


class Faults(list[str]):
    """What is wrong with what a person gave, so that all of it is told at once."""

    @contextmanager
    def at(self, place: str = "") -> Iterator[None]:
        """Such an error ends the block, not more."""
        try:
            yield
        except AsdmError as error:
            if error.exit_code != ModelError.exit_code:
                raise
            self.append(f"{place}: {error}" if place else str(error))

    def raise_all(self) -> None:
        """ModelError, if there are any."""
        if self:
            raise ModelError("\n".join(dict.fromkeys(self)))


@contextmanager
def blame(name: str, doing: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into one RunError that names the set-up; but for a disk that is full or may not
    be written, which whoever writes there explains."""
    try:
        yield
    except AsdmError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK:
            raise
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without torch
            advice = "use a smaller `batch`, a smaller `size`, or compare fewer at once"
            raise RunError(f"{name}: out of memory while {doing}; {advice}") from None
        raise RunError(f"{name}: {doing} failed ({type(error).__name__}: {reason(error)})") from error


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a recipe. `line` and `column` count from 1; 0 means no place in the file."""

    what: str
    key: str = ""
    line: int = 0
    column: int = 0

    def at(self, file: str) -> str:
        """`file:line:column: key: what` on one line, leaving out the parts that do not exist."""
        place = f"{file}:{self.line}:{self.column}" if self.line else file
        key = self.key if len(self.key) <= LONGEST_KEY else f"{self.key[: LONGEST_KEY - 3]}..."
        return ": ".join(part for part in (place, printable(key), printable(self.what)) if part)


def printable(text: str, but: str = "") -> str:
    """What a file holds must not move the cursor or turn the writing around: such characters are told by number, `but`
    for these."""
    return "".join(
        each if each.isprintable() or each in but else each.encode("unicode_escape").decode() for each in text
    )


class RecipeError(AsdmError):
    """A recipe is wrong; carries every fault found, so that one pass repairs the file."""

    exit_code = 2

    def __init__(self, file: str, faults: list[Fault]):
        assert faults, "a RecipeError needs a fault"
        self.file = file
        self.faults = sorted(faults, key=lambda fault: (fault.line, fault.column))
        super().__init__("\n".join(fault.at(file) for fault in self.faults))
