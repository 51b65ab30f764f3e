"""An expert is the Conv2d that it stands for, a row gets the expert of its timestep, and a call knows its own time."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from asdm_cli.experts import layer
from asdm_cli.experts.layer import ExpertConv2d, Share, TimestepContext
from asdm_cli.unet.blocks import Spec

CPU = torch.device("cpu")
SPEC = Spec(3)
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "unbiased": {"kernel_size": 3, "bias": False},
    "oblong": {"kernel_size": (3, 1), "padding": (1, 0), "stride": (2, 1)},
}
TIMES: dict[str, Any] = {
    "a number": 500,
    "a tensor": torch.tensor(999),
    "all alike": torch.tensor(500.0).expand(4),
    "fractions": torch.tensor([332.9, 333.4, 0.0, 700.5]),
    "rows of one": torch.tensor([10, 20, 30, 40]),
    "rows of all": torch.tensor([900, 10, 500, 20]),
}


def made(conv: nn.Conv2d, timestep: Any, spec: Spec = SPEC) -> ExpertConv2d:
    """Of experts that are nobody's copies."""
    context = TimestepContext()
    context.announce(timestep)
    expert = ExpertConv2d(conv, spec, context)
    generator = torch.Generator().manual_seed(2)
    for parameter in expert.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return expert


def images(rows: int = 4) -> Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def by_hand(expert: ExpertConv2d, conv: nn.Conv2d, x: Tensor, timestep: Any) -> Tensor:
    """Row by row, a Conv2d of its own each."""
    times = torch.as_tensor(timestep, dtype=torch.float64).expand(len(x))
    answers = []
    for row, time in zip(x.split(1), times.tolist(), strict=True):
        one, number = copy.deepcopy(conv), int(time / (1000 / 3))
        for part, tensor in one.named_parameters():
            tensor.data.copy_(getattr(expert, part).detach().chunk(3)[number])
        answers.append(one(row))
    return torch.cat(answers)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("far", [False, True])
def test_each_row_is_convolved_by_the_expert_of_its_timestep(
    kind: str, times: str, last: bool, far: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing and learning, in either memory format; also where only a `far` device knows the timestep of all rows."""
    monkeypatch.setattr(layer, "readable", lambda _: not far)
    conv, timestep = nn.Conv2d(3, 5, **CONVOLUTIONS[kind]), TIMES[times]
    expert, x = made(conv, timestep), images()
    if last:
        expert, x = expert.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    wanted = by_hand(expert, conv, x, timestep)
    for learning in (True, False):
        with torch.set_grad_enabled(learning):
            expert.context.announce(timestep)
            got = expert(x)
            share = expert.context.share(SPEC, CPU)
        assert (share.index is not None) == (far and times in ("a tensor", "all alike"))
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_kernel_that_the_device_chose_is_the_same_to_the_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers, and what is learnt."""
    found = []
    for far in (False, True):
        monkeypatch.setattr(layer, "readable", lambda _, far=far: not far)
        torch.manual_seed(0)
        expert = made(nn.Conv2d(3, 5, **CONVOLUTIONS[kind]), torch.tensor(500.0))
        answer = expert(images())
        answer.square().sum().backward()
        found.append([answer.detach(), *(each.grad for each in expert.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@given(
    experts=st.integers(1, 64),
    timesteps=st.integers(1, 4000),
    time=st.one_of(st.integers(-10, 5000), st.floats(-10, 5000, width=32)),
)
def test_a_device_counts_as_the_host_does(experts: int, timesteps: int, time: float) -> None:
    spec = Spec(experts, timesteps)
    told = torch.tensor(time, dtype=torch.int64 if isinstance(time, int) else torch.float32)
    assert layer.serving(spec, told).tolist() == [spec.serving(time)]


def alone(expert: ExpertConv2d, x: Tensor) -> dict[str, Tensor]:
    """Gradients of each expert's own rows, by hand: in float64, each row by its own kernel."""
    held = {name: each.detach().clone().requires_grad_() for name, each in expert.named_parameters()}
    (share,) = expert.context._here.latest.shares.values()
    loss = torch.zeros((), dtype=x.dtype)
    for number, rows in zip(share.experts, share.rows, strict=True):
        loss = (
            loss
            + nn.functional.conv2d(x[rows], held["weight"].chunk(3)[number], held["bias"].chunk(3)[number])
            .square()
            .sum()
        )
    return dict(zip(held, torch.autograd.grad(loss, tuple(held.values())), strict=True))


def test_experts_learn_from_all_rows_and_from_their_own_again() -> None:
    """The second has no rows of its own."""
    expert, x = made(nn.Conv2d(3, 5, 3), torch.tensor([900, 10, 800, 20])).double(), images().double().requires_grad_()
    answer = expert(x)
    answer.square().sum().backward()
    for name, own in alone(expert, x.detach()).items():
        first, second, third = own.reshape(3, -1)
        assert not second.any()
        wanted = torch.stack([2 * first + third, first + third, first + 2 * third])
        torch.testing.assert_close(expert.get_parameter(name).grad.reshape(3, -1), wanted)
    row = images().double()[1:2].requires_grad_()
    kernels, biases = expert.kernels((0,))
    nn.functional.conv2d(row, kernels[0], biases[0]).square().sum().backward()
    torch.testing.assert_close(x.grad[1:2], row.grad, msg="what comes before learns as ever")


def test_a_frozen_bank_learns_nothing() -> None:
    expert, x = made(nn.Conv2d(3, 5, 3), 100).requires_grad_(False), images().requires_grad_()
    expert(x).sum().backward()
    assert x.grad is not None
    assert all(each.grad is None for each in expert.parameters())


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_begins_as_its_conv2d(kind: str) -> None:
    """Bit by bit where one expert serves all rows, and where several do each row alone."""
    conv = nn.Conv2d(3, 5, **CONVOLUTIONS[kind])
    context = TimestepContext()
    expert = ExpertConv2d(conv, Spec(4), context)
    context.announce(300)
    assert torch.equal(expert(images()), conv(images()))
    context.announce(TIMES["rows of all"])
    torch.testing.assert_close(expert(images()), conv(images()), atol=1e-6, rtol=1e-6)


@given(experts=st.integers(1, 64), timesteps=st.integers(1, 4000), time=st.floats(-10, 5000))
def test_experts_share_out_the_timesteps_evenly(experts: int, timesteps: int, time: float) -> None:
    spec = Spec(experts, timesteps)
    number = spec.serving(time)
    assert 0 <= number < experts
    if 0 <= time < timesteps:
        assert number - 1e-9 <= time * experts / timesteps < number + 1 + 1e-9
    assert spec.serving(0) == 0
    assert spec.serving(timesteps) == experts - 1, "some schedules begin there"
    if experts <= timesteps:
        served = [spec.serving(each) for each in range(timesteps)]
        assert served == sorted(served)
        counts = [served.count(each) for each in range(experts)]
        assert max(counts) - min(counts) <= 1


@given(chosen=st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_shares_put_rows_back(chosen: list[int]) -> None:
    share = Share.of(chosen, CPU)
    assert list(share.experts) == sorted(set(chosen))
    if len(share.experts) == 1:
        assert (share.rows, share.order) == ((), None)
        return
    told = torch.cat([torch.full((len(rows),), each) for each, rows in zip(share.experts, share.rows, strict=True)])
    assert told[share.order].tolist() == chosen
    assert torch.cat(share.rows)[share.order].tolist() == list(range(len(chosen)))


def test_a_thread_that_computes_again_hears_the_call_that_learns() -> None:
    """The backward pass of a GPU has a thread of its own; drawing in between does not matter."""
    context = TimestepContext()

    def served() -> tuple[int, ...]:
        return context.share(SPEC, CPU).experts

    context.announce(torch.tensor([900, 10]))
    with torch.no_grad():
        context.announce(500)
        assert served() == (1,)
    assert served() == (0, 2)
    with ThreadPoolExecutor(1) as worker:
        assert worker.submit(served).result() == (0, 2)
    with pytest.raises(AssertionError, match="tells them the time"):
        copy.deepcopy(context).share(SPEC, CPU)
