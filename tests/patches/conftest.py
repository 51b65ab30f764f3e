"""Pipelines that many tests put plans on and take them off again; none may change them otherwise. What they keep."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from torch import Tensor

from asdm_cli.models.schedulers import set_sampler
from asdm_cli.patches.feature_cache.state import FeatureHistory
from tests.patches import pipes

Get = Callable[..., Any]
Alive = Callable[[], int]


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


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Alive:
    """How many of the tensors that memories were given to keep still live."""
    seen: list[weakref.ref[Tensor]] = []
    keep = FeatureHistory.store

    def watched(self: FeatureHistory, value: Tensor) -> None:
        seen.append(weakref.ref(value))
        keep(self, value)

    def count() -> int:
        gc.collect()
        return sum(each() is not None for each in seen)

    monkeypatch.setattr(FeatureHistory, "store", watched)
    return count
