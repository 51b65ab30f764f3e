"""A twin: the DeepCache package does the same, wherever its own counting of steps does not go astray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

import pytest
from torch import Tensor

from asdm_cli import inherit
from asdm_cli.unet.surgery import remove
from tests import tiny
from tests.patches import pipes
from tests.patches.conftest import Get
from tests.patches.pipes import draw

peer = pytest.importorskip("DeepCache")

BRANCHES, INTERVALS, SAMPLERS, STEPS = (0, 1, 2, 3, 5, 8), (2, 3, 5), ("ddim", "pndm", "heun"), 5
IN_TURN = [
    (branch, interval, SAMPLERS[(row + column) % 3])
    for row, branch in enumerate(BRANCHES)
    for column, interval in enumerate(INTERVALS)
]
"""Every branch with every interval, and each of them with every sampler."""
BOTTOM = "mid_block.resnets.0"
"""Below every branch: runs at key steps only."""


@contextmanager
def deepcache(pipe: Any, interval: int, branch: int) -> Iterator[None]:
    helper = peer.DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()  # leaves `forward` behind as an attribute of modules that had none
        for module in pipe.unet.modules():
            module.__dict__.pop("forward", None)


def by_value(pipe: Any, interval: int) -> list[int]:
    """The calls that DeepCache computes in full: it looks for the first step with the call's timestep."""
    times = pipe.scheduler.timesteps.tolist()
    return [call for call, time in enumerate(times) if times.index(time) % interval == 0]


def key_calls(pipe: Any) -> list[int]:
    """Draw; the calls that were computed in full, by what really ran."""
    calls, keys = -1, []

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hooks = [
        pipe.unet.conv_in.register_forward_pre_hook(count),
        pipe.unet.get_submodule(BOTTOM).conv1.register_forward_pre_hook(lambda *_: keys.append(calls)),
    ]
    try:
        draw(pipe, STEPS)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls + 1 == len(pipe.scheduler.timesteps)
    return keys


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    """Sampler -> what is drawn without any plan."""
    return {}


@pytest.mark.parametrize(("branch", "interval", "sampler"), IN_TURN)
def test_latents_are_deepcaches(branch: int, interval: int, sampler: str, get: Get, plain: dict[str, Tensor]) -> None:
    pipe = get("text", sampler)
    apart = plain[sampler] if sampler in plain else plain.setdefault(sampler, draw(pipe, STEPS))
    with deepcache(pipe, interval, branch):
        theirs = draw(pipe, STEPS)
    plan: dict[str, Any] = {"interval": interval}
    if sampler != "ddim":  # there timesteps repeat
        plan = {"schedule": {"mode": "explicit", "steps": by_value(pipe, interval)}}
    with inherit(pipe, {"preset": "deepcache", "branch": branch, **plan}):
        ours = draw(pipe, STEPS)
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours - apart).abs().max() > 1e-3, "the plan does something"


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("interval", INTERVALS)
def test_only_ours_computes_as_many_calls_as_the_interval_says_and_evenly(
    interval: int, sampler: str, get: Get
) -> None:
    pipe = get("text", sampler)
    with deepcache(pipe, interval, 0):
        theirs = key_calls(pipe)
    with inherit(pipe, {"preset": "deepcache", "interval": interval}):
        ours = key_calls(pipe)
    calls = len(pipe.scheduler.timesteps)
    assert ours == list(range(0, calls, interval))
    assert len(ours) == ceil(calls / interval)
    assert theirs == by_value(pipe, interval)
    if sampler == "ddim":
        assert theirs == ours
    if interval == 2 and sampler != "ddim":  # timesteps repeat, and a search by value falls out of step
        assert len(theirs) < len(ours)


def test_only_ours_draws_without_a_mid_block() -> None:
    pipe = pipes.pipe(unet=tiny.unet(remove(tiny.SHAPES["sd15"], "small").config))
    with inherit(pipe, {"preset": "deepcache", "interval": 2}):
        assert draw(pipe).isfinite().all()
    helper = peer.DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=2)
    with pytest.raises(AttributeError):
        helper.enable()
