"""What is computed, what is not: DeepCache's branches by its own rule, and liveness by trying it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from asdm_cli.errors import ModelError
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import PRESETS, preset
from asdm_cli.unet.dataflow import CONV_IN, CONV_OUT, OUTSIDE, TIME, Dataflow
from asdm_cli.unet.surgery import remove
from tests.patches.shapes import SHAPES, unet

BRANCHES = [
    "up.3.1.attn", "up.3.0.attn", "up.2.sampler", "up.2.1.attn", "up.2.0.attn", "up.1.sampler",
    "up.1.1.attn", "up.1.0.attn", "up.0.sampler", "up.0.1.resnet", "up.0.0.resnet", "mid.1.resnet",
]  # fmt: skip
"""Of Stable Diffusion 1.x: what DeepCache keeps for its cache_branch_id 0 to 11."""


def deepcache_computes(branch: int) -> set[str]:
    """The published helper's rule for a skip step of SD 1.x, in its own counting: blocks and layers from the outside.

    Going down, a layer of the branch's block is skipped from the branch's layer on; going up, those above it are.
    A resampler counts as the layer after the last one going down, and as the first one going up.
    """
    block, layer = divmod(branch, 3)
    left = {CONV_IN, TIME, CONV_OUT}
    for level in range(4):
        attn = level < 3
        for index in range(2):
            if level < block or (level == block and index < layer):
                left |= {f"down.{level}.{index}.{unit}" for unit in ("resnet", "attn")[: 1 + attn]}
        if level < 3 and level < block:
            left.add(f"down.{level}.sampler")
        for index in range(3):
            if level < block or (level == block and index <= layer):
                left |= {f"up.{3 - level}.{2 - index}.{unit}" for unit in ("resnet", "attn")[: 1 + attn]}
        if level > 0 and level <= block:
            left.add(f"up.{3 - level}.sampler")
    return left


@pytest.mark.parametrize("branch", range(12))
def test_branches_of_sd15_are_deepcaches(branch: int) -> None:
    graph = Dataflow.of(Anatomy.of(preset("sd15")))
    kept = graph.branch(branch)
    assert kept == BRANCHES[branch]
    assert graph.live({kept: "output"}) - {kept} == deepcache_computes(branch)


def test_without_a_mid_block_nothing_lies_below_the_last_skip() -> None:
    graph = Dataflow.of(Anatomy.of(remove(preset("sd15"), "small").config))
    last = len(graph.skips) - 1
    assert graph.branch(last - 1) == "up.0.0.resnet"
    with pytest.raises(ModelError, match=f"nothing lies below this branch; the deepest is {last - 1}"):
        graph.branch(last)


@pytest.mark.parametrize("model", PRESETS)
def test_everything_is_live_where_nothing_is_inherited(model: str) -> None:
    graph = Dataflow.of(Anatomy.of(preset(model)))
    assert graph.live({}) == graph.reads.keys()
    assert len(graph.reads) > 30


@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from(sorted(SHAPES)))
def test_a_unit_is_live_if_its_output_changes_the_picture(data: st.DataObject, shape: str) -> None:
    anatomy = Anatomy.of(SHAPES[shape])
    graph = Dataflow.of(anatomy)
    units = [unit for unit in graph.reads if unit not in OUTSIDE]
    inherited = {
        unit: "output" if unit.endswith("sampler") else data.draw(st.sampled_from(["output", "residual"]))
        for unit in data.draw(st.sets(st.sampled_from(units), max_size=4))
    }
    modules = {unit: OUTSIDE[unit][0] if unit in OUTSIDE else anatomy.node(unit).modules[0] for unit in graph.reads}
    with ExitStack() as hooks:
        for unit, cache in inherited.items():
            branch = "" if cache == "output" else ".proj_out" if unit.endswith("attn") else ".conv2"
            hooks.enter_context(changed(unet(shape).get_submodule(modules[unit] + branch), frozen))
        plain = picture(shape)
        seen = set()
        for unit, module in modules.items():
            with changed(unet(shape).get_submodule(module), shaken):
                if not torch.equal(picture(shape), plain):
                    seen.add(unit)
    assert CONV_OUT in seen
    assert graph.live(inherited) == seen


@contextmanager
def changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The module's output, or the first of its outputs, is another one."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG001
        return (change(output[0]),) if isinstance(output, tuple) else change(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def frozen(value: Tensor) -> Tensor:
    """What does not depend on anything."""
    return torch.linspace(-1, 1, value.numel()).reshape(value.shape)


def shaken(value: Tensor) -> Tensor:
    return value + torch.randn(value.shape, generator=torch.Generator().manual_seed(0))


def picture(shape: str) -> Tensor:
    extra = {"text_embeds": torch.ones(1, 8), "time_ids": torch.ones(1, 6)} if shape == "deep" else {}
    latents, text = frozen(torch.empty(1, 4, 4, 4)), frozen(torch.empty(1, 4, 16))
    with torch.no_grad():
        return unet(shape)(latents, 500, text, added_cond_kwargs=extra).sample
