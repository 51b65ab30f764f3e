"""Sums over experts are made in float32 or more: gradients in float64, half precision, autocast, several threads."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from asdm_cli.experts import mixing
from asdm_cli.experts.mixing import STRATEGIES, mix, mix_kernels, wide_dtype
from asdm_cli.experts.router import ROUTINGS, SUM_TO_ONE

HALVES = (torch.bfloat16, torch.float16)


def tensors(dtype: torch.dtype, size: int = 3, weights: str = "softmax") -> list[Tensor]:
    """Of three experts: input [4, 2, 5, 5], logits, bank, bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 2, 5, 5), (4, 3), (3 * 2, 2, size, size), (3 * 2,)]
    x, logits, bank, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return [x, ROUTINGS[weights](logits.double()).to(wide_dtype(x)), bank, bias]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("weights", ROUTINGS)
def test_gradients_of_every_way(name: str, weights: str) -> None:
    x, routing, bank, bias = (each.requires_grad_() for each in tensors(torch.float64, weights=weights))
    how = {"stride": 2, "padding": 1}

    def way(*given: Tensor) -> Tensor:
        return STRATEGIES[name](*given, weights in SUM_TO_ONE, how)

    assert way(x, routing, bank, bias).dtype == torch.float64
    assert torch.autograd.gradcheck(way, (x, routing, bank, bias))


@pytest.mark.parametrize("weights", ROUTINGS)
def test_gradients_of_mixing(weights: str) -> None:
    """With and without channels last, and through what makes weights of a router's answers."""
    _, _, bank, _ = tensors(torch.float64)
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    anchored = weights in SUM_TO_ONE
    for memory_format in (torch.contiguous_format, torch.channels_last):
        held = bank.to(memory_format=memory_format).requires_grad_()
        assert torch.autograd.gradcheck(lambda a, b: mix_kernels(ROUTINGS[weights](a), b, anchored), (logits, held))


def test_channels_last_banks_mix_alike_and_stay_so() -> None:
    _, routing, bank, _ = tensors(torch.float32)
    last = bank.to(memory_format=torch.channels_last)
    for anchored in (True, False):
        got = mix_kernels(routing, last, anchored)
        torch.testing.assert_close(got, mix_kernels(routing, bank, anchored), atol=1e-6, rtol=1e-6)
        assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("anchored", [True, False])
def test_half_precision_beside_float64(name: str, dtype: torch.dtype, size: int, anchored: bool) -> None:
    x, routing, bank, bias = tensors(dtype, size)
    how = {"stride": 1, "padding": size // 2}
    with torch.no_grad():
        got = STRATEGIES[name](x, routing, bank, bias, anchored, how)
    assert got.dtype == dtype
    each = functional.conv2d(x.double(), bank.double(), bias.double(), **how).reshape(4, 3, 2, 5, 5)
    wanted = torch.einsum("bk,bkohw->bohw", routing.double(), each)
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), wanted, atol=8 * ulp, rtol=2 * ulp)


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("learning", [True, False])
def test_autocast_does_not_reach_mixing(anchored: bool, learning: bool) -> None:
    _, routing, bank, _ = tensors(torch.float32)
    bank = bank.requires_grad_(learning)
    wanted = mix_kernels(routing, bank, anchored)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(learning):
        assert torch.equal(mix_kernels(routing, bank, anchored), wanted)
        careless = routing @ bank.reshape(3, -1)
    assert (careless.float().reshape(wanted.shape) - wanted).abs().max() > 1e-3, "the case shows nothing"


def test_outputs_of_experts_are_summed_in_float32_under_autocast() -> None:
    """0.3 x 7 - 0.7 x 3: nothing is left of it, unless the weights are rounded first."""
    routing, bank = torch.tensor([[0.3, 0.7]]), torch.tensor([7.0, -3.0]).reshape(2, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        got = STRATEGIES["separate"](torch.ones(1, 1, 1, 1), routing, bank, None, True, {})
        careless = torch.einsum("bk,kc->bc", routing, bank.reshape(2, 1))
    assert got.dtype == torch.bfloat16
    assert abs(float(got)) < 1e-5
    assert abs(float(careless)) > 1e-3, "the case shows nothing"


THREADS = """
import threading
import torch
from asdm_cli.experts import mixing

torch.set_num_threads(2)
torch.manual_seed(0)
mixing.CHUNK = 1000
routing = torch.softmax(torch.randn(2, 3), 1)
experts = torch.randn(3, 9_500)
with torch.no_grad():
    for anchored in (True, False):
        got = mixing.mix(routing, experts, anchored)
        wanted = routing.double() @ experts.double()
        assert (got - wanted).abs().max() < 1e-5
    with torch.inference_mode():
        assert mixing.mix(routing, experts, True).is_inference()
assert mixing._workers.cache_info().misses == 1, "one pool of threads did it"
assert set(mixing._workers(2).map(lambda _: torch.get_num_threads(), range(4))) == {1}
later = []
thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
thread.start()
thread.join()
assert later == [2] and torch.get_num_threads() == 2, (later, torch.get_num_threads())
print("alike")
"""


def test_stretches_on_threads_are_mixed_alike_and_leave_torchs_own_alone() -> None:
    """In a process of its own, whose threads no other test needs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", THREADS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert done.stdout == "alike\n", done.stderr[-2000:]


def test_what_is_counted_stays_on_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter of operations sees one thread only."""
    from asdm_cli.profiling.macs import mac_counter, tally

    monkeypatch.setattr(mixing, "CHUNK", 10)
    monkeypatch.setattr(mixing.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(mixing, "_workers", lambda *_: pytest.fail("other threads"))
    routing, experts = torch.softmax(torch.randn(2, 3), 1), torch.randn(3, 100)
    counts: dict[bool, Any] = {}
    for anchored in (True, False):
        with torch.no_grad(), mac_counter() as counter:
            mix(routing, experts, anchored)
        counts[anchored] = tally(counter).total
    assert counts == {True: 2 * 2 * 100, False: 2 * 3 * 100}
