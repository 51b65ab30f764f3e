"""How experts are used: what is seen of routers while pictures are drawn, and the records of it."""

from __future__ import annotations

from math import exp, log
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import asdm_cli
from asdm_cli.experts.layer import ROUTINGS
from asdm_cli.experts.unet import build, expert_layers
from asdm_cli.sampling.generate import SamplingSettings
from asdm_cli.sampling.routing import Routing, observe
from tests import expanding

PROMPTS = ("a fox", "two owls")
NAME = "up_blocks.1.resnets.1.conv2"
BLIND = "down_blocks.0.resnets.0"
"""Stands before the first attention."""


@pytest.fixture(scope="module")
def pipe(tiny_experts: Path) -> Any:
    return asdm_cli.load(str(tiny_experts), "cpu")


@pytest.fixture(scope="module")
def timed(tiny_pipeline: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Routers that look at the time alone, which is where kernels are kept."""
    folder = tmp_path_factory.mktemp("timed")
    assert expanding.expand(folder, tiny_base, experts=2, donor=str(tiny_pipeline), router="time").code == 0
    return asdm_cli.load(str(expanding.stirred(folder / "run/model")), "cpu")


def seen(pipe: Any, guidance: float = 2.0, steps: int = 3, prompts: tuple[str, ...] = PROMPTS) -> Routing:
    return observe(pipe, prompts, SamplingSettings(steps, guidance, None, 0))[0]


def routing(**weights: Tensor) -> Routing:
    return Routing(weights, tuple(f"prompt {n}" for n in range(len(next(iter(weights.values()), ())))))


def test_every_router_call_by_call(pipe: Any) -> None:
    found = seen(pipe)
    assert list(found.weights) == list(expert_layers(pipe.unet))
    assert len(found.weights) == 24
    assert found.prompts == PROMPTS
    for weights in found.weights.values():
        assert weights.shape == (2, 3, 2, 3), "prompts, calls, rows, experts"
        torch.testing.assert_close(weights.sum(3), torch.ones(2, 3, 2))
    spreads = {name: found.spread(name) for name in found.weights}
    assert all(each["between_rows"] == 0 for name, each in spreads.items() if name.startswith(BLIND)), "no prompt yet"
    late = [each for name, each in spreads.items() if not name.startswith(BLIND)]
    assert len(late) == 22
    assert all(min(each["over_calls"], each["over_prompts"], each["between_rows"]) > 1e-6 for each in late)
    assert all(1 < each["effective"] < 3 for each in late)
    assert seen(pipe, guidance=1.0).weights[NAME].shape == (2, 3, 1, 3)


def test_weights_by_time_by_hand(timed: Any) -> None:
    """From the timesteps of the sampler: nothing else is looked at."""
    found, unet = seen(timed), timed.unet
    timed.scheduler.set_timesteps(3)
    with torch.no_grad():
        told = unet.time_embedding(unet.time_proj(timed.scheduler.timesteps))
        for name, layer in expert_layers(unet).items():
            logits = torch.nn.functional.silu(told) @ layer.router.time.weight.T + layer.router.bias
            wanted = ROUTINGS["softmax"](logits)
            torch.testing.assert_close(found.by_call(name), wanted, atol=1e-5, rtol=1e-5)
            spread = found.spread(name)
            assert spread["over_prompts"] == pytest.approx(0, abs=1e-6)
            assert spread["between_rows"] == pytest.approx(0, abs=1e-6)
            assert spread["over_calls"] == pytest.approx(float(wanted.std(0, correction=0).mean()), abs=1e-5)


def test_means_by_hand() -> None:
    one = torch.zeros(2, 3, 2, 2)
    one[..., 0] = torch.tensor([[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], [[0.2, 0.4], [0.6, 0.8], [0.1, 0.3]]])
    one[..., 1] = 1 - one[..., 0]
    found = routing(one=one)
    first = [(0.1 + 0.2 + 0.2 + 0.4) / 4, (0.3 + 0.4 + 0.6 + 0.8) / 4, (0.5 + 0.6 + 0.1 + 0.3) / 4]
    assert found.by_call("one")[:, 0].tolist() == pytest.approx(first)
    assert found.by_prompt("one")[:, 0].tolist() == pytest.approx([(0.2 + 0.4 + 0.6) / 3, (0.4 + 0.8 + 0.3) / 3])
    mean = 4.5 / 12
    assert found.mean("one").tolist() == pytest.approx([mean, 1 - mean])
    spread = found.spread("one")
    assert spread["over_calls"] == pytest.approx(float(numpy.std(first)))
    assert spread["over_prompts"] == pytest.approx(0.05)
    assert spread["between_rows"] == pytest.approx((3 * 0.05 + 3 * 0.1) / 6)
    assert spread["effective"] == pytest.approx(exp(-mean * log(mean) - (1 - mean) * log(1 - mean)))


def test_records_are_spreads_of_every_router_and_the_calls_of_the_one_that_varies_most() -> None:
    """Of three convolutions one never varies, one varies over calls and one over prompts."""
    steps, tens = torch.linspace(0.2, 0.8, 5), torch.linspace(0.1, 0.9, 14)
    first = {
        "still": torch.full((14, 5, 2), 0.4),
        "calls": steps[None, :, None].expand(14, 5, 2),
        "told": tens[:, None, None].expand(14, 5, 2),
    }
    found = routing(**{name: torch.stack([each, 1 - each], 3) for name, each in first.items()})
    records = list(found.records("it"))
    spreads = {(each.of, each.metric): each.value for each in records if each.at is None}
    assert len(spreads) == 3 * 4
    assert {each.setup for each in records} == {"it"}
    assert spreads["router/still", "effective_experts"] == pytest.approx(exp(-0.4 * log(0.4) - 0.6 * log(0.6)))
    assert spreads["router/calls", "over_calls"] == pytest.approx(float(steps.std(correction=0)))
    assert spreads["router/told", "over_prompts"] == pytest.approx(float(tens.std(correction=0)))
    curve = {(each.of, each.at): each.value for each in records if each.metric == "routing_weight"}
    assert len(records) == 12 + len(curve)
    assert list(curve) == [(f"calls/expert {expert}", call) for call in range(5) for expert in (1, 2)]
    assert [curve["calls/expert 1", call] for call in range(5)] == pytest.approx(steps.tolist())


def test_unets_that_are_never_called_are_left_out(timed: Any) -> None:
    """Of two UNets in turns, one of which serves nothing."""
    unets = {"one": timed.unet, "two": build(dict(timed.unet.config)).eval()}
    for parts, named in (
        ([{"unet": "two", "until": 2000}, {"unet": "one"}], {"one"}),
        ([{"unet": "one", "until": 500}, {"unet": "two"}], {"one", "two"}),
    ):
        with asdm_cli.switch(timed, unets, parts):
            found = seen(timed)
        assert {name.partition(": ")[0] for name in found.weights} == named
        assert len(found.weights) == 24 * len(named)
    with asdm_cli.switch(
        timed, {"one": timed.unet, "again": timed.unet}, [{"unet": "again", "until": 500}, {"unet": "one"}]
    ):
        found = seen(timed)
    assert next(iter(found.weights)) == "one: down_blocks.0.resnets.0.conv1"
    assert {weights.shape[1] for weights in found.weights.values()} == {3}
