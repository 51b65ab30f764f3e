"""A boundary in timesteps or log-SNR stays where it is, whatever the sampler, the steps and the strength."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler

from asdm_cli.errors import ModelError
from asdm_cli.patches.base import unet_calls
from asdm_cli.patches.unet_schedule import UNetSchedule
from asdm_cli.patches.unet_schedule import switch as attach
from tests.patches.conftest import Get
from tests.patches.parts import rules, small, timesteps_of
from tests.patches.pipes import draw

SAMPLERS = ("ddim", "euler", "dpm++2m", "pndm", "heun")
ARGUMENTS = (torch.ones(1, 4, 8, 8), 500, torch.ones(1, 16, 16))
AT = 450.0


def log_snr(pipe: Any, time: float) -> float:
    signal = float(pipe.scheduler.alphas_cumprod[int(time)])
    return math.log(signal / (1 - signal))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("by", ["timestep", "log-snr"])
def test_text_to_image(by: str, sampler: str, get: Get) -> None:
    pipe = get("text", sampler)
    for steps in (3, 8):
        assert_split(pipe, by, steps=steps)


@pytest.mark.parametrize(("kind", "sampler"), [*(("image", each) for each in SAMPLERS), ("inpaint", "heun")])
def test_strength_moves_no_boundary(kind: str, sampler: str, get: Get) -> None:
    pipe = get(kind, sampler)
    for steps, strength in ((6, 0.8), (6, 1.0), (9, 0.7)):
        assert_split(pipe, "timestep", steps=steps, strength=strength)
    first, second = split(pipe, "timestep", steps=6, strength=0.4)
    assert not first, "it begins beyond the boundary"
    assert second


def assert_split(pipe: Any, by: str, **settings: Any) -> None:
    first, second = split(pipe, by, **settings)
    assert len(first) >= 1
    assert len(second) >= 1
    assert min(first) > AT >= max(second)


def split(pipe: Any, by: str, **settings: Any) -> list[list[float]]:
    """Timesteps of both UNets' calls, with the boundary at `AT`."""
    kind = "xl" if "XL" in type(pipe).__name__ else "text"
    until = AT if by == "timestep" else log_snr(pipe, AT)
    own, other = pipe.unet, small(kind)
    with timesteps_of(own, other) as seen, attach(pipe, {"a": own, "b": other}, rules(by, f"a {until}", "b")) as handle:
        draw(pipe, **settings)
        assert len(handle.unet.stats().served) == sum(map(len, seen))
    return seen


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_steps_and_fractions_count_the_calls_that_are_made(strength: float, get: Get) -> None:
    pipe = get("image")
    for by, until in (("step", 3), ("fraction", 0.25)):
        with attach(pipe, {"a": pipe.unet, "b": small()}, rules(by, f"a {until}", "b")) as handle:
            draw(pipe, 12, strength=strength)
            calls = int(12 * strength)
            first = 3 if by == "step" else -(-calls // 4)
            assert handle.unet.stats().served == ("a",) * first + ("b",) * (calls - first)


def test_the_timestep_is_read_once(get: Get) -> None:
    """A timestep's value says nothing about which call it is: PNDM has one twice."""
    pipe, read = get("text", "pndm"), []

    class Watched(torch.Tensor):
        def __float__(self) -> float:
            read.append(1)
            return float(torch.Tensor(self))

    inner = UNetSchedule({"a": pipe.unet, "b": small()}, rules("timestep", "a 500", "b"))
    pipe.scheduler.set_timesteps(4)
    times = pipe.scheduler.timesteps
    assert len(times) == 5
    assert len(set(times.tolist())) == 4
    with torch.no_grad(), inner.generation(5, pipe.scheduler):
        for time in times:
            inner(ARGUMENTS[0], time.as_subclass(Watched), ARGUMENTS[2])
    assert inner.stats().served == ("a", "a", "a", "b", "b")
    assert len(read) == 1


def test_schedulers_without_a_noise_schedule(get: Get) -> None:
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(4)
    unets = {"a": get().unet, "b": small()}
    told = pytest.raises(ModelError, match="EDMEulerScheduler has no alphas_cumprod; use `timestep`")
    unet = UNetSchedule(unets, rules("log-snr", "a 0", "b"))
    first = float(scheduler.timesteps[0])
    with torch.no_grad(), told, unet.generation(4, scheduler):
        unet(ARGUMENTS[0], first, ARGUMENTS[2])
    assert unet.thread.generation is None
    middle = float(scheduler.timesteps[1:3].mean())
    unet = UNetSchedule(unets, rules("timestep", f"a {max(middle, 0)}", "b"))
    with torch.no_grad(), unet.generation(4, scheduler):
        for time in scheduler.timesteps.tolist():
            unet(ARGUMENTS[0], time, ARGUMENTS[2])
    assert len(unet.stats().served) == 4


@pytest.mark.parametrize(("by", "until"), [("timestep", 400), ("log-snr", 0)])
def test_without_a_scheduler_nobody_knows(by: str, until: float, get: Get) -> None:
    unet = UNetSchedule({"a": get().unet, "b": small()}, rules(by, f"a {until}", "b"))
    with torch.no_grad(), pytest.raises(ModelError, match="only a pipeline's scheduler knows it"), unet.generation(3):
        unet(*ARGUMENTS)
    unet = UNetSchedule({"a": get().unet, "b": small()}, rules("step", "a 1", "b"))
    with torch.no_grad(), unet.generation(3):
        for _ in range(3):
            unet(*ARGUMENTS)
        with pytest.raises(ModelError, match="called 4 times where 3 calls were announced"):
            unet(*ARGUMENTS)
    assert unet.stats().served == ("a", "b", "b")


def test_outside_a_generation_nobody_knows_whose_turn_it_is(get: Get) -> None:
    unet = UNetSchedule({"a": get().unet}, rules("step", "a"))
    with pytest.raises(ModelError, match=r"outside a generation.*asdm_cli\.switch.*with unet\.generation"):
        unet(*ARGUMENTS)


def test_a_pipeline_that_does_not_say_may_have_cut_its_timesteps() -> None:
    class Cutting:
        scheduler = SimpleNamespace(timesteps=range(9))

        def __call__(self, cut: int) -> int:
            timesteps = self.scheduler.timesteps[:cut]
            return unet_calls(self) if timesteps else 0

    pipe = Cutting()
    assert pipe(4) == 4
    assert unet_calls(pipe) == 9, "outside a call it is all of them"
    pipe._num_timesteps = 3  # type: ignore[attr-defined]
    assert pipe(4) == 3
