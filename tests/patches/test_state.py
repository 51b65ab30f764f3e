"""A generation begins with nothing, leaves nothing, and meets no other one, whatever is in force."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from asdm_cli import inherit
from asdm_cli.errors import ModelError
from asdm_cli.models.schedulers import set_sampler
from asdm_cli.patches.base import PROMPT, Handle, Trajectory, live_on, stats_of
from asdm_cli.patches.cache_plan import resolve
from asdm_cli.patches.feature_cache import caches_on
from asdm_cli.patches.feature_cache.state import ALL, CacheState
from asdm_cli.patches.guidance import HALVES, THIRDS
from asdm_cli.patches.unet_schedule import ScheduleHandle
from asdm_cli.patches.unet_schedule import switch as attach
from asdm_cli.recipe.patches import read_plan
from tests import tiny
from tests.patches import pipes
from tests.patches.conftest import Alive, Get
from tests.patches.parts import rules, small
from tests.patches.pipes import draw, of_a_thread


def test_a_threshold_is_measured_on_the_rows_that_see_the_prompt() -> None:
    rule = {"nodes": "out", "schedule": {"mode": "threshold", "threshold": 0.1}}
    plan = resolve(read_plan({"rules": [rule]}), tiny.shape("sd15"))
    for groups in (HALVES, THIRDS, (PROMPT,), ALL):
        state = CacheState(plan, Trajectory(2, lambda *_: range(2), rows=(groups,) * 2))
        state.next(torch.randn(len(groups), 4, 8, 8), protect=False)
        (history,) = state.memory.values()
        assert state._probe(0) is history.groups[PROMPT if PROMPT in groups else groups[-1]]


PLAN = {
    "rules": [
        {"nodes": "deepcache.1", "order": 2, "schedule": {"mode": "uniform", "interval": 2}},
        {"nodes": "up.3.1.cross", "schedule": {"mode": "threshold", "threshold": 0.3, "longest": 3}},
    ]
}
EVERY_OTHER = {"mode": "uniform", "interval": 2}
OF_EACH = read_plan({"rules": [{"nodes": "deepcache.1", "order": 1, "axis": "log-snr", "schedule": EVERY_OTHER}]})
"""Of UNets in turn."""
THREE = rules("step", "a 3", "b 5", "a")
"""Three stretches: two of a around one of b."""
GENERATIONS: list[dict[str, Any]] = [
    {"steps": 8},
    {"steps": 5},
    {"steps": 8, "size": 40},
    {"steps": 8, "count": 2},
    {"steps": 8, "guidance_scale": 1.0},
]


def switching(pipe: Any, switch: Any = THREE) -> ScheduleHandle:
    return attach(pipe, {"a": pipe.unet, "b": small()}, switch, {"a": OF_EACH, "b": OF_EACH})


IN_FORCE: dict[str, Callable[[Any], Handle]] = {"a cache": lambda pipe: inherit(pipe, PLAN), "UNets in turn": switching}
every = pytest.mark.parametrize("kind", IN_FORCE)


def fresh(kind: str, sampler: str = "ddim", **settings: Any) -> Tensor:
    with IN_FORCE[kind](pipes.pipe(sampler=sampler)) as handle:
        return draw(handle.pipe, **settings)


def hooked(root: nn.Module) -> list[nn.Module]:
    """Modules that are not as their class made them."""
    return [each for each in root.modules() if {"_diffusers_hook", "forward"} & each.__dict__.keys()]


@every
def test_generations_in_a_row_are_those_of_fresh_engines(kind: str, get: Get) -> None:
    order = [0, 1, 0, 2, 0, 3, 4, 3, 2]
    assert {settings for pair in pairwise(order) for settings in pair} == set(range(len(GENERATIONS)))
    alone = [fresh(kind, "pndm", **settings) for settings in GENERATIONS]
    with IN_FORCE[kind](get(sampler="pndm")) as handle:
        for index in order:
            assert torch.equal(draw(handle.pipe, **GENERATIONS[index]), alone[index])


def test_another_size_in_the_middle_of_a_generation_starts_from_nothing(get: Get) -> None:
    with inherit(get(), {"preset": "deepcache", "interval": 4}) as handle, torch.no_grad():
        unet, text = handle.pipe.unet, torch.ones(1, 16, 16)
        with handle.cache.generation(4):
            for size in (8, 12, 12, 8):
                output = unet(torch.ones(1, 4, size, size), 5, text).sample
        assert [len(resting) for resting in handle.stats().reused["unet"]] == [0, 0, 1, 0]
    assert torch.equal(output, unet(torch.ones(1, 4, 8, 8), 5, text).sample)


def test_calls_beyond_those_announced_are_an_error(get: Get) -> None:
    arguments = (torch.ones(1, 4, 8, 8), 5, torch.ones(1, 16, 16))
    with inherit(get(), {"preset": "deepcache", "interval": 9}) as handle, torch.no_grad():
        with handle.cache.generation(2):
            for _ in range(2):
                handle.pipe.unet(*arguments)
            with pytest.raises(ModelError, match="called 3 times where 2 calls were announced"):
                handle.pipe.unet(*arguments)
        assert [len(resting) for resting in handle.stats().reused["unet"]] == [0, 1]


def test_outside_a_generation_a_call_is_an_error(get: Get) -> None:
    unet, arguments = get().unet, (torch.ones(1, 4, 8, 8), 5, torch.ones(1, 16, 16))
    with torch.no_grad(), inherit(get(), PLAN) as handle:
        draw(handle.pipe)
        with pytest.raises(ModelError, match=r"outside a generation.*asdm_cli\.inherit\(pipe, plan\)"):
            unet(*arguments)


@every
@pytest.mark.parametrize("at", [1, 3])
def test_an_exception_leaves_nothing_behind_and_a_whole_generation_nothing_either(
    kind: str, at: int, get: Get, alive: Alive
) -> None:
    living = []

    def stop(pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
        if step == at:
            living.append(alive())
            raise KeyboardInterrupt
        return {}

    with IN_FORCE[kind](get()) as handle:
        with pytest.raises(KeyboardInterrupt):
            draw(handle.pipe, steps=8, callback_on_step_end=stop)
        assert living[0] > 0, "the watch saw kept tensors in the middle"
        assert alive() == 0
        for live in (*live_on(handle.pipe.unet), *caches_on(handle.pipe).values()):
            assert (live.thread.generation, live.thread.handed, live.thread.step) == (None, None, None)
        assert torch.equal(draw(handle.pipe, steps=8), fresh(kind, steps=8))
        assert alive() == 0
        assert stats_of(handle.pipe).cache_bytes


def test_only_what_is_read_later_is_kept(get: Get) -> None:
    """One tensor of DeepCache's, of two rows: up.3.1's output; on request keys and values of the text."""
    text = 2 * 2 * pipes.tiny.TOKENS * 4
    unet = get().unet
    widths = [each.attn2.to_k.out_features for _, each in unet.named_modules() if hasattr(each, "attn2")]
    assert len(widths) == 16
    rules = read_plan({"preset": "deepcache"})
    for cache_text in (False, True):
        with inherit(get(), rules.model_copy(update={"cache_text": cache_text})) as handle:
            draw(handle.pipe)
            assert handle.stats().cache_bytes == 2 * 8 * 8 * 8 * 4 + cache_text * text * sum(widths)
    with inherit(get(), {"rules": [], "cache_text": False}) as handle:
        draw(handle.pipe)
        assert handle.stats().cache_bytes == 0


@every
def test_threads_that_share_a_unet(kind: str) -> None:
    """Whatever step the others are at."""
    seeds = range(4)
    alone = [fresh(kind, steps=7 + seed % 2, seed=seed) for seed in seeds]
    with IN_FORCE[kind](pipes.pipe()) as handle, ThreadPoolExecutor(3) as threads:

        def one(seed: int) -> Tensor:
            return draw(of_a_thread(handle.pipe), 7 + seed % 2, seed=seed)

        together = list(threads.map(one, seeds))
    assert [torch.equal(*pair) for pair in zip(together, alone, strict=True)] == [True] * 4


@every
def test_remove_leaves_everything_as_it_was(kind: str) -> None:
    pipe = pipes.pipe()
    own, before, config = pipe.unet, draw(pipe, 8), dict(pipe.config)
    handle = IN_FORCE[kind](pipe)
    assert len(hooked(own)) > 20
    assert type(pipe) is not StableDiffusionPipeline
    assert isinstance(pipe, StableDiffusionPipeline)
    names = type(pipe).__name__, type(pipe).__module__
    assert names == (StableDiffusionPipeline.__name__, StableDiffusionPipeline.__module__)
    assert not torch.equal(draw(pipe, 8), before)
    for _ in range(2):
        handle.remove()
        assert pipe.unet is own
        assert dict(pipe.config) == config
        assert hooked(own) == live_on(own) == []
        assert type(pipe) is StableDiffusionPipeline
        assert torch.equal(draw(pipe, 8), before)


def test_remove_leaves_the_hooks_of_others() -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    pipe = pipes.pipe()
    before = draw(pipe)
    inner = pipe.unet.up_blocks[3].attentions[1]
    HookRegistry.check_if_exists_or_initialize(inner).register_hook(ModelHook(), "theirs")
    handle = inherit(pipe, {"preset": "deepcache"})
    outer = pipe.unet.up_blocks[3].resnets[1]
    HookRegistry.check_if_exists_or_initialize(outer).register_hook(ModelHook(), "theirs")
    draw(pipe)
    handle.remove()
    assert set(hooked(pipe.unet)) == {inner, outer}
    assert torch.equal(draw(pipe), before)


def test_a_new_sampler_is_read_at_every_generation(get: Get) -> None:
    pipe = get()
    with inherit(pipe, {"preset": "deepcache", "interval": 2}) as handle:
        for sampler, calls in (("ddim", 4), ("heun", 7), ("pndm", 5)):
            set_sampler(pipe, sampler)
            draw(pipe, 4)
            assert [not resting for resting in handle.stats().reused["unet"]] == [
                call % 2 == 0 for call in range(calls)
            ]
