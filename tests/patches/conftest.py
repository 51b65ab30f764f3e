"""Pipelines that many tests put plans on and take them off again; none may change them otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from asdm_cli.models.schedulers import set_sampler
from tests.patches import pipes

Get = Callable[..., Any]


@pytest.fixture(scope="session")
def _made() -> Callable[[str], Any]:
    return cache(pipes.pipe)


@pytest.fixture
def get(_made: Callable[[str], Any]) -> Iterator[Get]:
    """(kind, sampler) -> the one pipeline of that kind, with that sampler; a test that leaves a plan on it fails."""
    given = []

    def give(kind: str = "text", sampler: str = "ddim") -> Any:
        given.append(_made(kind))
        set_sampler(given[-1], sampler)
        return given[-1]

    yield give
    assert not [each for pipe in given for each in pipe.unet.modules() if hasattr(each, "_diffusers_hook")]
