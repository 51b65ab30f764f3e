"""Plans, turns and experts on the device: bit-equal where nothing is left out, in every number format, offloaded or
not, without waiting for the device, and with nothing left behind."""

from __future__ import annotations

import copy
import gc
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import accelerate
import pytest
import torch
from torch import nn

from asdm_cli import inherit, switch
from asdm_cli.patches.base import applied, patch_of
from asdm_cli.patches.feature_cache import FeatureCache
from asdm_cli.recipe.patches import read_plan
from tests.experts.test_layer import images, made
from tests.gpu.pipes import CALLS, arguments, draw, pipe
from tests.patches.parts import small
from tests.turns import read_patches

HALF = pytest.param(torch.float16, marks=pytest.mark.gpu)
FORMATS = [torch.float32, torch.bfloat16, HALF]
EVERY_CALL = {"rules": [{"nodes": "base", "schedule": {"mode": "uniform", "interval": 1}}]}
PLANS: dict[str, dict[str, Any]] = {
    "block": {"rules": [{"nodes": "up.3", "schedule": {"mode": "early", "interval": 2}, "order": 1}]},
    "layer": {"preset": "base-mask", "interval": 2, "order": 2},
    "unit": {"rules": [{"nodes": "*.attn", "cache": "residual", "schedule": {"mode": "uniform", "interval": 3}}]},
    "deepcache": {"preset": "deepcache", "interval": 3, "order": 1},
    "encoder": {"preset": "encoder-propagation", "interval": 2},
    "output": {"rules": [{"nodes": "out", "schedule": {"mode": "early", "interval": 2}, "order": 1}]},
}
"""One of each kind of node."""


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(("kind", "sampler"), [("text", "dpm++2m"), ("xl", "ddim"), ("control", "heun")])
def test_plans_that_leave_nothing_out_change_no_bit(
    kind: str, sampler: str, dtype: torch.dtype, device: torch.device
) -> None:
    made = pipe(device, dtype, kind, sampler)
    plain = draw(made)
    assert plain.isfinite().all()
    for plan in (EVERY_CALL, {"rules": []}):
        with inherit(made, plan):
            assert torch.equal(draw(made), plain)
    with inherit(made, PLANS["deepcache"]):
        assert not torch.equal(draw(made), plain)
    assert torch.equal(draw(made), plain)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("outside", ["conditional", "reuse", "difference"])
def test_guidance_at_every_call_changes_no_bit_and_outside_an_interval_half_is_computed(
    outside: str, dtype: torch.dtype, device: torch.device
) -> None:
    made, rows = pipe(device, dtype), list[int]()
    plain = draw(made, CALLS)
    with guidance(made, until=CALLS, outside=outside):
        assert torch.equal(draw(made, CALLS), plain)
    with guidance(made, start=1, until=4, outside=outside):
        counted = made.unet.conv_in.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
        assert not torch.equal(draw(made, CALLS), plain)
        counted.remove()
        assert rows == [1, 2, 2, 2, 1, 1]
        with inherit(made, PLANS["output"]) as handle:
            assert draw(made, CALLS).isfinite().all()
            assert len(set(handle.stats().reused["unet"])) > 1
    assert torch.equal(draw(made, CALLS), plain)


def guidance(pipe: Any, **keys: Any) -> AbstractContextManager[Any]:
    (spec,) = read_patches([{"kind": "guidance-schedule", "by": "step", **keys}], "test")
    return applied(pipe, [patch_of(spec)], lambda _: pipe.unet)


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("offload", [False, True])
def test_turns_of_a_unet_and_its_twin_change_no_bit(offload: bool, dtype: torch.dtype, device: torch.device) -> None:
    made = pipe(device, dtype)
    plain = draw(made, CALLS)
    own = made.unet
    parts = [{"unet": "a", "until": 2}, {"unet": "b", "until": 4}, {"unet": "a"}]
    with switch(made, {"a": own, "b": copy.deepcopy(own)}, parts, by="step", offload=offload) as handle:
        assert torch.equal(draw(made, CALLS), plain)
        assert handle.unet.stats().served == ("a", "a", "b", "b", "a", "a")
        assert handle.unet.unets["b"].device.type == ("cpu" if offload else device.type)
    with switch(made, {"a": own, "b": small().to(device, dtype)}, parts, by="step", offload=offload):
        assert not torch.equal(draw(made, CALLS), plain)
    assert torch.equal(draw(made, CALLS), plain)


@pytest.mark.parametrize("dtype", FORMATS[1:], ids=str)
@pytest.mark.parametrize("plan", PLANS)
def test_plans_draw_alike_in_every_format(plan: str, dtype: torch.dtype, device: torch.device) -> None:
    """As far as the format alone moves a picture, a plan in it may be from the plan in float32, and some."""
    wide, own = pipe(device), pipe(device, dtype)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))  # other formats draw other numbers
    given = {pipe: {"latents": noise.to(device, pipe.unet.dtype)} for pipe in (wide, own)}
    plain = draw(wide, CALLS, **given[wide])
    moved = distance(draw(own, CALLS, **given[own]), plain)
    assert moved < 0.1
    with inherit(wide, PLANS[plan]), inherit(own, PLANS[plan]) as handle:
        wanted, got = draw(wide, CALLS, **given[wide]), draw(own, CALLS, **given[own])
        assert len(set(handle.stats().reused["unet"])) > 1, "something was inherited"
    assert not torch.equal(wanted, plain)
    assert distance(got, wanted) <= 3 * moved
    assert got.dtype == dtype


def distance(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.float() - wanted).norm() / wanted.norm())


@pytest.mark.gpu
@pytest.mark.parametrize("plan", PLANS)
def test_inside_a_step_nobody_waits_for_the_device(plan: str, device: torch.device) -> None:
    unet = pipe(device).unet
    given = arguments(unet, device)
    cache = FeatureCache(unet, read_plan(PLANS[plan]))
    with torch.no_grad():
        unet(**given)  # libraries load
        torch.cuda.set_sync_debug_mode("error")
        try:
            with cache.generation(CALLS):
                for _ in range(CALLS):
                    unet(**given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(set(cache.stats().reused["unet"])) > 1


@pytest.mark.gpu
@pytest.mark.parametrize("offload", [False, True])
def test_memory_is_back_where_it_was_after_a_generation(offload: bool, device: torch.device) -> None:
    made = pipe(device)
    parts = [{"unet": "a", "until": 3}, {"unet": "b"}]
    with ExitStack() as stack:
        b = small().to(device)
        stack.enter_context(switch(made, {"a": made.unet, "b": b}, parts, by="step", offload=offload))
        stack.enter_context(inherit(made, PLANS["deepcache"]))
        held = []
        for _ in range(3):
            draw(made, CALLS)
            gc.collect()
            torch.cuda.synchronize()
            held.append(torch.cuda.memory_allocated())
    assert held[0] == held[1] == held[2], "and the first drawing's workspaces are there"


@pytest.mark.gpu
def test_a_plan_keeps_no_memory_between_generations(device: torch.device) -> None:
    made = pipe(device)
    draw(made, CALLS)
    gc.collect()
    before = torch.cuda.memory_allocated()
    with inherit(made, PLANS["encoder"]) as handle:
        draw(made, CALLS)
        gc.collect()
        assert torch.cuda.memory_allocated() == before
        assert handle.stats().cache_bytes > 0


@pytest.mark.parametrize("way", ["model", "sequential"])
@pytest.mark.parametrize("first", ["plan", "offload"])
def test_offload_and_a_plan_in_either_order(way: str, first: str, device: torch.device) -> None:
    on_device, offloaded = pipe(device), pipe(torch.device("cpu"))
    plain = draw(on_device, CALLS)
    with inherit(on_device, PLANS["deepcache"]):
        wanted = draw(on_device, CALLS)
    if first == "offload":
        offload(offloaded, way, device)
    handle = inherit(offloaded, PLANS["deepcache"])
    if first == "plan":
        offload(offloaded, way, device)
    for _ in range(2):
        assert torch.equal(draw(offloaded, CALLS).to(device), wanted)
        assert len(set(handle.stats().reused["unet"])) == 2
    handle.remove()
    assert torch.equal(draw(offloaded, CALLS).to(device), plain)


def offload(pipe: Any, way: str, device: torch.device) -> None:
    """Without a GPU diffusers refuses to: then the UNet alone has the hooks that it would give."""
    if device.type == "cuda":
        getattr(pipe, f"enable_{way}_cpu_offload")(device=device)
    elif way == "sequential":
        accelerate.cpu_offload(pipe.unet, device)
    else:
        drawn = pipe.maybe_free_model_hooks
        accelerate.cpu_offload_with_hook(pipe.unet, device)

        def again() -> None:
            accelerate.hooks.remove_hook_from_module(pipe.unet, recurse=True)
            accelerate.cpu_offload_with_hook(pipe.unet, device)
            drawn()

        pipe.maybe_free_model_hooks = again


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_each_row_has_the_expert_of_its_timestep(dtype: torch.dtype, device: torch.device) -> None:
    times = torch.tensor([900, 10, 500, 20])
    expert = made(nn.Conv2d(3, 5, 3, padding=1), times)
    wanted = expert(images())
    expert = expert.to(device, dtype)
    expert.context.announce(times.to(device))
    with torch.no_grad():
        got = expert(images().to(device, dtype))
    assert got.dtype == dtype
    bound = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.float().cpu(), wanted, atol=bound, rtol=bound)
