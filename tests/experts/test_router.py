"""Routers look at what they are told to and weigh as they are told; a context tells them the time of their own call."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from asdm_cli.experts.layer import LOOKS, ROUTINGS, SUM_TO_ONE, Router, TimestepContext

CHANNELS, WIDTH = 3, 6


def told(rows: int = 4, timestep: Any = 0) -> TimestepContext:
    context = TimestepContext()
    context.announce(timestep)
    context.hear(nn.Identity(), (), torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(5)))
    return context


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


@pytest.mark.parametrize("weights", ROUTINGS)
@pytest.mark.parametrize("look", LOOKS)
def test_is_a_linear_layer_of_what_it_looks_at(look: str, weights: str) -> None:
    made, x, context = router(look, weights), images(), told()
    logits = made.bias.expand(4, -1)
    if made.features is not None:
        logits = logits + x.mean((2, 3)) @ made.features.weight.T
    if made.time is not None:
        logits = logits + nn.functional.silu(context.embedding) @ made.time.weight.T
    torch.testing.assert_close(made(x, context), ROUTINGS[weights](logits))
    named = {name for name, _ in made.named_parameters()}
    wanted = {"features": {"features.weight"}, "time": {"time.weight"}, "both": {"features.weight", "time.weight"}}
    assert named == {*wanted[look], "bias"}


@pytest.mark.parametrize("look", LOOKS)
def test_weights_are_float32_whatever_the_layer_is(look: str) -> None:
    made, x, context = router(look), images(), told()
    exact = made(x, context)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(x, context), exact)
    half = copy.deepcopy(made).to(torch.bfloat16)
    rounded = router(look)
    rounded.load_state_dict({key: value.float() for key, value in half.state_dict().items()})
    assert half(x, context).dtype == torch.float32
    assert torch.equal(half(x, context), rounded(x, context)), "only the weights are coarse, not the sums"


@pytest.mark.parametrize("timestep", [30, torch.tensor([1, 2])])
def test_a_thread_that_computes_again_hears_the_call_that_learns(timestep: Any) -> None:
    """The backward pass of a GPU has a thread of its own; drawing in between does not matter."""
    context, mine = TimestepContext(), torch.randn(2, WIDTH)
    context.announce(timestep)
    context.hear(nn.Identity(), (), mine)  # of a time embedding that need not learn itself
    uniform = context.uniform
    with torch.no_grad():
        context.announce(torch.tensor([5, 6]) if uniform else 5)
        context.hear(nn.Identity(), (), torch.randn(2, WIDTH))

    def again() -> tuple[bool, bool]:
        return context.embedding is mine, context.uniform == uniform

    assert again() == (True, True)
    with ThreadPoolExecutor(1) as worker:
        assert worker.submit(again).result() == (True, True)
