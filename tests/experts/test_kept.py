"""Kernels that are mixed once for a timestep; clocks that threads and UNets do not share."""

from __future__ import annotations

import copy
import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from asdm_cli.experts import kept, layer
from asdm_cli.experts.kept import Kept
from asdm_cli.experts.spec import Spec
from asdm_cli.unet.cost import inputs
from asdm_cli.unet.expansion import expand
from asdm_cli.unet.expert_unet import ExpertUNet, build, expert_layers
from tests import tiny


def expert_unet(router: str = "time", seed: int = 0, **changes: Any) -> ExpertUNet:
    config = expand(tiny.shape("sd15", **changes), Spec(3, router, "softmax"), ["level.0", "mid"], None).config
    torch.manual_seed(seed)
    unet = build(config).eval()
    for parameter in unet.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    assert isinstance(unet, ExpertUNet)
    return unet


def arguments(unet: ExpertUNet, timestep: Any, rows: int = 2) -> dict[str, Any]:
    torch.manual_seed(7)
    return {**inputs(dict(unet.config), rows, 8, 5, "cpu"), "timestep": timestep}


@torch.no_grad()
def answer(unet: ExpertUNet, timestep: Any, rows: int = 2) -> Tensor:
    sample: Tensor = unet(**arguments(unet, timestep, rows)).sample
    return sample


@pytest.fixture
def mixings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for every kernel that is mixed for a timestep."""
    seen: list[str] = []
    own = layer.one_kernel

    def counted(*args: Any) -> Any:
        seen.append("mixed")
        return own(*args)

    monkeypatch.setattr(layer, "one_kernel", counted)
    return seen


def test_a_timestep_is_mixed_once(mixings: list[str]) -> None:
    unet = expert_unet()
    layers = len(expert_layers(unet))
    first = answer(unet, 500)
    assert len(mixings) == layers >= 8
    assert torch.equal(answer(unet, torch.tensor(500)), first)
    assert len(mixings) == layers, "the second call had them"
    answer(unet, 400)
    assert len(mixings) == 2 * layers


@pytest.mark.parametrize("change", ["train", "load", "to"])
def test_changed_weights_are_mixed_anew(mixings: list[str], change: str) -> None:
    unet = expert_unet()
    first = answer(unet, 500)
    state = {key: value + 0.1 for key, value in unet.state_dict().items()}
    if change == "load":
        unet.load_state_dict(state)
    elif change == "train":
        for key, parameter in unet.named_parameters():
            parameter.data.copy_(state[key])
        unet.train().eval()
    else:
        unet.to(torch.float64).to(torch.float32)
    count = len(mixings)
    again = answer(unet, 500)
    assert len(mixings) == 2 * count
    assert torch.equal(again, first) == (change == "to")


def test_timesteps_of_their_own_per_row_keep_nothing(mixings: list[str]) -> None:
    unet = expert_unet()
    rows = torch.tensor([500, 20])
    both = answer(unet, rows)
    assert not mixings
    for row, timestep in enumerate(rows):
        one = arguments(unet, timestep)
        with torch.no_grad():
            alone = unet(one["sample"][row : row + 1], timestep, one["encoder_hidden_states"][row : row + 1]).sample
        torch.testing.assert_close(alone, both[row : row + 1], atol=1e-5, rtol=1e-5)


def test_room_is_kept_to_and_given_back(monkeypatch: pytest.MonkeyPatch, mixings: list[str]) -> None:
    gc.collect()
    before = Kept._taken
    unet = expert_unet()
    answer(unet, 500)
    taken = Kept._taken - before
    assert taken > 0
    monkeypatch.setenv(kept.ROOM_MB, str((Kept._taken + taken / 2) / 1e6))
    first, count = answer(unet, 300), len(mixings)
    assert torch.equal(answer(unet, 300), first)
    assert count < len(mixings) < count + len(expert_layers(unet)), "a part had room"
    copied = copy.deepcopy(unet)
    assert all(not each.kept._mixed for each in expert_layers(copied).values())
    del unet, copied
    gc.collect()
    assert Kept._taken == before


def test_a_copy_hears_its_own_clock() -> None:
    unet = expert_unet("both")
    wanted = answer(unet, 500)
    copied = copy.deepcopy(unet)
    answer(unet, 20)
    assert torch.equal(answer(copied, 500), wanted)
    assert copied.clock is not unet.clock
    assert {id(each.clock) for each in expert_layers(copied).values()} == {id(copied.clock)}


@pytest.mark.parametrize("router", ["time", "both"])
def test_threads_have_a_time_each(router: str) -> None:
    unet = expert_unet(router)
    timesteps = [torch.tensor([step, step + 1]) for step in range(0, 960, 40)]
    same = arguments(unet, 0)

    @torch.no_grad()
    def draw(timestep: Tensor) -> Tensor:
        sample: Tensor = unet(**{**same, "timestep": timestep}).sample
        return sample

    wanted = [draw(each) for each in timesteps]
    with ThreadPoolExecutor(4) as workers:
        got = list(workers.map(draw, timesteps))
    assert len(got) == 24
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(wanted[0], wanted[-1])


@pytest.mark.parametrize("router", ["time", "features", "both"])
def test_checkpointed_layers_learn_the_same(router: str) -> None:
    """They are computed again after another UNet was called."""
    grads = []
    for checkpointing in (False, True):
        unet, other = expert_unet(router).train(), expert_unet(router, seed=3).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
            other.enable_gradient_checkpointing()
        rows = torch.tensor([500, 20])
        loss = unet(**arguments(unet, rows)).sample.square().sum()
        loss_of_other = other(**arguments(other, torch.tensor([900, 1]))).sample.square().sum()
        (loss + loss_of_other).backward()
        grads.append({name: weight.grad for name, weight in unet.named_parameters()})
    seen = 0
    for name, grad in grads[0].items():
        assert grad is not None, name
        torch.testing.assert_close(grads[1][name], grad, atol=1e-4, rtol=1e-4)
        seen += "router" in name
    assert seen >= 8


def test_guidance_halves_share_where_they_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `features`, rows that hold the same have one kernel; rows that do not have theirs."""
    shared: list[int] = []
    own = layer.shared

    def noted(x: Tensor, *rest: Any) -> Tensor:
        shared.append(len(x))
        return own(x, *rest)

    monkeypatch.setattr(layer, "shared", noted)
    unet = expert_unet("features")
    same = arguments(unet, 500)
    same = {**same, "sample": same["sample"][:1].repeat(2, 1, 1, 1)}
    with torch.no_grad():
        unet(**same)
    alike = len(shared)
    assert 0 < alike < len(expert_layers(unet)), "up to the first cross-attention the halves are one"
    shared.clear()
    answer(unet, 500)
    assert not shared


def test_copies_learn_apart() -> None:
    unet = expert_unet("features").train()
    for each in expert_layers(unet).values():
        each.weight.data.copy_(each.weight.data.chunk(3)[0].repeat(3, 1, 1, 1))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    for step in range(3):
        one = arguments(unet, torch.tensor([900 - step, 10]))
        unet(**one).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    apart = 0
    for each in expert_layers(unet).values():
        first, second, third = each.weight.data.chunk(3)
        apart += not torch.equal(first, second) and not torch.equal(second, third)
    assert apart == len(expert_layers(unet)) >= 8
