"""torch.compile with each kind of plan, as a user compiles: few graphs, all of them made in the first generation, and
pictures as without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from asdm_cli import inherit, switch
from tests import tiny
from tests.gpu.pipes import CALLS, draw, own
from tests.patches import pipes
from tests.patches.test_compile import SMALLEST

PLANS: dict[str, dict[str, Any]] = {
    "none": {"rules": []},
    "block": {"rules": [{"nodes": "up.0", "schedule": {"mode": "uniform", "interval": 2}, "order": 1}]},
    "residual": {
        "rules": [{"nodes": "*.attn", "cache": "residual", "schedule": {"mode": "uniform", "interval": 3}, "order": 2}]
    },
    "deepcache": {"preset": "deepcache", "interval": 2},
    "output": {"rules": [{"nodes": "out", "schedule": {"mode": "uniform", "interval": 2}, "order": 1}]},
}
GRAPHS = 8
"""At most: a full call without a past, with one, inherited calls, and each again where numbers became variables."""


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def pipe(device: torch.device) -> Any:
    torch.manual_seed(0)
    return own(pipes.pipe(unet=tiny.unet(SMALLEST))).to(device)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("plan", PLANS)
def test_compiled_pictures_are_the_uncompiled_ones(plan: str, mode: str, device: torch.device) -> None:
    made = pipe(device)
    with inherit(made, PLANS[plan]):
        wanted = draw(made, CALLS)
    made.unet = torch.compile(made.unet, mode=mode)
    with inherit(made, PLANS[plan]):
        graphs = []
        for _ in range(3):
            assert (draw(made, CALLS) - wanted).norm() / wanted.norm() < 0.01
            graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] <= GRAPHS
    assert graphs[0] == graphs[1] == graphs[2], "no recompilation after the first generation"


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_unets_take_turns(mode: str, device: torch.device) -> None:
    made = pipe(device)
    torch.manual_seed(1)
    other = tiny.unet(SMALLEST, seed=1).to(device)
    parts = [{"unet": "a", "until": 2}, {"unet": "extrapolate", "until": 3}, {"unet": "b"}]
    with switch(made, {"a": made.unet, "b": other}, parts, by="step"):
        wanted = draw(made, CALLS)
    for unet in (made.unet, other):
        unet.compile(mode=mode)
    with switch(made, {"a": made.unet, "b": other}, parts, by="step"):
        for _ in range(2):
            assert (draw(made, CALLS) - wanted).norm() / wanted.norm() < 0.01
