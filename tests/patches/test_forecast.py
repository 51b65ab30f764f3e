"""Forecasts: exact where it promises to be, by hand, and plain reuse wherever it knows no better."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asdm_cli.patches.feature_cache.forecast import Polynomial
from asdm_cli.patches.feature_cache.state import FeatureHistory

NODES = 3
coefficients = st.lists(st.floats(-3, 3, allow_subnormal=False), min_size=3, max_size=3)
distances = st.lists(st.floats(0.5, 4), min_size=4, max_size=6)
"""Between one call and the next, in either direction of the axis."""


def polynomial(factors: list[float], place: float) -> Tensor:
    """In float64, at three scales."""
    scale = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    return scale * sum(factor * place**power for power, factor in enumerate(factors))


def after(memory: FeatureHistory, places: list[float], factors: list[float]) -> FeatureHistory:
    """A memory after key steps at these places."""
    for place in places:
        memory.prepare(place, 0, stores=True)
        memory.store(polynomial(factors, place))
    return memory


@given(coefficients, distances, st.sampled_from([1.0, -1.0]), st.floats(-5, 5), st.integers(0, 2))
def test_polynomials_of_the_order_are_exact(
    factors: list[float], steps: list[float], direction: float, start: float, order: int
) -> None:
    places = [start + direction * sum(steps[:count]) for count in range(len(steps) + 1)]
    memory = after(FeatureHistory(Polynomial(order)), places[:-1], factors[: order + 1])
    memory.prepare(places[-1], 0, stores=False)
    truth = polynomial(factors[: order + 1], places[-1])
    assert torch.allclose(memory.value(), truth, rtol=1e-9, atol=1e-7)
    assert memory.known == tuple(reversed(places[:-1]))[: order + 1]


@given(coefficients, st.integers(0, 2), st.integers(1, 3), distances)
def test_fewer_key_steps_than_the_order_needs_are_a_lower_order(
    factors: list[float], order: int, keys: int, steps: list[float]
) -> None:
    places = [sum(steps[:count]) for count in range(len(steps) + 1)]
    lower = min(order, keys - 1)
    found = after(FeatureHistory(Polynomial(order)), places[:keys], factors)
    expected = after(FeatureHistory(Polynomial(lower)), places[:keys], factors)
    for memory in (found, expected):
        memory.prepare(places[keys], 0, stores=False)
    assert torch.equal(found.value(), expected.value())


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("places", [(0.0, 1.0, 1.0, 3.0), (0.0, 1.0, 3.0, 3.0), (0.0, 0.0, 1.0, 3.0)])
def test_calls_at_one_coordinate_are_one_point(places: tuple[float, ...], order: int) -> None:
    """PNDM and Heun call the UNet twice with a timestep."""
    factors = [1.0, -2.0, 0.5][: order + 1]
    memory = after(FeatureHistory(Polynomial(order)), list(places), factors)
    memory.prepare(4.0, 0, stores=False)
    assert torch.allclose(memory.value(), polynomial(factors, 4.0))


def test_of_two_values_at_one_coordinate_the_later_one_counts() -> None:
    memory = after(FeatureHistory(Polynomial(1)), [0.0, 1.0], [0.0, 1.0])
    memory.prepare(1.0, 0, stores=True)
    memory.store(torch.zeros(NODES, dtype=torch.float64))
    memory.prepare(1.0, 0, stores=False)
    assert torch.equal(memory.value(), torch.zeros(NODES, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_forecasts_keep_the_dtype_and_leave_what_is_kept_alone(dtype: torch.dtype) -> None:
    values = [torch.tensor([1.0, -2.0], dtype=dtype) * count for count in (1, 2, 3)]
    before = [value.clone() for value in values]
    memory = FeatureHistory(Polynomial(2))
    for place, value in enumerate(values):
        memory.prepare(place, 0, stores=True)
        memory.store(value)
    memory.prepare(4, 0, stores=False)
    assert memory.value().dtype == dtype
    assert torch.equal(memory.value(), torch.tensor([5.0, -10.0], dtype=dtype))
    assert all(torch.equal(*pair) for pair in zip(values, before, strict=True))
