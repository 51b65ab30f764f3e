"""Mixing is the formula: gradients as one kernel's, weights of nothing, one rounding, as many threads as there are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from asdm_cli.experts import mixing
from asdm_cli.experts.mixing import STRATEGIES, mix, mix_kernels, shared
from asdm_cli.experts.router import ROUTINGS, SUM_TO_ONE

HOW = {"stride": 1, "padding": 1}


def drawn(rows: int, experts: int, weights: str = "softmax", scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return ROUTINGS[weights](scale * torch.randn(rows, experts, generator=generator))


@pytest.fixture
def threads() -> Iterator[None]:
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("anchored", [True, False])
def test_gradients_of_one_kernel_for_all(anchored: bool) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(*shape, dtype=torch.float64) for shape in ((2, 2, 4, 4), (1, 3), (6, 2, 3, 3), (6,))]
    tensors[1] = torch.softmax(tensors[1], 1)

    def result(*given: Tensor) -> Tensor:
        return shared(*given, anchored, HOW)

    assert torch.autograd.gradcheck(result, [each.requires_grad_() for each in tensors])


@pytest.mark.parametrize("weights", SUM_TO_ONE)
@pytest.mark.parametrize("name", STRATEGIES)
def test_equal_experts_learn_as_one(name: str, weights: str) -> None:
    """Their gradients are shares of what the one kernel would get."""
    torch.manual_seed(0)
    kernel = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    bank = kernel.detach().repeat(3, 1, 1, 1).requires_grad_()
    x, routing = torch.randn(2, 3, 6, 6, dtype=torch.float64), drawn(2, 3, weights).double()
    functional.conv2d(x, kernel, **HOW).square().sum().backward()
    STRATEGIES[name](x, routing, bank, None, True, HOW).square().sum().backward()
    torch.testing.assert_close(torch.stack(bank.grad.chunk(3)).sum(0), kernel.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weights", SUM_TO_ONE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_that_weigh_nothing(weights: str, dtype: torch.dtype) -> None:
    """Weights of zero, wherever they stand, neither spoil the mixture nor its gradients."""
    experts = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    for chosen in range(4):
        logits = torch.full((1, 4), -500.0)
        logits[0, chosen] = 0
        logits.requires_grad_()
        routing = ROUTINGS[weights](logits)
        assert routing.tolist() == [[float(number == chosen) for number in range(4)]]
        mixed = mix(routing, experts, anchored=True)
        assert torch.equal(mixed[0], experts[chosen])
        for grad in torch.autograd.grad((1e6 * mixed.float()).square().sum(), (logits, experts)):
            assert bool(grad.isfinite().all())
        with torch.no_grad():
            assert torch.equal(mix(routing, experts, anchored=True)[0], experts[chosen])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("anchored", [True, False])
def test_half_precision_is_rounded_once(dtype: torch.dtype, anchored: bool) -> None:
    """A mixed kernel is the nearest there is to the exact one, give or take what float32 rounds before."""
    torch.manual_seed(0)
    experts, routing = torch.randn(7, 50_000).to(dtype), drawn(2, 7)
    exact = routing.double() @ experts.double()
    with torch.no_grad():
        mixed = mix(routing, experts, anchored)
    step = exact.abs() * torch.finfo(dtype).eps
    assert bool(((mixed.double() - exact).abs() <= 0.51 * step + 1e-6).all())


@pytest.mark.parametrize("name", STRATEGIES)
def test_autocast_convolves_in_its_own_format(name: str) -> None:
    torch.manual_seed(0)
    x, bank, routing = torch.randn(2, 3, 6, 6), torch.randn(8, 3, 3, 3), drawn(2, 2)
    plain = STRATEGIES[name](x, routing, bank, None, True, HOW)
    with torch.autocast("cpu", torch.bfloat16):
        got = STRATEGIES[name](x, routing, bank, None, True, HOW)
    assert got.dtype == torch.bfloat16
    assert float((got.float() - plain).abs().max()) <= 0.02 * float(plain.abs().max())


@pytest.mark.parametrize("learning", [False, True])
def test_kernels_keep_their_memory_format(learning: bool) -> None:
    torch.manual_seed(0)
    bank, routing = torch.randn(15, 4, 3, 3), drawn(2, 3)
    formats = (torch.contiguous_format, torch.channels_last)
    banks = [bank.clone(memory_format=each).requires_grad_(learning) for each in formats]
    plain, moved = (mix_kernels(routing, each, True) for each in banks)
    assert plain.is_contiguous()
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert not moved.is_contiguous()
    assert torch.equal(plain, moved)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("anchored", [True, False])
def test_threads_mix_what_one_does(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, anchored: bool) -> None:
    """Bit by bit, and in whatever mode the caller is."""
    monkeypatch.setattr(mixing, "CHUNK", 1000)
    torch.manual_seed(0)
    experts, routing = torch.randn(3, 20_300).to(dtype), drawn(2, 3)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            together = mix(routing, experts, anchored)
            assert torch.get_num_threads() == 3
            torch.set_num_threads(1)
            alone = mix(routing, experts, anchored)
            torch.set_num_threads(3)
        assert torch.equal(together, alone)
        assert together.is_inference() == alone.is_inference()
