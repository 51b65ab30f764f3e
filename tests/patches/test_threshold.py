"""Key steps that are decided while a generation runs, on the error measured at the key step before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from asdm_cli import inherit
from asdm_cli.patches.feature_cache import FeatureCache, state
from tests.patches.conftest import Get
from tests.patches.pipes import draw

orders = pytest.mark.parametrize("order", [0, 1, 2])


def plan(threshold: float, longest: int, order: int = 0, first: int = 0) -> dict[str, Any]:
    schedule = {"mode": "threshold", "threshold": threshold, "longest": longest, "first": first}
    return {"rules": [{"nodes": "deepcache.0", "order": order, "schedule": schedule}]}


def keys(engine: FeatureCache, rule: int = 0) -> list[int]:
    return [call for call, resting in enumerate(engine.stats().reused["unet"]) if rule not in resting]


@orders
def test_nothing_is_close_enough(order: int, get: Get) -> None:
    pipe = get()
    plain = draw(pipe, 6)
    with inherit(pipe, plan(1e-9, 8, order)) as handle:
        assert torch.equal(draw(pipe, 6), plain)
        assert keys(handle.cache) == list(range(6))


@orders
@pytest.mark.parametrize(("longest", "expected"), [(1, [*range(9)]), (2, [0, 1, 3, 5, 7]), (3, [0, 1, 4, 7])])
def test_everything_is_close_enough(longest: int, expected: list[int], order: int, get: Get) -> None:
    """Call 1 is a key step always: before it there is nothing to measure."""
    pipe = get()
    with inherit(pipe, plan(1e9, longest, order)) as handle:
        draw(pipe, 9)
        assert keys(handle.cache) == expected


@pytest.mark.parametrize(("order", "expected"), [(0, [0, 1, 4, 12]), (1, [0, 1, 4, 9, 17]), (2, [0, 1, 4, 9, 16])])
def test_distances_follow_from_the_error_and_the_order(
    order: int, expected: list[int], get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of the threshold: the error may grow threefold, and does so as a power of the distance. By hand.

    With as many key steps as there are, order 2 is order 0 at call 1 and order 1 at call 4.
    """
    monkeypatch.setattr(state, "relative_error", lambda *_: torch.tensor(0.1))
    pipe = get()
    with inherit(pipe, plan(0.3000001, 8, order)) as handle, torch.no_grad(), handle.cache.generation(20):
        for _ in range(20):
            pipe.unet(torch.ones(1, 4, 4, 4), 5, torch.ones(1, 4, 16))
    assert keys(handle.cache) == expected


@orders
def test_the_error_is_read_once_after_each_key_step_and_never_else(
    order: int, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading it waits for the device."""
    measure, read = state.relative_error, []

    class Error:
        def __init__(self, value: float):
            self.value = value

        def __float__(self) -> float:
            read.append(handle.cache.thread.generation.streams[0].state.call)
            return self.value

    monkeypatch.setattr(state, "relative_error", lambda *tensors: Error(float(measure(*tensors))))
    with inherit(get(), plan(0.5, 3, order)) as handle:
        draw(handle.pipe, 12)
    measured = [call for call in keys(handle.cache) if 0 < call < 11]
    assert 2 <= len(measured) < 10, "both kinds of calls"
    assert read == [call + 1 for call in measured]
