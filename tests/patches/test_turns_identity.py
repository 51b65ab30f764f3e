"""Where one UNet, or its equal, serves everything, pictures are those of its plain pipeline, bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import asdm_cli
from asdm_cli import inherit
from asdm_cli.models.schedulers import SAMPLERS
from asdm_cli.patches.unet_schedule import alone
from asdm_cli.patches.unet_schedule import switch as attach
from tests.patches import pipes
from tests.patches.conftest import Get
from tests.patches.parts import rules, small, twin
from tests.patches.pipes import draw

EVERY = [*(("text", sampler) for sampler in SAMPLERS), ("xl", "euler"), ("image", "pndm"), ("inpaint", "ddim")]
PLAN = {"rules": [{"nodes": "deepcache.1", "order": 1, "axis": "log-snr", "schedule": {"mode": "uniform"}}]}
PLAN["rules"][0]["schedule"] |= {"interval": 2}


@pytest.mark.parametrize(("kind", "sampler"), EVERY)
def test_equal_unets_and_one_unet_change_no_bit(kind: str, sampler: str, get: Get) -> None:
    pipe, other = get(kind, sampler), small(kind)
    plain, others = draw(pipe), draw(pipes.pipe(kind, sampler, other))
    assert not torch.equal(plain, others)
    unets = {"a": pipe.unet, "twin": twin(kind), "b": other}
    with attach(pipe, unets, alone("a")) as handle:
        for name, expected in (("a", plain), ("twin", plain), ("b", others)):
            with pipe.unet.ruled(alone(name)):
                assert torch.equal(draw(pipe), expected)
                assert set(handle.unet.stats().served) == {name}
        late = kind == "image"
        middle = {"timestep": 200 if late else 400, "log-snr": 1 if late else 0, "fraction": 0.5, "step": 1}
        for by, until in middle.items():
            with pipe.unet.ruled(rules(by, f"a {until}", "twin")):
                assert torch.equal(draw(pipe), plain)
                assert list(dict.fromkeys(handle.unet.stats().served)) == ["a", "twin"], "both served"
        for share, expected in ((0, others), (1, plain)):
            with pipe.unet.ruled(rules("fraction", f"a {share}", "b")):
                assert torch.equal(draw(pipe), expected)
    assert torch.equal(draw(pipe), plain)


@pytest.mark.parametrize(("kind", "sampler"), [("text", "pndm"), ("xl", "heun")])
def test_two_unets_are_those_of_a_pipeline_that_calls_them_by_hand(kind: str, sampler: str, get: Get) -> None:
    pipe = get(kind, sampler)
    with attach(pipe, {"a": pipe.unet, "b": small(kind)}, rules("timestep", "b 600", "a")) as handle:
        found, served = draw(pipe, 4), handle.unet.stats().served
    assert set(served) == {"a", "b"}
    assert torch.equal(found, by_hand(pipe, {"b": small(kind)}, served))


def by_hand(pipe: Any, others: dict[str, Any], served: tuple[str, ...]) -> Tensor:
    """The pipeline's own UNet, whose forward is that of whoever serves."""
    own, calls = pipe.unet.forward, iter(served)

    def forward(*args: Any, **named: Any) -> Any:
        name = next(calls)
        return others[name](*args, **named) if name in others else own(*args, **named)

    pipe.unet.forward = forward
    try:
        return draw(pipe, 4)
    finally:
        del pipe.unet.forward


@pytest.mark.parametrize(("kind", "sampler"), [("text", "pndm"), ("xl", "ddim"), ("image", "euler")])
def test_one_unet_with_its_plan_is_its_inheriting_pipeline(kind: str, sampler: str, get: Get) -> None:
    pipe = get(kind, sampler)
    with inherit(pipe, PLAN):
        inherited = draw(pipe, 5)
    assert not torch.equal(inherited, draw(pipe, 5)), "the plan does something"
    with inherit(pipes.pipe(kind, sampler, small(kind)), PLAN) as handle:
        others = draw(handle.pipe, 5)
    plans = {"a": PLAN, "b": PLAN}
    parts = [{"unet": "a"}]
    with asdm_cli.switch(pipe, {"a": pipe.unet, "b": small(kind)}, parts, plans=plans):
        assert torch.equal(draw(pipe, 5), inherited)
        with pipe.unet.ruled(alone("b")):
            assert torch.equal(draw(pipe, 5), others)
        asdm_cli.remove(pipe)
        with inherit(pipe, PLAN):
            assert torch.equal(draw(pipe, 5), inherited)
            with pipe.unet.ruled(alone("b")):
                assert torch.equal(draw(pipe, 5), others)
