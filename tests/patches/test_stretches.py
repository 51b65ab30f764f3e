"""Nothing crosses: not from one UNet to another, from one stretch to a later one, or from generation to generation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from asdm_cli.patches.base import Trajectory, live_on
from asdm_cli.patches.feature_cache import caches_on
from asdm_cli.patches.feature_cache.hooks import FeatureCache
from asdm_cli.patches.noise import coordinates
from asdm_cli.patches.unet_schedule import ScheduleHandle
from asdm_cli.patches.unet_schedule import switch as attach
from asdm_cli.recipe.patches import read_plan
from tests.patches import pipes
from tests.patches.conftest import Alive, Get
from tests.patches.parts import rules, scheduled, small
from tests.patches.pipes import draw, of_a_thread

EVERY_OTHER = {"mode": "uniform", "interval": 2}
PLAN = read_plan({"rules": [{"nodes": "deepcache.1", "order": 1, "axis": "log-snr", "schedule": EVERY_OTHER}]})
THREE = rules("step", "a 3", "b 5", "a")
"""Three stretches: two of a around one of b."""


def call(unet: Any, seed: int, rows: int = 1, time: float = 500, **named: Any) -> Tensor:
    noise = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return unet(noise, time, torch.ones(rows, 16, 16), **named)[0]


def switching(pipe: Any, switch: Any = THREE, plans: bool = True) -> ScheduleHandle:
    both = {"a": PLAN, "b": PLAN} if plans else {}
    return attach(pipe, {"a": pipe.unet, "b": small()}, switch, both)


def fresh(seed: int = 0, steps: int = 8, **settings: Any) -> Tensor:
    with switching(pipes.pipe()) as handle:
        return draw(handle.pipe, steps, seed=seed, **settings)


def test_every_stretch_is_a_generation_of_its_own(get: Get) -> None:
    with switching(get()) as handle:
        draw(handle.pipe, 8)
        full, rests = frozenset[int](), frozenset({0})
        assert handle.unet.stats().served == (*"aaabbaaa",)
        assert handle.unet.stats().reused == {"a": [full, rests, full, full, rests, full], "b": [full, rests]}


def test_every_stretch_draws_as_an_engine_of_its_own() -> None:
    """The same calls, each stretch by a fresh engine that is told of these calls alone."""
    pipe, other = pipes.pipe(), small()
    own, places = pipe.unet, []
    unet = scheduled({"a": own, "b": other}, THREE, {"a": PLAN, "b": PLAN})
    pipe.scheduler.set_timesteps(8)
    times = pipe.scheduler.timesteps.tolist()
    with torch.no_grad(), unet.generation(8, pipe.scheduler):
        found = [call(unet, index, time=time) for index, time in enumerate(times)]
    for member in unet.members:
        live_on(member)[0].remove()
    expected = []
    for served, stretch in ((own, range(3)), (other, range(3, 5)), (own, range(5, 8))):
        engine = FeatureCache(served, PLAN)

        def timeline(axis: str, _: str, stretch: range = stretch) -> list[float]:
            assert axis == "log-snr"
            places.append(len(stretch))
            return coordinates(pipe.scheduler, axis, 8, times[0])[stretch.start : stretch.stop]

        with torch.no_grad(), engine.generation(Trajectory(len(stretch), timeline)):
            expected += [call(served, index, time=times[index]) for index in stretch]
        engine.remove()
    assert places == [3, 2, 3]
    assert [torch.equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * 8


def test_what_one_unet_kept_is_gone_when_the_other_begins(get: Get, alive: Alive) -> None:
    at_call: list[int] = []
    with switching(get()) as handle:
        hook = handle.unet.unets["b"].register_forward_pre_hook(lambda *_: at_call.append(alive()))
        first = handle.unet.unets["a"].register_forward_pre_hook(lambda *_: at_call.append(alive()))
        draw(handle.pipe, 8)
        hook.remove()
        first.remove()
    assert len(at_call) == 8
    assert [at_call[call] for call in (0, 3, 5)] == [0, 0, 0], "a stretch begins with nothing"
    assert all(at_call[call] > 0 for call in (1, 2, 4, 6, 7)), "and the watch sees what is kept inside one"
    assert alive() == 0
    assert handle.unet.stats().cache_bytes > 0


def test_poisoned_features_of_one_unet_do_not_reach_the_other(get: Get) -> None:
    with switching(get()) as handle, torch.no_grad():
        unets, outputs = handle.unet.unets, []
        hook = unets["a"].up_blocks[3].register_forward_hook(lambda _, __, out: out * torch.nan)
        handle.pipe.scheduler.set_timesteps(8)
        with handle.unet.generation(8, handle.pipe.scheduler):
            for index, time in enumerate(handle.pipe.scheduler.timesteps):
                outputs.append(call(handle.unet, index, time=time))
        hook.remove()
        clean = [bool(each.isfinite().all()) for each in outputs]
    assert clean == [False, False, False, True, True, False, False, False]


@pytest.mark.parametrize("at", [1, 3])
def test_an_exception_leaves_nothing_behind(at: int, get: Get, alive: Alive) -> None:
    living = []

    def stop(pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
        if step == at:
            living.append(alive())
            raise KeyboardInterrupt
        return {}

    with switching(get()) as handle:
        with pytest.raises(KeyboardInterrupt):
            draw(handle.pipe, 8, callback_on_step_end=stop)
        assert living[0] > 0, "the watch saw kept tensors in the middle"
        assert alive() == 0
        assert handle.unet.thread.generation is None
        for engine in caches_on(handle.pipe).values():
            assert engine.thread.handed is None
            assert engine.thread.step is None
        assert torch.equal(draw(handle.pipe, 8), fresh())


def test_generations_in_a_row_are_those_of_fresh_ones(get: Get) -> None:
    order = [(8, {}), (5, {}), (8, {"guidance_scale": 1.0}), (8, {"size": 40}), (8, {}), (8, {"count": 2})]
    with switching(get()) as handle:
        for steps, settings in order:
            assert torch.equal(draw(handle.pipe, steps, **settings), fresh(0, steps, **settings))


def test_threads_that_share_the_unets() -> None:
    """Whatever step the others are at."""
    seeds = range(4)
    with_null = rules("step", "a 3", "b 5", "extrapolate 6", "a")

    def alone(seed: int) -> Tensor:
        with switching(pipes.pipe(), with_null) as handle:
            return draw(handle.pipe, 7 + seed % 2, seed=seed)

    expected = [alone(seed) for seed in seeds]
    with switching(pipes.pipe(), with_null) as handle, ThreadPoolExecutor(3) as threads:

        def one(seed: int) -> Tensor:
            return draw(of_a_thread(handle.pipe), 7 + seed % 2, seed=seed)

        together = list(threads.map(one, seeds))
    assert [torch.equal(*pair) for pair in zip(together, expected, strict=True)] == [True] * 4


def test_a_generation_inside_a_generation(get: Get) -> None:
    unet = scheduled({"a": get().unet, "b": small()}, rules("step", "a 1", "b 2", "reuse"))
    with torch.no_grad(), unet.generation(3):
        outer = [call(unet, 0)]
        with unet.generation(3):
            inner = [call(unet, index) for index in (5, 6, 7)]
        assert unet.stats().served == ("a", "b", "reuse")
        outer += [call(unet, index) for index in (1, 2)]
    assert torch.equal(inner[2], inner[1])
    assert torch.equal(outer[2], outer[1])
    assert not torch.equal(outer[1], inner[1])
