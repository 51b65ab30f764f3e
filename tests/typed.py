"""Commands run as a user types them, in this process, with what they said."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from asdm_cli.cli import main


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """What was said, without line breaks that only the width of a terminal makes."""
        return " ".join(self.err.split())


def asdm(*arguments: object) -> Said:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main([str(each) for each in arguments])
    return Said(code, out.getvalue(), err.getvalue())
