"""Trouble with a disk is told with the way out, whoever runs into it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.disk import TROUBLE, explained


@pytest.mark.parametrize("number", TROUBLE)
def test_every_trouble_names_a_place_and_a_way_out(number: int) -> None:
    with pytest.raises(RunError, match="; ") as caught, explained(Path("runs/x")):
        raise OSError(number, "what the system says")
    assert str(caught.value).startswith("runs/x: ")
    with pytest.raises(RunError, match=r"^runs/x/part: "), explained(Path("runs/x")):
        raise OSError(number, "what the system says", "runs/x/part")


def test_trouble_that_a_library_tells_in_words_only() -> None:
    """As safetensors does, which is written in Rust."""
    with pytest.raises(RunError, match="runs/x: the disk is full; make room"), explained(Path("runs/x")):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "error", [ModelError("m: no"), ValueError("(os error 0)"), OSError(errno.EBADF, "x"), KeyError()]
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained(Path("x")):
        raise error
    assert caught.value is error
