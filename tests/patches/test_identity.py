"""Where nothing is inherited, nothing changes: pictures are those of the plain pipeline, bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from asdm_cli import inherit
from asdm_cli.models.schedulers import SAMPLERS
from tests import tiny
from tests.patches import pipes
from tests.patches.conftest import Get
from tests.patches.pipes import KINDS, draw

EVERY_CALL = {"rules": [{"nodes": "base", "schedule": {"mode": "uniform", "interval": 1}}]}
EMPTY: dict[str, Any] = {"rules": []}
EVERY = [
    *(("text", sampler) for sampler in SAMPLERS),
    *((kind, sampler) for kind in KINDS if kind != "text" for sampler in ("ddim", "pndm", "heun")),
]
"""What a sampler does differently it does in all pipelines; heun and pndm call at one timestep twice."""
EVERY_THIRD = {"preset": "deepcache", "interval": 3}


@pytest.mark.parametrize(("kind", "sampler"), EVERY)
def test_interval_one_and_an_empty_plan_change_no_bit(kind: str, sampler: str, get: Get) -> None:
    pipe = get(kind, sampler)
    plain = draw(pipe)
    for plan in (EVERY_CALL, EMPTY):
        with inherit(pipe, plan):
            assert torch.equal(draw(pipe), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_plans_that_inherit_change_it_until_they_are_removed(kind: str, get: Get) -> None:
    """Else equality would say nothing of the engine, and the ControlNet's would say nothing of the ControlNet."""
    pipe = get(kind)
    plain = draw(pipe)
    with inherit(pipe, EVERY_THIRD):
        assert not torch.equal(draw(pipe), plain)
    assert torch.equal(draw(pipe), plain)
    if kind == "control":
        assert not torch.equal(draw(pipe, controlnet_conditioning_scale=0.0), plain)


def test_freeu_does_not_write_into_what_is_kept(get: Get) -> None:
    """Nodes whose inputs are frozen hand on what they would compute: only a kept value that was scaled differs."""
    pipe = get()
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
    try:
        unet, latents, text = pipe.unet, torch.randn(1, 4, 8, 8), torch.randn(1, 16, 16)
        with inherit(pipe, {"rules": [{"nodes": "encoder", "schedule": {"mode": "explicit", "steps": [0]}}]}) as handle:
            with torch.no_grad(), handle.cache.generation(3):
                outputs = [unet(latents, 7, text).sample for _ in range(3)]
            assert len(handle.stats().reused["unet"]) == 3
    finally:
        pipe.disable_freeu()
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(("kind", "calls"), [("text", 5), ("xl", 5), ("control", 5), ("image", 3)])
def test_text_is_projected_once_a_generation(kind: str, calls: int, get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = get(kind, "heun")
    linear = torch.nn.Linear.forward
    names = {module: name for name, module in pipe.unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))}
    assert len(names) >= 32, "of every transformer"
    seen: list[str] = []

    def counting(self: torch.nn.Linear, value: Any) -> Any:
        seen.extend([names[self]] if self in names else [])
        return linear(self, value)

    monkeypatch.setattr(torch.nn.Linear, "forward", counting)
    for cache_text, times in ((True, 1), (False, calls), (True, 1)):
        seen.clear()
        with inherit(pipe, {"rules": [], "cache_text": cache_text}):
            draw(pipe)
        assert sorted(seen) == sorted([*names.values()] * times)


def test_text_is_projected_once_by_fused_projections_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipes.pipe()
    plain = draw(pipe)
    pipe.fuse_qkv_projections()
    names, linear, seen = dict[Any, str](), torch.nn.Linear.forward, list[str]()
    names |= {module: name for name, module in pipe.unet.named_modules() if name.endswith("attn2.to_kv")}

    def counting(self: torch.nn.Linear, value: Any) -> Any:
        seen.extend([names[self]] if self in names else [])
        return linear(self, value)

    monkeypatch.setattr(torch.nn.Linear, "forward", counting)
    with inherit(pipe, {"rules": [], "cache_text": True}) as handle:
        assert torch.allclose(draw(pipe), plain, atol=1e-5)
        assert (handle.stats().cache_bytes or 0) > 0
    assert sorted(seen) == sorted(names.values()) != []


@pytest.mark.parametrize("in_place", [False, True])
def test_text_that_changes_in_the_middle_is_projected_anew(in_place: bool, get: Get) -> None:
    pipe = get()

    def change(pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
        text = values["prompt_embeds"]
        if step == 1:
            return {"prompt_embeds": text.neg_() if in_place else text.flip(1)}
        return {}

    settings = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    pictures = [draw(pipe), draw(pipe, **settings)]
    for cache_text in (True, False):
        with inherit(pipe, {"rules": [], "cache_text": cache_text}):
            pictures.append(draw(pipe, **settings))
    assert [torch.equal(each, pictures[1]) for each in pictures] == [False, True, True, True]


def test_resnets_that_scale_and_shift_go_through_the_motions(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two halves of what was skipped."""
    pipe = get("text")
    monkeypatch.setattr(pipe, "unet", tiny.unet(tiny.shape("sd15", resnet_time_scale_shift="scale_shift")))
    plain = draw(pipe)
    with inherit(pipe, {"preset": "base-mask", "interval": 2}):
        inherited = draw(pipe)
    assert torch.isfinite(inherited).all()
    assert not torch.equal(inherited, plain)
