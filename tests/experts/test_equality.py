"""Equal experts are one convolution; all ways to convolve are one; every row is on its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from asdm_cli.experts.layer import ExpertConv2d
from asdm_cli.experts.mixing import STRATEGIES, mix, mix_kernels
from asdm_cli.experts.router import ROUTINGS, SUM_TO_ONE, Clock
from asdm_cli.experts.spec import Spec

HOW = {"stride": 1, "padding": 1}


def layer(
    experts: int, router: str = "features", weights: str = "softmax", seed: int = 0
) -> tuple[ExpertConv2d, nn.Conv2d]:
    torch.manual_seed(seed)
    conv = nn.Conv2d(3, 5, 3, padding=1)
    clock = Clock()
    clock.announce(torch.zeros(2))
    clock.hear(conv, (), torch.randn(4, 6))
    return ExpertConv2d(conv, Spec(experts, router, weights), 6, clock).eval(), conv


@pytest.mark.parametrize("weights", SUM_TO_ONE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(experts=st.integers(1, 9), width=st.integers(1, 300_000), seed=st.integers(0, 99), scale=st.floats(0.01, 30))
@settings(max_examples=25, deadline=None)
def test_equal_experts_are_mixed_to_themselves(
    weights: str, dtype: torch.dtype, experts: int, width: int, seed: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    one = torch.randn(1, width, generator=generator).to(dtype)
    routing = ROUTINGS[weights](scale * torch.randn(3, experts, generator=generator))
    with torch.no_grad():
        assert torch.equal(mix(routing, one.expand(experts, -1), anchored=True), one.expand(3, -1))


def test_one_expert_is_a_conv2d() -> None:
    for weights in SUM_TO_ONE:
        expert, conv = layer(1, weights=weights)
        x = torch.randn(4, 3, 6, 6)
        with torch.no_grad():
            assert torch.equal(expert(x), conv(x))


@pytest.mark.parametrize("rows", [1, 4])
def test_copies_are_a_conv2d(rows: int) -> None:
    """Whatever the router chooses: bit by bit where one kernel serves all, else to rounding."""
    expert, conv = layer(4)
    x = torch.randn(rows, 3, 6, 6)
    with torch.no_grad():
        got, wanted = expert(x), conv(x)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)
    assert rows > 1 or torch.equal(got, wanted)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_all_ways_are_one(last: bool, anchored: bool, size: int, stride: int) -> None:
    torch.manual_seed(0)
    x, bank, bias = torch.randn(4, 3, 8, 8), torch.randn(3 * 5, 3, size, size), torch.randn(15)
    if last:
        x, bank = (each.to(memory_format=torch.channels_last) for each in (x, bank))
    routing = torch.softmax(torch.randn(4, 3), 1) * (1.0 if anchored else 1.7)
    how = {"stride": stride, "padding": size // 2}
    wanted = by_hand(x, routing, bank, bias, how)
    for name, way in STRATEGIES.items():
        got = way(x, routing, bank, bias, anchored, how)
        torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5, msg=name)
    assert len(STRATEGIES) == 3


def by_hand(x: Tensor, routing: Tensor, bank: Tensor, bias: Tensor, how: dict[str, int]) -> Tensor:
    """In float64, expert by expert."""
    kernels = bank.double().reshape(routing.shape[1], -1, *bank.shape[1:])
    biases = bias.double().reshape(routing.shape[1], -1)
    each = [functional.conv2d(x.double(), kernel, own, **how) for kernel, own in zip(kernels, biases, strict=True)]
    return torch.einsum("bk,kbohw->bohw", routing.double(), torch.stack(each))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_mixes_in_float32(dtype: torch.dtype) -> None:
    """Many small shares: summed in the bank's own format they would be lost beside the first."""
    routing = torch.tensor([[0.5, *[0.5 / 63] * 63]])
    bank = torch.ones(64, 1, 1, 1).to(dtype) * 2
    bank[1:] = 1.0078125  # of 8 bits, the last one set
    with torch.no_grad():
        mixed = mix_kernels(routing, bank, anchored=True)
    wanted = (routing.double() @ bank.double().reshape(64, 1)).to(dtype)
    assert torch.equal(mixed.reshape(1, 1), wanted)
    careless = torch.zeros(1, dtype=dtype)
    for share, kernel in zip(routing[0].to(dtype), bank.flatten(), strict=True):
        careless = careless + share * kernel
    assert not torch.equal(careless, wanted.flatten()), "the case shows nothing"


@pytest.mark.parametrize("name", STRATEGIES)
def test_rows_do_not_see_each_other(name: str) -> None:
    torch.manual_seed(0)
    x, bank, routing = torch.randn(5, 3, 8, 8), torch.randn(15, 3, 3, 3), torch.softmax(torch.randn(5, 3), 1)
    whole = STRATEGIES[name](x, routing, bank, None, True, HOW)
    order = torch.tensor([3, 0, 4, 2, 1])
    moved = STRATEGIES[name](x[order], routing[order], bank, None, True, HOW)
    torch.testing.assert_close(moved, whole[order], atol=1e-5, rtol=1e-5)
    for row in range(5):
        alone = STRATEGIES[name](x[row : row + 1], routing[row : row + 1], bank, None, True, HOW)
        torch.testing.assert_close(alone, whole[row : row + 1], atol=1e-5, rtol=1e-5)
        assert name != "loop" or torch.equal(alone, whole[row : row + 1])


@pytest.mark.parametrize("router", ["features", "time", "both"])
@pytest.mark.parametrize("weights", ROUTINGS)
def test_gradients_reach_every_expert_and_the_router(router: str, weights: str) -> None:
    """Against finite differences, in every tensor."""
    expert, _ = layer(3, router, weights)
    torch.manual_seed(1)
    with torch.no_grad():
        expert.weight.add_(0.3 * torch.randn_like(expert.weight))
    expert.train()
    x, probe = torch.randn(4, 3, 5, 5), torch.randn(4, 5, 5, 5)

    def value() -> Tensor:
        return (expert(x).double() * probe).sum()

    value().backward()
    seen = 0
    for name, tensor in expert.named_parameters():
        assert tensor.grad is not None, name
        assert tensor.grad.abs().sum() > 0, name
        for index in torch.randperm(tensor.numel())[:4]:
            before = tensor.data.flatten()[index].clone()
            ends = []
            for step in (5e-3, -5e-3):
                tensor.data.view(-1)[index] = before + step
                with torch.no_grad():
                    ends.append(value())
            tensor.data.view(-1)[index] = before
            slope, seen = float((ends[0] - ends[1]) / 1e-2), seen + 1
            assert float(tensor.grad.flatten()[index]) == pytest.approx(slope, abs=2e-2, rel=2e-2), name
    assert seen >= 12
    for part in expert.weight.grad.chunk(3):
        assert part.abs().sum() > 0
