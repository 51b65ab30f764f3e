"""Routers look at what they are told to and weigh as they are told; clocks tell them the time of their own call."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from asdm_cli.experts.router import LOOKS, ROUTINGS, SUM_TO_ONE, Clock, Router

CHANNELS, WIDTH = 3, 6


def told(rows: int = 4, timestep: Any = 0) -> Clock:
    clock = Clock()
    clock.announce(timestep)
    clock.hear(nn.Identity(), (), torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(5)))
    return clock


def router(look: str, weights: str = "softmax", experts: int = 3) -> Router:
    torch.manual_seed(0)
    channels, width = (CHANNELS if look != "time" else 0), (WIDTH if look != "features" else 0)
    made = Router(channels, width, experts, weights)
    torch.nn.init.normal_(made.bias)
    return made


def images(rows: int = 4) -> Tensor:
    return torch.randn(rows, CHANNELS, 5, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("weights", ROUTINGS)
@given(experts=st.integers(1, 9), seed=st.integers(0, 99), scale=st.floats(0, 500))
@settings(max_examples=30, deadline=None)
def test_weights_are_shares(weights: str, experts: int, seed: int, scale: float) -> None:
    logits = scale * torch.randn(4, experts, generator=torch.Generator().manual_seed(seed))
    found = ROUTINGS[weights](logits)
    assert found.shape == (4, experts)
    assert bool(((found >= 0) & (found <= 1)).all())
    if weights in SUM_TO_ONE:
        torch.testing.assert_close(found.sum(1), torch.ones(4))
    ordered = found.gather(1, logits.argsort(1))
    assert bool((ordered.diff(dim=1) >= -1e-6).all()), "the larger logit weighs more"


def test_sigmoid_is_condconvs() -> None:
    """Every expert by itself: the sum is anything."""
    logits = torch.tensor([[0.0, 2.0, -1.0]])
    assert torch.equal(ROUTINGS["sigmoid"](logits), 1 / (1 + torch.exp(-logits)))
    assert set(SUM_TO_ONE) == set(ROUTINGS) - {"sigmoid"}


@pytest.mark.parametrize("weights", ROUTINGS)
@pytest.mark.parametrize("look", LOOKS)
def test_is_a_linear_layer_of_what_it_looks_at(look: str, weights: str) -> None:
    made, x, clock = router(look, weights), images(), told()
    logits = made.bias.expand(4, -1)
    if made.features is not None:
        logits = logits + x.mean((2, 3)) @ made.features.weight.T
    if made.time is not None:
        logits = logits + nn.functional.silu(clock.embedding) @ made.time.weight.T
    torch.testing.assert_close(made(x, clock), ROUTINGS[weights](logits))
    named = {name for name, _ in made.named_parameters()}
    wanted = {"features": {"features.weight"}, "time": {"time.weight"}, "both": {"features.weight", "time.weight"}}
    assert named == {*wanted[look], "bias"}


@pytest.mark.parametrize("look", LOOKS)
def test_looks_at_nothing_else(look: str) -> None:
    made, x, clock = router(look), images(), told()
    before = made(x, clock)
    by_x = not torch.equal(made(x + 1, clock), before)
    later = told()
    later.hear(nn.Identity(), (), clock.embedding + 1)
    by_time = not torch.equal(made(x, later), before)
    assert (by_x, by_time) == {"features": (True, False), "time": (False, True), "both": (True, True)}[look]


def test_rows_may_share_one_embedding() -> None:
    """A UNet that is told one number makes one embedding of it for all rows or for each."""
    made, x = router("time"), images()
    assert made(x, told(1)).shape == (4, 3)
    assert torch.equal(made(x, told(1)), made(x, told(1))[:1].expand(4, -1))


@pytest.mark.parametrize("look", LOOKS)
def test_weights_are_float32_whatever_the_layer_is(look: str) -> None:
    made, x, clock = router(look), images(), told()
    exact = made(x, clock)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(x, clock), exact)
    half = copy.deepcopy(made).to(torch.bfloat16)
    rounded = router(look)
    rounded.load_state_dict({key: value.float() for key, value in half.state_dict().items()})
    assert half(x, clock).dtype == torch.float32
    assert torch.equal(half(x, clock), rounded(x, clock)), "only the weights are coarse, not the sums"


def test_means_of_large_maps_are_not_coarse() -> None:
    x = torch.full((1, CHANNELS, 64, 64), 100.0, dtype=torch.float16)
    made = router("features")
    assert torch.equal(made(x, told(1)), made(x.float(), told(1))), "a sum of float16 would be infinite"


@pytest.mark.parametrize(
    ("timestep", "uniform", "moment"),
    [
        (7, True, 7.0),
        (7.5, True, 7.5),
        (torch.tensor(7), True, 7.0),
        (torch.tensor([7]), True, 7.0),
        (torch.tensor([7, 8]), False, None),
        (torch.tensor([7, 7]), False, None),
    ],
)
def test_one_number_is_the_time_of_all_rows(timestep: Any, uniform: bool, moment: float | None) -> None:
    clock = Clock()
    clock.announce(timestep)
    assert (clock.uniform, clock.moment) == (uniform, moment)
    clock.announce(timestep, alone=False)
    assert (clock.uniform, clock.moment) == (uniform, None), "the embedding depends on more"


def test_the_moment_is_not_known_where_operations_are_counted() -> None:
    """What was kept would not be counted."""
    clock = Clock()
    with FlopCounterMode(display=False):
        clock.announce(7)
    assert (clock.uniform, clock.moment) == (True, None)


def test_a_device_that_would_be_waited_for_is_not_read() -> None:
    clock = Clock()
    clock.announce(torch.tensor(7, device="meta"))
    assert (clock.uniform, clock.moment) == (True, None)


def test_a_clock_that_was_told_nothing_says_so() -> None:
    clock = Clock()
    assert (clock.uniform, clock.moment) == (False, None)
    with pytest.raises(AssertionError, match="stand in a UNet"):
        _ = clock.embedding


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda clock: pickle.loads(pickle.dumps(clock))])
def test_a_copied_clock_was_told_nothing(copied: Callable[[Clock], Clock]) -> None:
    again = copied(told())
    assert (again.uniform, again.moment) == (False, None)
    with pytest.raises(AssertionError, match="stand in a UNet"):
        _ = again.embedding


def test_a_drawing_thread_hears_its_own_call() -> None:
    """And nothing of another thread's training."""
    clock, mine, other = Clock(), torch.randn(2, WIDTH), torch.randn(2, WIDTH)
    clock.announce(torch.tensor([1, 2]))
    clock.hear(nn.Identity(), (), mine)

    @torch.no_grad()
    def drawing() -> tuple[bool, bool]:
        clock.announce(30)
        clock.hear(nn.Identity(), (), other)
        return clock.embedding is other, clock.uniform

    with ThreadPoolExecutor(1) as worker:
        assert worker.submit(drawing).result() == (True, True)
    assert clock.embedding is mine
    assert not clock.uniform


@pytest.mark.parametrize("timestep", [30, torch.tensor([1, 2])])
def test_a_thread_that_computes_again_hears_the_call_that_learns(timestep: Any) -> None:
    """The backward pass of a GPU has a thread of its own; drawing in between does not matter."""
    clock, mine = Clock(), torch.randn(2, WIDTH)
    clock.announce(timestep)
    clock.hear(nn.Identity(), (), mine)  # of a time embedding that need not learn itself
    uniform = clock.uniform
    with torch.no_grad():
        clock.announce(torch.tensor([5, 6]) if uniform else 5)
        clock.hear(nn.Identity(), (), torch.randn(2, WIDTH))

    def again() -> tuple[bool, bool]:
        return clock.embedding is mine, clock.uniform == uniform

    assert again() == (True, True)
    with ThreadPoolExecutor(1) as worker:
        assert worker.submit(again).result() == (True, True)
