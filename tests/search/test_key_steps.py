"""Key steps and fits from inner products, held against every choice there is and against least squares by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asdm_cli.patches.feature_cache.forecast import Polynomial
from asdm_cli.search.key_steps import KeySteps, Moments, fitted, key_steps, summed

GROUPS = ("unconditional", "conditional")
BOTH, ALONE = ((GROUPS[0], -2.0), (GROUPS[1], 3.0)), ((GROUPS[1], 1.0),)
DIMENSIONS = 40


def vectors(calls: int, seed: int) -> NDArray[np.float64]:
    """Two halves of every call, and its input, that change from call to call as a walk does."""
    return np.cumsum(np.random.default_rng(seed).normal(size=(3, calls, DIMENSIONS)), 1)


def moments(held: NDArray[np.float64], guided: range, inputs: bool = True, gains: Sequence[float] = ()) -> Moments:
    calls = held.shape[1]
    halves = held.copy()
    halves[0, [call for call in range(calls) if call not in guided]] = 0
    every = halves.reshape(-1, DIMENSIONS) if inputs else halves[:2].reshape(-1, DIMENSIONS)
    mixes = tuple(BOTH if call in guided else ALONE for call in range(calls))
    return Moments(every @ every.T, GROUPS, mixes, tuple(gains or np.linspace(1, 3, calls)), inputs)


def line(call: int, keys: Sequence[int]) -> Sequence[float]:
    weights = Polynomial(1).weights([float(key) for key in keys], call, call).values or (1.0,)
    return [*weights, *[0.0] * (len(keys) - len(weights))]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(3, 8),
    st.integers(0, 10**6),
    st.sampled_from([None, line]),
    st.booleans(),
    st.integers(0, 3),
    st.integers(1, 3),
)
def test_no_other_key_steps_are_better(
    calls: int, seed: int, combine: None, inputs: bool, start: int, first: int
) -> None:
    known = moments(vectors(calls, seed), range(start, calls), inputs)
    table = KeySteps(known, combine, first)
    found = {count: keys for count in range(1, calls + 1) if (keys := table.best(count))}
    assert not found or min(found) >= first
    assert table.best(calls + 1) is None
    for count in range(first, calls + 1):
        every = [(*range(first), *rest) for rest in combinations(range(first, calls), count - first)]
        least = min(summed(known, keys, combine) for keys in every)
        assert (count in found) == np.isfinite(least)
        if count in found:
            assert len(found[count]) == count
            assert summed(known, found[count], combine) == pytest.approx(least, rel=1e-6, abs=1e-9)


def test_what_is_summed_is_the_squared_error_of_the_forecasts_by_hand() -> None:
    held, keys = vectors(6, 3), (0, 2, 4)
    known = moments(held, range(6))
    values = -2 * held[0] + 3 * held[1]
    total = 0.0
    for call, before in {1: (0,), 3: (2, 0), 5: (4, 2, 0)}.items():
        basis = np.stack([held[2, call], *values[list(before)]])
        weights, *_ = np.linalg.lstsq(basis.T, values[call], rcond=None)
        total += (np.linspace(1, 3, 6)[call] ** 2) * ((weights @ basis - values[call]) ** 2).sum()
        assert fitted(known, keys)[call] == pytest.approx(weights, rel=1e-4, abs=1e-4)
    assert summed(known, keys) == pytest.approx(total, rel=1e-5)
    assert [bool(each) for each in fitted(known, keys)] == [False, True, False, True, False, True]


def test_what_is_an_exact_combination_is_found() -> None:
    held = vectors(5, 1)
    held[1, 3] = 0.5 * held[2, 3] + 2 * held[1, 2] - held[1, 0]
    known = moments(held, range(0))
    assert fitted(known, (0, 2))[3] == pytest.approx([0.5, 2.0, -1.0], abs=1e-5)


def test_a_call_with_rows_that_the_newest_key_step_lacks_cannot_be_forecast() -> None:
    known = moments(vectors(6, 2), range(3, 6))
    assert summed(known, (0, 4)) == float("inf")
    assert np.isfinite(summed(known, (0, 3)))
    assert KeySteps(known).best(1) is None
    assert len(fitted(known, (0, 3))[5]) == 2, "the input and the one value with both halves"
    assert len(fitted(known, (0, 3))[2]) == 2


def test_errors_that_are_carried_are_made_up_for() -> None:
    """The sum of all errors in the end, each times its gain, is smaller where key steps tell what was missed."""
    held, keys = vectors(12, 5), (0, 3, 6, 9, 11)
    known = moments(held, range(12))
    values, gains = -2 * held[0] + 3 * held[1], np.array(known.gains)

    def end(carried: float, corrected: bool) -> float:
        total = np.zeros(DIMENSIONS)
        for call, weights in enumerate(fitted(known, keys, carried, corrected)):
            before = sorted((key for key in keys if key < call + (call in keys)), reverse=True)
            if weights:
                handed_on = weights[0] * held[2, call] + np.array(weights[1:]) @ values[before[: len(weights) - 1]]
                total += gains[call] * (handed_on - values[call])
        return float(np.linalg.norm(total))

    assert min(end(0.0, False), end(1.0, False), end(0.5, True)) > end(1.0, True)
    assert end(0.0, False) > end(0.5, True)
    assert all(not each for call, each in enumerate(fitted(known, keys, 1.0)) if call in keys)
    assert fitted(known, keys, 1.0, corrected=True)[0] == []


def test_a_call_that_the_sampler_leaves_out_is_not_carried() -> None:
    known = moments(vectors(4, 7), range(4), gains=[1.0, 0.0, 2.0, 1.0])
    assert np.isfinite([weight for each in fitted(known, (0,), 1.0, corrected=True) for weight in each]).all()


def test_long_runs_are_chosen_with_a_shorter_look_back() -> None:
    known = moments(vectors(70, 0), range(70))
    found = KeySteps(known).best(4)
    assert found
    evenly = (0, 18, 35, 53)
    assert len(found) == 4
    assert summed(known, found) <= summed(known, evenly)


def test_what_was_worked_out_is_asked_again_by_others_who_want_more_or_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    made, plain = [], Moments.errors
    monkeypatch.setattr(Moments, "errors", lambda self, keys, combine: made.append(keys) or plain(self, keys, combine))
    one, same, other = (moments(vectors(8, seed), range(8)) for seed in (11, 11, 12))
    found = key_steps(one, line).best(3)
    once = len(made)
    assert once
    assert key_steps(same, line).best(5)
    assert key_steps(same, line).best(3) == found
    assert len(made) == once
    assert key_steps(other, line).best(3)
    assert key_steps(one, None).best(3)
    assert len(made) == 3 * once
