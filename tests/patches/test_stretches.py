"""Nothing crosses: not from one UNet to another, from one stretch to a later one, or from generation to generation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asdm_cli.patches.base import Trajectory, live_on
from asdm_cli.patches.feature_cache import FeatureCache
from asdm_cli.patches.noise import coordinates
from tests.patches import pipes
from tests.patches.conftest import Alive, Get
from tests.patches.parts import rules, scheduled, small
from tests.patches.pipes import draw
from tests.patches.test_state import OF_EACH, THREE, switching


def call(unet: Any, seed: int, rows: int = 1, time: float = 500, **named: Any) -> Tensor:
    noise = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return unet(noise, time, torch.ones(rows, 16, 16), **named)[0]


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
    unet = scheduled({"a": own, "b": other}, THREE, {"a": OF_EACH, "b": OF_EACH})
    pipe.scheduler.set_timesteps(8)
    times = pipe.scheduler.timesteps.tolist()
    with torch.no_grad(), unet.generation(8, pipe.scheduler):
        found = [call(unet, index, time=time) for index, time in enumerate(times)]
    for member in unet.members:
        live_on(member)[0].remove()
    expected = []
    for served, stretch in ((own, range(3)), (other, range(3, 5)), (own, range(5, 8))):
        engine = FeatureCache(served, OF_EACH)

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
