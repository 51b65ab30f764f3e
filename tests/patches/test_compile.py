"""Compiled UNets inherit as others do: one graph for each thing that a call can be, and none after the first run.

The compiler's frontend is what a plan could upset; of backends, the one without code generation is the fastest.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch._dynamo.testing import CompileCounterWithBackend

from asdm_cli import inherit
from asdm_cli.errors import ModelError
from tests import tiny
from tests.patches import pipes
from tests.patches.pipes import draw

SMALLEST = tiny.shape(
    "sd15",
    block_out_channels=[8],
    down_block_types=["CrossAttnDownBlock2D"],
    mid_block_type=None,
    up_block_types=["CrossAttnUpBlock2D"],
    layers_per_block=1,
)
"""One level, three transformers: every kind of hook, compiled in seconds."""
PLAN = {"preset": "deepcache"}


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny.unet(SMALLEST)


@pytest.fixture
def _anew() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(unet: UNet2DConditionModel, how: str, backend: Any) -> Any:
    """A pipeline around a copy of the UNet."""
    pipe = pipes.pipe(unet=copy.deepcopy(unet))
    if how == "wrapped":
        pipe.unet = torch.compile(pipe.unet, backend=backend)
    else:
        pipe.unet.compile(backend=backend)
    return pipe


@pytest.mark.usefixtures("_anew")
@pytest.mark.parametrize(
    ("how", "backend", "order", "count"),
    [
        ("wrapped", "eager", 0, 2),  # inherited calls and key calls
        ("in place", "aot_eager", 1, 5),  # with one value known and with two, and numbers that change as variables
    ],
)
def test_latents_are_the_uncompiled_ones_and_graphs_are_few(
    how: str, backend: str, order: int, count: int, unet: UNet2DConditionModel
) -> None:
    plan = {"preset": "deepcache", "interval": 2, "order": order}
    with inherit(pipes.pipe(unet=unet), plan) as handle:
        eager = {steps: draw(handle.pipe, steps) for steps in (5, 7)}
    graphs = CompileCounterWithBackend(backend)
    with inherit(compiled(unet, how, graphs), plan) as handle:
        for steps in (5, 5, 7):
            assert (draw(handle.pipe, steps) - eager[steps]).abs().max() < 1e-4
            assert len(set(handle.stats().reused["unet"])) == 2
            assert graphs.frame_count == count, "all of them in the first generation"


def dying(graph: Any, _inputs: Any) -> Any:
    """As CUDA graphs have it: what one run returns is gone when the next one begins."""
    left: list[torch.Tensor] = LEFT

    def run(*given: Any) -> Any:
        for each in left:
            each.fill_(torch.nan)
        outputs = [each.clone() if torch.is_tensor(each) else each for each in graph(*given)]
        left[:] = [each for each in outputs if torch.is_tensor(each)]
        return tuple(outputs)

    return run


LEFT: list[torch.Tensor] = []
"""What the last run returned, whichever graph it was of."""


@pytest.mark.usefixtures("_anew")
@pytest.mark.parametrize("order", [0, 1])
def test_what_is_kept_outlives_the_graphs_that_made_it(order: int, unet: UNet2DConditionModel) -> None:
    plan = {"preset": "deepcache", "interval": 2, "order": order}
    with inherit(pipes.pipe(unet=unet), plan) as handle:
        wanted = draw(handle.pipe, 5)
    with inherit(compiled(unet, "wrapped", dying), plan) as handle:
        for _ in range(2):
            assert (draw(handle.pipe, 5) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_compiled_unets_take_one_plan_and_are_left_as_they_were(how: str, unet: UNet2DConditionModel) -> None:
    pipe = compiled(unet, how, "eager")
    forward = pipe.unet.forward
    handle = inherit(pipe, PLAN)
    with pytest.raises(ModelError, match="inherits already"):
        inherit(pipe, PLAN)
    assert pipe.unet.forward != forward
    for _ in range(2):
        handle.remove()
        assert pipe.unet.forward == forward
        assert not [each for each in pipe.unet.modules() if hasattr(each, "_diffusers_hook")]
