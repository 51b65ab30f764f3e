"""Who serves which call: the boundary rule at its edges, and what holds for all rules."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asdm_cli.patches.base import Trajectory
from asdm_cli.patches.unet_schedule import assign, rules_of
from asdm_cli.recipe.patches import NULLS, Segment, Switching
from tests.patches.parts import rules


def served(by: str, *parts: str, calls: int = 25) -> str:
    """Of counted coordinates; names are one letter each, null models their first."""
    return "".join(name[0] for name in assign(rules(by, *parts), Trajectory(calls).places(by)))


PLACES: dict[str, list[float]] = {
    "timestep": [999.0, 750.5, 500.0, 500.0, 250.0, 0.0],
    "log-snr": [-8.0, -2.5, 0.0, 3.0, 4.0],
}
BOUNDARIES: dict[str, dict[float, int]] = {
    "fraction": {0: 0, 0.2: 5, 0.20000001: 6, 0.1999999: 5, 0.28: 7, 0.96: 24, 0.97: 25, 1: 25},
    "step": {0: 0, 1: 1, 2: 2, 2.5: 3, 24: 24, 25: 25, 99: 25},
    "timestep": {1000: 0, 999: 0, 998.99: 1, 750.5: 1, 500.001: 2, 500: 2, 499.999: 4, 1: 5, 0: 5},
    "log-snr": {-9: 0, -8: 0, -7.999: 1, 0: 2, 0.001: 3, 4: 4, 9: 5},
}
"""Until -> how many calls come before: of 25 counted ones, or of those at the places above."""


@pytest.mark.parametrize(("by", "until"), [(by, until) for by, found in BOUNDARIES.items() for until in found])
def test_a_call_at_the_boundary_is_the_next_part_s(by: str, until: float) -> None:
    places = PLACES.get(by) or Trajectory(25).places(by)
    first = BOUNDARIES[by][until]
    assert assign(rules(by, f"a {until}", "b"), places) == ("a",) * first + ("b",) * (len(places) - first)


def test_parts_that_end_before_they_begin_serve_nothing() -> None:
    assert served("step", "a 2", "b 2", "c 5", "d 5", "e", calls=7) == "aacccee"
    assert served("step", "a 0", "b 0", "c", calls=3) == "ccc"
    assert served("step", "a", calls=3) == "aaa"
    assert assign(rules("step", "a"), []) == ()


def test_what_is_reached_stays_reached() -> None:
    assert "".join(assign(rules("timestep", "a 500", "b"), [900, 400, 600, 300])) == "abbb"


@pytest.mark.parametrize(
    ("parts", "times", "expected"),
    [
        (("a 800", "reuse 500", "b"), [900, 700, 600, 400], ["a", "reuse", "reuse", "b"]),
        (("a 800", "reuse 500", "b"), [700, 600, 400], ["b", "reuse", "b"]),
        (("a 800", "reuse 600", "extrapolate 500", "b 100", "c"), [700, 550, 50], ["c", "extrapolate", "c"]),
        (("a 800", "reuse 500", "b 100", "c"), [700, 600], ["b", "reuse"]),
        (("a 900", "b 800", "extrapolate"), [700, 600], ["b", "extrapolate"]),
        (("a 900", "reuse 800", "extrapolate"), [700, 600], ["a", "extrapolate"]),
    ],
)
def test_where_nothing_was_predicted_a_unet_serves(parts: tuple[str, ...], times: list[float], expected: list) -> None:
    assert list(assign(rules("timestep", *parts), times)) == expected


NAMES = st.sampled_from(["a", "b", "c", *NULLS])


@st.composite
def switchings(draw: st.DrawFn) -> Switching:
    names = [draw(st.sampled_from("abc")), *draw(st.lists(NAMES, max_size=4))]
    ends = sorted(draw(st.lists(st.integers(0, 1000), min_size=len(names) - 1, max_size=len(names) - 1)), reverse=True)
    return Switching(
        by="timestep",
        parts=[Segment(unet=name, until=end) for name, end in zip(names, [*map(float, ends), None], strict=True)],
    )


TIMESTEPS = st.lists(st.integers(0, 1000), min_size=1, max_size=40).map(lambda times: sorted(times, reverse=True))


@given(switchings(), TIMESTEPS)
def test_every_call_is_served_once_and_parts_come_in_order(switching: Switching, times: list[int]) -> None:
    found = assign(switching, times)
    assert len(found) == len(times)
    assert found[0] not in NULLS
    order = [part.unet for part in switching.parts]
    at = 0
    for name in found[1:]:
        while order[at] != name:
            at += 1
            assert at < len(order), "a part came after a later one"


@given(switchings(), TIMESTEPS, st.data())
def test_who_serves_a_timestep_does_not_depend_on_the_other_calls(
    switching: Switching, times: list[int], data: st.DataObject
) -> None:
    """More steps, fewer steps, a later beginning: boundaries stay where they are."""
    whole = dict(zip(times, assign(switching, times), strict=True))
    some = [time for time in times if data.draw(st.booleans())]
    for time, name in list(zip(some, assign(switching, some), strict=True))[1:]:
        if time != times[0]:
            assert whole[time] == name


@given(st.integers(1, 60), st.fractions(0, 1, max_denominator=20))
def test_a_fraction_is_the_step_at_that_share(calls: int, share: Fraction) -> None:
    steps = served("step", f"a {-(-share * calls // 1)}", "b", calls=calls)
    places = [Fraction(call, calls) for call in range(calls)]
    assert steps == "".join("a" if place < share else "b" for place in places)


SERVED = st.lists(st.sampled_from(["a", "b", *NULLS]), min_size=1, max_size=12).filter(
    lambda names: names[0] not in NULLS
)


def back(switching: Switching, times: list[float]) -> tuple[str, ...]:
    return assign(switching, times if switching.by == "timestep" else range(len(times)))


@given(SERVED, st.data())
def test_rules_of_a_schedule_give_it_back(served: list[str], data: st.DataObject) -> None:
    """Whatever the timesteps: falling, repeated as PNDM's, or rising at times as Heun's may."""
    calls = len(served)
    whole = st.integers(0, 999)
    fractions = st.floats(0, 999, allow_nan=False, allow_subnormal=False)
    lists = st.lists(whole | fractions, min_size=calls, max_size=calls)
    times = data.draw(lists | lists.map(lambda each: sorted(each, reverse=True)))
    switching = rules_of(served, times)
    assert back(switching, times) == tuple(served)
    neighbours = pairwise(switching.parts)
    assert all(one.unet != other.unet for one, other in neighbours), "no part is written twice"


def test_boundaries_lie_midway_so_that_they_hold_for_other_steps() -> None:
    switching = rules_of("aab", [980, 961, 941])
    assert switching == rules("timestep", "a 951", "b")
    assert assign(switching, [999, 960, 952, 950, 900]) == ("a", "a", "a", "b", "b")


@pytest.mark.parametrize(
    ("served", "times", "by"),
    [
        ("aabb", [999, 750, 750, 500], "step"),  # the boundary parts two calls of one timestep
        ("aaab", [999, 750, 750, 500], "timestep"),  # none does
        ("aabb", [999, 500, 750, 250], "step"),  # what falls below a boundary would rise above it again
        ("aaaa", [999, 750, 500, 250], "timestep"),
    ],
)
def test_boundaries_that_timesteps_cannot_tell_are_told_in_steps(served: str, times: list[float], by: str) -> None:
    switching = rules_of(served, times)
    assert switching.by == by
    assert back(switching, times) == tuple(served)
