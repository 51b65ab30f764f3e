"""An inherited call is the plain UNet's with old values put in by hand, and costs nothing for what only leads there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from asdm_cli.errors import ModelError
from asdm_cli.patches.feature_cache import FeatureCache
from asdm_cli.profiling.macs import OURS
from asdm_cli.recipe.patches import read_plan
from tests import tiny

TRANSFORMER = r"((down|up)_blocks\.\d|mid_block)\.attentions\.\d"
RESNET = r"((down|up)_blocks\.\d|mid_block)\.resnets\.\d"
INSIDE = r"((down|up)_blocks|mid_block)\..*"
NONE = "none"
CASES = {
    "a mask": ("base", r"(down|up)_blocks\.\d\.(resnets|attentions)\.1", rf"(?!up_blocks\.3\.\w+\.2){INSIDE}", 14),
    "mid": ("mid", "mid_block", NONE, 1),
    "a down block with its skips": ("down.1", r"down_blocks\.1", NONE, 1),
    "encoder": ("encoder", r"down_blocks\.\d|mid_block", NONE, 5),
    "resnets": ("*.resnet", RESNET, rf"conv_in|time_embedding.*|(?!up_blocks\.3\.attentions\.2){INSIDE}", 22),
    "resamplers": ("*.sampler", r".*samplers\.0", rf"(?!down_blocks\.0|up_blocks\.3){INSIDE}", 6),
    "self-attention": ("*.self", rf"{TRANSFORMER}\.transformer_blocks\.\d\.attn1", NONE, 16),
    "cross-attention": ("*.cross", rf"{TRANSFORMER}\.transformer_blocks\.\d\.attn2", NONE, 16),
    "feed-forward": ("*.ff", rf"{TRANSFORMER}\.transformer_blocks\.\d\.ff", NONE, 16),
    "deepcache.0": ("deepcache.0", r"up_blocks\.3\.attentions\.1", rf"(?!up_blocks\.3\.\w+\.2){INSIDE}", 1),
    "the outer level": ("level.0", r"(down_blocks\.0|up_blocks\.3)", rf"conv_in|time_embedding.*|{INSIDE}", 2),
}
"""Name -> nodes, the modules whose outputs are put in, those that need not run for it, how many are put in."""
BRANCHES = {
    "a mask": (
        "base",
        r"(down|up)_blocks\.\d\.(resnets|attentions)\.1\.(conv2|proj_out)",
        r"(down|up)_blocks\.\d\.(resnets|attentions)\.1\.(conv1|time_emb_proj|proj_in|transformer_blocks.*)",
        14,
    ),
    "resnets": ("*.resnet", rf"{RESNET}\.conv2", rf"{RESNET}\.(conv1|time_emb_proj)|time_embedding.*", 22),
    "transformers": ("*.attn", rf"{TRANSFORMER}\.proj_out", rf"{TRANSFORMER}\.(proj_in|transformer_blocks.*)", 16),
    "both": (
        ["*.resnet", "*.attn"],
        r".*\.(conv2|proj_out)",
        rf"{RESNET}\.conv1|.*time_emb.*|{TRANSFORMER}\.(proj_in|transformer_blocks.*)",
        38,
    ),
}
"""The same for residual branches."""
DEEP = {"self-attention": 28, "cross-attention": 28, "feed-forward": 28}
"""How many are put in where transformers have several blocks (of SHAPES["sdxl"])."""
DEPTH = r"(down_blocks\.2|up_blocks\.0|mid_block)\.attentions\.\d\.transformer_blocks"
DEPTHS = {
    "output": (rf"{DEPTH}\.1", rf"{DEPTH}\.0(\..*)?", 6),
    "residual": (rf"{DEPTH}\.1\.(attn1|attn2|ff)", NONE, 18),
}
"""The same for the second of three blocks of every depth (`*.attn.1`), by what is inherited: what is put in, what need
not run for it, how many."""

Call = Callable[[UNet2DConditionModel], Tensor]


@cache
def unet(shape: str) -> UNet2DConditionModel:
    return tiny.unet(tiny.SHAPES[shape])


def call(model: UNet2DConditionModel, number: int) -> Tensor:
    """The first or second call of a generation: other latents, other time, the same text."""
    draw = torch.Generator().manual_seed(number)
    extra = {"text_embeds": torch.ones(2, 8), "time_ids": torch.ones(2, 6)} if model.config.addition_embed_type else {}
    text = torch.linspace(-1, 1, 2 * 16 * 16).reshape(2, 16, 16)
    with torch.no_grad():
        return model(torch.randn(2, 4, 8, 8, generator=draw), 900 - 300 * number, text, added_cond_kwargs=extra).sample


def put_in(model: UNet2DConditionModel, modules: list[str]) -> Tensor:
    """The second call, with what these modules returned at the first."""
    kept: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: kept.__setitem__(name, output)  # noqa: ARG005

    def give(name: str) -> Callable[..., Any]:
        return lambda module, args, output: kept[name]  # noqa: ARG005

    for number, hook in enumerate((keep, give)):
        with ExitStack() as hooks:
            for name in modules:
                hooks.callback(model.get_submodule(name).register_forward_hook(hook(name)).remove)
            output = call(model, number)
    assert kept.keys() == set(modules)
    return output


def own_flops(counter: FlopCounterMode) -> dict[str, int]:
    """Module -> what was counted in it, but not in a module below; those with nothing are left out."""
    total = {name: sum(each.values()) for name, each in counter.get_flop_counts().items() if name != "Global"}
    own = Counter(total)
    for name, flops in total.items():
        parent = name
        while "." in parent:
            parent = parent.rpartition(".")[0]
            if parent in total:
                own[parent] -= flops
                break
    return {name.partition(".")[2]: flops for name, flops in own.items() if flops}


@cache
def fresh(shape: str) -> tuple[Tensor, dict[str, int]]:
    """The second call computed in full, and where its operations are."""
    with FlopCounterMode(display=False, custom_mapping=OURS) as counter:
        output = call(unet(shape), 1)
    flops = own_flops(counter)
    assert len(flops) > 200
    return output, flops


def check(shape: str, nodes: str | list[str], cache: str, put: str, gone: str, count: int) -> None:
    model = unet(shape)
    modules = [name for name, _ in model.named_modules() if re.fullmatch(put, name)]
    assert len(modules) == count
    by_hand = put_in(model, modules)
    computed, everything = fresh(shape)
    rule = {"nodes": nodes, "cache": cache, "schedule": {"mode": "explicit", "steps": [0]}}
    engine = FeatureCache(model, read_plan({"rules": [rule], "cache_text": False}))
    try:
        with engine.generation(2):
            call(model, 0)
            with FlopCounterMode(display=False, custom_mapping=OURS) as inherited:
                output = call(model, 1)
    finally:
        engine.remove()
    assert torch.equal(output, by_hand)
    assert not torch.equal(output, computed)
    left = {name: flops for name, flops in everything.items() if not re.fullmatch(rf"({put})(\..*)?|{gone}", name)}
    assert own_flops(inherited) == left
    assert len(left) < len(everything)


@pytest.mark.parametrize("name", CASES)
def test_outputs(name: str) -> None:
    nodes, put, gone, count = CASES[name]
    check("sd15", nodes, "output", put, gone, count)


@pytest.mark.parametrize("name", BRANCHES)
def test_residual_branches(name: str) -> None:
    nodes, put, gone, count = BRANCHES[name]
    check("sd15", nodes, "residual", put, gone, count)


def test_branches_with_linear_projections() -> None:
    nodes, put, gone, _ = BRANCHES["transformers"]
    check("sdxl", nodes, "residual", put, gone, 11)


@pytest.mark.parametrize("name", DEEP)
def test_inside_deep_transformers(name: str) -> None:
    nodes, put, gone, _ = CASES[name]
    check("sdxl", nodes, "output", put, gone, DEEP[name])


@pytest.mark.parametrize("cache", DEPTHS)
def test_one_block_of_a_depth(cache: str) -> None:
    put, gone, count = DEPTHS[cache]
    check("sdxl", ["down.2.*.attn.1", "mid.*.attn.1", "up.0.*.attn.1"], cache, put, gone, count)


def test_a_block_of_a_depth_that_is_not_read_is_not_taken_for_stored() -> None:
    """The third block's output is reused where the second has a key step; later the second is reused, and hands on
    what it computed last, at the first call."""
    model, inner = unet("sdxl"), "mid_block.attentions.0.transformer_blocks"
    later, sooner = ({"nodes": f"mid.0.attn.{k}", "schedule": {"mode": "explicit", "steps": steps}}
                     for k, steps in ((2, [0, 2]), (1, [0, 1])))  # fmt: skip
    alone, kept = [later], []
    handle = model.get_submodule(f"{inner}.1").register_forward_hook(lambda module, args, output: kept.append(output))  # noqa: ARG005
    try:
        call(model, 0)
    finally:
        handle.remove()
    for rules in (alone, [later, sooner]):
        cache = FeatureCache(model, read_plan({"rules": rules, "cache_text": False}))
        try:
            with cache.generation(3):
                outputs = [call(model, number) for number in range(3)]
        finally:
            cache.remove()
        alone = alone if rules is not alone else outputs
    assert all(torch.equal(*pair) for pair in zip(outputs[:2], alone[:2], strict=True))
    handle = model.get_submodule(f"{inner}.1").register_forward_hook(lambda module, args, output: kept[0])  # noqa: ARG005
    try:
        assert torch.equal(call(model, 2), outputs[2])
    finally:
        handle.remove()


def test_a_block_of_a_depth_and_a_sub_unit_of_it_are_no_two_rules() -> None:
    schedule = {"mode": "uniform", "interval": 2}
    rules = [{"nodes": nodes, "cache": "residual", "schedule": schedule} for nodes in ("*.self", "mid.0.attn.1")]
    with pytest.raises(ModelError, match=r"rules\[1\]\.nodes: mid\.0\.attn\.1 shares .* mid\.0\.self of rules\[0\]"):
        FeatureCache(unet("sdxl"), read_plan({"rules": rules}))
