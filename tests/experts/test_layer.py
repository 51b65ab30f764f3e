"""Mixing is the formula, all ways to convolve are one, equal experts are one convolution, and every row is alone."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from asdm_cli.experts import layer
from asdm_cli.experts.layer import ROUTINGS, SUM_TO_ONE, WAYS, ExpertConv2d, TimestepContext, mix, wide_dtype
from asdm_cli.unet.blocks import Spec

WIDTH = 6
HALVES = (torch.bfloat16, torch.float16)
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "unbiased": {"kernel_size": 3, "bias": False},
    "oblong": {"kernel_size": (3, 1), "padding": (1, 0), "stride": (2, 1)},
}


def tensors(dtype: torch.dtype, size: int = 3, weights: str = "softmax") -> list[Tensor]:
    """Of three experts: input [4, 2, 5, 5], routing, bank, bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 2, 5, 5), (4, 3), (3 * 2, 2, size, size), (3 * 2,)]
    x, logits, bank, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return [x, ROUTINGS[weights](logits.double()).to(wide_dtype(x)), bank, bias]


def exact(x: Tensor, routing: Tensor, bank: Tensor, bias: Tensor, how: dict[str, Any]) -> Tensor:
    """In float64, expert by expert."""
    y = functional.conv2d(x.double(), bank.double(), bias.double(), **how)
    each = y.reshape(len(x), routing.shape[1], -1, *y.shape[2:])
    return torch.einsum("bk,bkohw->bohw", routing.double(), each)


def made(spec: Spec, conv: nn.Conv2d, timestep: Any, rows: int = 4) -> ExpertConv2d:
    """With a router and experts that are nobody's copies."""
    context = TimestepContext()
    context.announce(timestep)
    context.hear(conv, (), torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1)))
    expert = ExpertConv2d(conv, spec, WIDTH, context).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in expert.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return expert


def images(rows: int = 4) -> Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def by_hand(expert: ExpertConv2d, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A Conv2d per expert, in float64, and the sum of what they say."""
    routing, total = expert.router(x, expert.context).double(), torch.zeros(())
    for number in range(expert.spec.experts):
        one = copy.deepcopy(conv).double()
        one.weight.data.copy_(expert.weight.chunk(expert.spec.experts)[number])
        if one.bias is not None:
            one.bias.data.copy_(expert.bias.chunk(expert.spec.experts)[number])
        total = total + routing[:, number].reshape(-1, 1, 1, 1) * one(x.double())
    return total


@pytest.mark.parametrize("weights", SUM_TO_ONE)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@given(experts=st.integers(1, 9), width=st.integers(1, 3000), seed=st.integers(0, 99), scale=st.floats(0.01, 30))
@settings(max_examples=25, deadline=None)
def test_equal_experts_are_mixed_to_themselves(
    weights: str, dtype: torch.dtype, experts: int, width: int, seed: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    one = torch.randn(1, width, generator=generator).to(dtype)
    routing = ROUTINGS[weights](scale * torch.randn(3, experts, generator=generator))
    assert torch.equal(mix(routing, one.expand(experts, -1), True), one.expand(3, -1))


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("weights", ROUTINGS)
def test_gradients_of_every_way(name: str, weights: str) -> None:
    held = [each.requires_grad_() for each in tensors(torch.float64, weights=weights)]

    def way(*given: Tensor) -> Tensor:
        return WAYS[name](*given, weights in SUM_TO_ONE, {"stride": 2, "padding": 1})

    assert way(*held).dtype == torch.float64
    assert torch.autograd.gradcheck(way, held)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize(("dtype", "size", "sums"), list(product((torch.float32, *HALVES), (1, 3), (True, False))))
def test_all_ways_are_one_in_every_format(name: str, dtype: torch.dtype, size: int, sums: bool) -> None:
    """Beside float64, whatever the memory format; under autocast in its own format."""
    x, routing, bank, bias = tensors(dtype, size)
    how, eps = {"stride": 1, "padding": size // 2}, torch.finfo(dtype).eps
    wanted = exact(x, routing, bank, bias, how)
    for last in (False, True):
        if last:
            x, bank = (each.to(memory_format=torch.channels_last) for each in (x, bank))
        got = WAYS[name](x, routing, bank, bias, sums, how)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), wanted, atol=8 * eps, rtol=2 * eps)
    with torch.autocast("cpu", torch.bfloat16):
        cast = WAYS[name](x.float(), routing, bank.float(), bias.float(), sums, how)
    assert cast.dtype == torch.bfloat16
    assert float((cast.double() - wanted).abs().max()) <= 0.02 * float(wanted.abs().max())


@pytest.mark.parametrize("weights", SUM_TO_ONE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_that_weigh_nothing(weights: str, dtype: torch.dtype) -> None:
    """Weights of zero, wherever they stand, neither spoil the mixture nor its gradients."""
    experts = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    for chosen in range(4):
        logits = torch.full((1, 4), -500.0).index_fill_(1, torch.tensor([chosen]), 0.0).requires_grad_()
        mixed = mix(ROUTINGS[weights](logits), experts, True)
        assert torch.equal(mixed[0], experts[chosen])
        for grad in torch.autograd.grad((1e6 * mixed.float()).square().sum(), (logits, experts)):
            assert bool(grad.isfinite().all())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("sums", [True, False])
def test_half_precision_is_rounded_once(dtype: torch.dtype, sums: bool) -> None:
    """A mixed kernel is the nearest there is to the exact one, give or take what float32 rounds before."""
    generator = torch.Generator().manual_seed(0)
    experts = torch.randn(7, 50_000, generator=generator).to(dtype)
    routing = torch.softmax(2 * torch.randn(2, 7, generator=generator), 1)
    wanted = routing.double() @ experts.double()
    step = wanted.abs() * torch.finfo(dtype).eps
    assert bool(((mix(routing, experts, sums).double() - wanted).abs() <= 0.51 * step + 1e-6).all())


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("way", WAYS)
def test_convolves_as_its_conv2d_would(monkeypatch: pytest.MonkeyPatch, kind: str, way: str) -> None:
    """A kernel per row, or one for all rows of a time; drawing and learning."""
    monkeypatch.setattr(layer, "FASTEST", {"cpu": way})
    conv = nn.Conv2d(3, 5, **CONVOLUTIONS[kind])
    cases = [(Spec(3, "both", "softmax"), torch.arange(4), 4)]
    cases += [(Spec(3, "time", weights), 7, 1) for weights in ROUTINGS]
    for spec, timestep, rows in cases:
        expert = made(spec, conv, timestep, rows)
        wanted = by_hand(expert, conv, images())
        for learning in (False, True):
            with torch.set_grad_enabled(learning):
                got = expert(images())
            assert got.shape == wanted.shape
            torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_one_expert_and_copies_are_its_conv2d(kind: str) -> None:
    """Bit by bit where one kernel serves all rows, whatever the router holds; else to rounding."""
    conv = nn.Conv2d(3, 5, **CONVOLUTIONS[kind])
    for experts, rows in product((1, 4), (1, 4)):
        expert = ExpertConv2d(conv, Spec(experts, "features", "softmax"), WIDTH, TimestepContext()).eval()
        torch.nn.init.normal_(expert.router.features.weight)
        got, wanted = expert(images(rows)), conv(images(rows))
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)
        assert torch.equal(got, wanted) or (experts, rows) == (4, 4)
