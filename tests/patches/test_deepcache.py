"""A twin: the DeepCache package does the same, wherever its own counting of steps does not go astray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from asdm_cli import inherit
from asdm_cli.patches.deepcache import DeepCachePatch
from asdm_cli.recipe.patches import DeepCacheSpec
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


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    """Sampler -> what is drawn without any plan."""
    return {}


@pytest.mark.parametrize("mid", [{}, {"mid_block_type": "UNetMidBlock2DCrossAttn"}, {"mid_block_type": None}])
def test_the_package_is_refused_where_its_middle_is_gone(mid: dict[str, Any]) -> None:
    told = DeepCachePatch(DeepCacheSpec(interval=2, branch=0, steps=4)).check({"unet": mid}, [])
    why = "the DeepCache package needs a mid block, and this UNet has none; leave it out"
    assert told == [why] * (None in mid.values())


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
