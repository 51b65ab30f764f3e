"""Plans run on every UNet that the toolkit writes, not only on stock ones."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from diffusers import (
    DiTPipeline,
    Kandinsky3UNet,
    UNet2DConditionModel,
    UNet2DModel,
    UNetControlNetXSModel,
    UNetMotionModel,
)

import asdm_cli
from asdm_cli import inherit
from asdm_cli.errors import ModelError
from asdm_cli.unet.surgery import remove
from tests import tiny
from tests.patches import pipes
from tests.patches.pipes import draw

UNETS: dict[str, dict[str, Any]] = {
    **{f"sd15 {name}": remove(tiny.SHAPES["sd15"], name).config for name in ("base", "small", "tiny")},
    **{f"sdxl {name}": remove(tiny.SHAPES["sdxl"], name).config for name in ("base", "small")},
    "sd21 small": remove(tiny.SHAPES["sd21"], "small").config,
    "sd15 uneven": remove(tiny.SHAPES["sd15"], ["down.0.1", "up.3.1", "down.2.1", "up.1.1"]).config,
    "sdxl uneven": remove(tiny.SHAPES["sdxl"], ["down.1.1", "up.1.1", "mid"]).config,
    "sd15 without outer transformers": remove(tiny.SHAPES["sd15"], ["down.0.*.attn", "up.3.*.attn"]).config,
}
NODES: list[tuple[Any, str]] = [
    ("deepcache.0", "output"),
    ("encoder", "output"),
    (["up.*.1", "down.*.0"], "output"),
    ("*.cross", "output"),
    ("*.resnet", "residual"),
    ("*.attn", "residual"),
]


@cache
def unet(name: str) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny.unet(UNETS[name])


@pytest.mark.parametrize("name", UNETS)
def test_plans_run(name: str) -> None:
    pipe = pipes.pipe("xl" if name.startswith("sdxl") else "text", unet=unet(name))
    plain = draw(pipe, 2)
    for nodes, what in NODES:
        rule = {"nodes": nodes, "cache": what, "schedule": {"mode": "explicit", "steps": [0]}}
        with inherit(pipe, {"rules": [rule]}) as handle:
            latents = draw(pipe, 2)
            assert handle.stats().reused["unet"] == [frozenset(), {0}]
        assert latents.isfinite().all()
        assert not torch.equal(latents, plain)
    assert torch.equal(draw(pipe, 2), plain)


@pytest.mark.parametrize(
    ("name", "plan", "message"),
    [
        ("sd15 base", {"preset": "base-mask"}, "rules[0].nodes: base: this UNet lacks all of it already"),
        ("sd15 tiny", {"preset": "deepcache", "branch": 6}, "rules[0].nodes: deepcache.6: this UNet has the branches"),
        (
            "sd15 small",
            {"rules": [{"nodes": ["encoder", "midd"], "schedule": {"mode": "uniform", "interval": 2}}]},
            "rules[0].nodes: midd: this UNet has no such address",
        ),
        (
            "sd15 uneven",
            {
                "rules": [
                    {"nodes": "down.*", "schedule": {"mode": "uniform", "interval": 2}},
                    {"nodes": "down.1.0", "schedule": {"mode": "uniform", "interval": 3}},
                ]
            },
            "rules[1].nodes: every node it names belongs to an earlier rule",
        ),
        (
            "sd15 uneven",
            {"rules": [{"nodes": "*.sampler", "cache": "residual", "schedule": {"mode": "uniform", "interval": 2}}]},
            "rules[0].nodes: every node it names belongs to an earlier rule, or has no residual branch (resamplers)",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_its_place_and_leaves_no_trace(
    name: str, plan: dict[str, Any], message: str
) -> None:
    pipe = pipes.pipe(unet=unet(name))
    with pytest.raises(ModelError) as caught:
        inherit(pipe, plan)
    assert message in str(caught.value)
    assert type(pipe) is pipes.KINDS["text"]
    assert not [each for each in pipe.unet.modules() if hasattr(each, "_diffusers_hook")]


def test_pipelines_without_a_unet_are_refused() -> None:
    class Other:
        transformer = torch.nn.Identity()

    with pytest.raises(ModelError, match="Other: is no diffusers pipeline"):
        inherit(Other(), {"rules": []})  # type: ignore[arg-type]
    dit: Any = DiTPipeline.__new__(DiTPipeline)
    dit.transformer = torch.nn.Identity()
    with pytest.raises(ModelError, match="it has a transformer, and DiTs are not supported"):
        inherit(dit, {"rules": []})


@pytest.mark.parametrize("kind", [UNet2DModel, Kandinsky3UNet, UNetControlNetXSModel, UNetMotionModel])
def test_unets_of_other_classes_are_refused_by_their_name(kind: type) -> None:
    """None of them is called as a UNet2DConditionModel is, or has its blocks."""
    other, pipe = kind.__new__(kind), pipes.pipe()
    torch.nn.Module.__init__(other)
    with pytest.raises(ModelError, match=f"unets: b is a {kind.__name__}; only UNet2DConditionModel"):
        asdm_cli.switch(pipe, {"a": pipe.unet, "b": other}, [{"unet": "a"}])
    pipe.unet = other
    for put in (lambda: inherit(pipe, {"rules": []}), lambda: asdm_cli.switch(pipe, {"a": other}, [{"unet": "a"}])):
        with pytest.raises(ModelError, match=f"its UNet is a {kind.__name__}; only UNet2DConditionModel"):
            put()
