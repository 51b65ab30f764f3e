"""Counting a whole image: by hand for small things, against the meta device for models."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from asdm_cli.errors import RunError
from asdm_cli.models.directory import find
from asdm_cli.models.load import load_pipeline
from asdm_cli.models.schedulers import set_sampler
from asdm_cli.profiling.macs import OURS, Count, Counts, MacCounter, count
from asdm_cli.unet import flops
from tests import tiny

CALL = flops.macs(tiny.shape("sd15"), tokens=tiny.TOKENS)


@pytest.fixture
def pipe(tiny_pipeline: Path) -> Any:
    return load_pipeline(find(str(tiny_pipeline)), torch.device("cpu"), torch.float32)


def counted(pipe: Any, guidance: float = 3.0) -> Counts:
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return count("a", networks, partial(pipe, "x", num_inference_steps=4, guidance_scale=guidance))


def test_convolution_linear_and_attention_by_hand() -> None:
    convolution, linear = nn.Conv2d(3, 5, kernel_size=3, padding=1, stride=2), nn.Linear(7, 11, bias=False)
    heads, queries, keys, width = 4, 6, 9, 8
    query, key = torch.randn(2, heads, queries, width), torch.randn(2, heads, keys, width)
    with torch.no_grad(), MacCounter() as counter:
        convolution(torch.randn(2, 3, 8, 8))
        linear(torch.randn(2, 13, 7))
        scaled_dot_product_attention(query, key, key)
    weights = 2 * (4 * 4) * 5 * (3 * 3 * 3) + 2 * 13 * 7 * 11
    attention = 2 * heads * queries * keys * (width + width)
    assert counter.tally() == Count(total=weights + attention, plain=weights)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_projection_is_none_of_attentions_products_whether_it_learns_or_not(mode: Any, rows: int) -> None:
    linear, hidden = nn.Linear(7, 11), torch.randn(rows, 7, 13).transpose(1, 2)
    for learns in (True, False):
        linear.requires_grad_(learns)
        with mode(), MacCounter(linear.parameters()) as counter:
            linear(hidden)
            hidden @ hidden.transpose(1, 2)
        assert counter.tally() == Count(total=rows * 13 * 7 * (11 + 13), plain=rows * 13 * 7 * 11)


@pytest.mark.parametrize(("sampler", "calls"), [("own", 4), ("pndm", 5), ("heun", 7)])
def test_unet_calls_are_those_that_the_sampler_made(pipe: Any, sampler: str, calls: int) -> None:
    set_sampler(pipe, sampler)
    seen = counted(pipe)
    assert (seen.calls, seen.rows) == (calls, 2 * calls)


def test_components_count_what_the_meta_device_counts_and_no_hook_stays(pipe: Any) -> None:
    seen = counted(pipe)
    assert seen.components["unet"] == Count(CALL.total * seen.rows, CALL.plain * seen.rows)
    assert set(seen.components) == {"unet", "text_encoder", "vae"}
    assert seen.whole.total == sum(each.total for each in seen.components.values())
    assert seen.components["text_encoder"].total > seen.components["text_encoder"].plain > 0
    parts = (pipe.unet, pipe.text_encoder, pipe.vae)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    with torch.no_grad(), MacCounter() as counter:
        pipe.vae.to("meta").decode(torch.randn(1, 4, 8, 8, device="meta"))
    assert seen.components["vae"] == counter.tally()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_operators_are_counted_as_torch_counts_them(mode: Any, pipe: Any) -> None:
    theirs, ours = FlopCounterMode(display=False, custom_mapping=OURS), MacCounter()
    for counter in (theirs, ours):
        with mode(), counter:
            pipe("x", num_inference_steps=2)
    flops = theirs.get_flop_counts()["Global"]
    assert len(flops) >= 3, "convolutions, matrices, attention"
    assert flops == ours.flops


def test_without_guidance_there_is_one_latent_per_call_and_one_text(pipe: Any) -> None:
    guided, plain = counted(pipe), counted(pipe, guidance=1.0)
    assert (plain.calls, plain.rows) == (4, 4)
    for component in ("unet", "text_encoder"):
        assert guided.components[component].total == 2 * plain.components[component].total
    assert guided.components["vae"] == plain.components["vae"]


def test_who_cannot_draw_is_named() -> None:
    with pytest.raises(RunError, match="a: drawing an image to count its operations failed"):
        count("a", {}, lambda: 1 / 0)
