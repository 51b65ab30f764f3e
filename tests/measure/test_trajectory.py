"""Counting a whole image: by hand for small things, against the meta device for models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from asdm_cli.measure.contestants import Contestant, build
from asdm_cli.measure.trajectory import Count, count_image, mac_counter, tally
from tests.measure.entrants import drawing, protocol


def test_convolution_linear_and_attention_by_hand() -> None:
    convolution, linear = nn.Conv2d(3, 5, kernel_size=3, padding=1, stride=2), nn.Linear(7, 11, bias=False)
    heads, queries, keys, width = 4, 6, 9, 8
    query, key = torch.randn(2, heads, queries, width), torch.randn(2, heads, keys, width)
    with torch.no_grad(), mac_counter() as counter:
        convolution(torch.randn(2, 3, 8, 8))
        linear(torch.randn(2, 13, 7))
        scaled_dot_product_attention(query, key, key)
    weights = 2 * (4 * 4) * 5 * (3 * 3 * 3) + 2 * 13 * 7 * 11
    attention = 2 * heads * queries * keys * (width + width)
    assert tally(counter) == Count(total=weights + attention, plain=weights)


@pytest.mark.parametrize(("sampler", "calls"), [("own", 4), ("pndm", 5), ("heun", 7)])
def test_unet_calls_are_those_that_the_sampler_made(tiny_pipeline: Path, sampler: str, calls: int) -> None:
    seen = count_image(build(drawing(tiny_pipeline, steps=4), protocol(sampler=sampler)))
    assert (seen.calls, seen.rows) == (calls, 2 * calls)


def test_components_count_what_the_meta_device_counts(tiny_pipeline: Path) -> None:
    contestant = build(drawing(tiny_pipeline), protocol())
    seen = count_image(contestant)
    call = contestant.entrant.macs
    assert seen.components["unet"] == Count(call.total * seen.rows, call.plain * seen.rows)
    assert seen.components["vae"] == _decoding(contestant)
    assert set(seen.components) == {"unet", "text_encoder", "vae"}
    assert seen.whole.total == sum(count.total for count in seen.components.values())
    assert seen.components["text_encoder"].total > seen.components["text_encoder"].plain > 0


def test_without_guidance_there_is_one_latent_per_call_and_one_text(tiny_pipeline: Path) -> None:
    guided = count_image(build(drawing(tiny_pipeline), protocol(guidance=3.0)))
    plain = count_image(build(drawing(tiny_pipeline), protocol(guidance=1.0)))
    assert (plain.calls, plain.rows) == (4, 4)
    for component in ("unet", "text_encoder"):
        assert guided.components[component].total == 2 * plain.components[component].total
    assert guided.components["vae"] == plain.components["vae"]


def test_what_a_call_skips_is_not_counted(tiny_pipeline: Path) -> None:
    contestant = build(drawing(tiny_pipeline), protocol())
    whole = count_image(contestant)
    contestant.unet.mid_block.forward = lambda hidden, *_, **__: hidden
    skipped = count_image(contestant)
    saved = contestant.entrant.macs.blocks["mid"] * whole.rows
    assert saved > 0
    assert whole.components["unet"].total - skipped.components["unet"].total == saved


def test_counting_leaves_no_hook_behind(tiny_pipeline: Path) -> None:
    contestant = build(drawing(tiny_pipeline), protocol())
    count_image(contestant)
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in contestant.components.values()]
    assert hooks == [0, 0, 0]


def _decoding(contestant: Contestant) -> Count:
    assert contestant.pipe is not None
    with torch.no_grad(), mac_counter() as counter:
        contestant.pipe.vae.to("meta").decode(torch.randn(1, *contestant.entrant.latent, device="meta"))
    return tally(counter)
