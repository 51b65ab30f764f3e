"""Intervals with answers known from theory."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from asdm_cli.metrics.distances import design_effect, interval, mean, resamples, wilson


def test_resamples_count_how_often_each_is_drawn() -> None:
    weights = resamples(50, 200, seed=3)
    assert weights.shape == (201, 50)
    assert (weights[0] == 1).all()
    assert (weights.sum(1) == 50).all()
    assert (weights == weights.round()).all()
    # one thing is absent from a resample with probability (1 - 1/n)^n
    assert float((weights[1:] == 0).double().mean()) == pytest.approx((1 - 1 / 50) ** 50, abs=0.01)
    assert torch.equal(weights, resamples(50, 200, seed=3))
    assert not torch.equal(weights, resamples(50, 200, seed=4))


def test_interval_of_a_mean_is_the_normal_one() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 5 + 2
    found = interval(mean(values, resamples(400, 4000, seed=0)), 0.95)
    error = float(values.std()) / 400**0.5
    assert found.value == pytest.approx(float(values.mean()))
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.1 * error)
    assert found.kind == "95 % bootstrap"


def test_interval_covers_as_often_as_it_says() -> None:
    random = torch.Generator().manual_seed(1)
    weights = resamples(60, 400, seed=0)
    found = [interval(mean(torch.rand(60, generator=random), weights), 0.9) for _ in range(400)]
    covered = sum(each.low <= 0.5 <= each.high for each in found) / 400
    assert 0.85 <= covered <= 0.94


def test_centred_keeps_the_spread_and_moves_it_onto_the_figure() -> None:
    figures = torch.cat([torch.tensor([10.0]), torch.linspace(20, 30, 101)])
    plain, centred = interval(figures, 0.8), interval(figures, 0.8, centred=True)
    assert (plain.low, plain.high) == pytest.approx((21, 29))
    assert (centred.low, centred.high) == pytest.approx((6, 14))
    assert centred.kind == "80 % bootstrap, centred"


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (3, 7), (7, 7), (480, 512)])
def test_wilson_is_scipy_s(hits: int, n: int) -> None:
    found = wilson(hits, n, 0.9)
    theirs = binomtest(hits, n).proportion_ci(0.9, method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((hits / n, theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize("times", [2, 4])
def test_more_pictures_of_a_prompt_that_are_alike_tell_no_more(times: int) -> None:
    right = torch.tensor([True, False, True, True, False, True, False, True])
    alone, again = wilson(5, 8, 0.9), right.repeat(times)
    assert design_effect(right, 1) == 1
    found = wilson(int(again.sum()), len(again), 0.9, design_effect(again, times))
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=0.02)
    unlike = torch.cat([right if half % 2 else ~right for half in range(times)])
    assert design_effect(unlike, times) == 1
    assert design_effect(torch.ones(8 * times, dtype=torch.bool), times) == times


def test_resamples_that_are_all_no_numbers_leave_the_figure() -> None:
    nan = float("nan")
    assert interval(torch.tensor([0.5, nan, nan]), 0.95) == (0.5, None, None, "")
