"""Calls of a whole UNet: rows that are drawn together, and what is computed again in a backward pass."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from asdm_cli.experts import layer
from asdm_cli.experts.router import LOOKS
from asdm_cli.unet.expert_unet import ExpertUNet, expert_layers
from tests.experts.test_kept import arguments, expert_unet


@pytest.mark.parametrize("way", ["loop", "grouped", "separate"])
@pytest.mark.parametrize("look", LOOKS)
def test_rows_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch, look: str, way: str) -> None:
    """Alone, in another order, or beside others."""
    monkeypatch.setattr(layer, "choose", lambda *_: way)
    unet, timesteps = expert_unet(look), torch.tensor([500, 20, 900])
    given = arguments(unet, timesteps, 3)
    order = torch.tensor([2, 0, 1])
    moved = {name: value[order] for name, value in given.items()}
    with torch.no_grad():
        whole = unet(**given).sample
        torch.testing.assert_close(unet(**moved).sample, whole[order], atol=1e-5, rtol=1e-5)
        for row in range(3):
            alone = unet(**{name: value[row : row + 1] for name, value in given.items()}).sample
            torch.testing.assert_close(alone, whole[row : row + 1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)


def learned(unet: ExpertUNet, timestep: Any, elsewhere: bool, between: Any = None) -> dict[str, Tensor]:
    """Gradients by name; `elsewhere` has the backward pass on another thread, as that of a GPU is; `between` is a
    timestep that is drawn before it."""
    unet.zero_grad()
    loss = unet(**arguments(unet, timestep)).sample.square().sum()
    if between is not None:
        with torch.no_grad():
            unet(**arguments(unet, between))
    if elsewhere:
        with ThreadPoolExecutor(1) as worker:
            worker.submit(loss.backward).result()
    else:
        loss.backward()
    return {name: each.grad.clone() for name, each in unet.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("look", ["time", "both"])
@pytest.mark.parametrize(("timestep", "between"), [(500, torch.tensor([900, 1])), (torch.tensor([500, 20]), 900)])
@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_computed_again_hears_its_own_call(look: str, timestep: Any, between: Any, frozen: bool) -> None:
    """On another thread, after other calls, and where the time embedding does not learn."""
    unet = expert_unet(look).train()
    unet.time_embedding.requires_grad_(not frozen)
    wanted = learned(unet, timestep, elsewhere=False)
    unet.enable_gradient_checkpointing()
    got = learned(unet, timestep, elsewhere=True, between=between)
    assert set(got) == set(wanted)
    assert sum("router" in name for name in got) >= 8
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, atol=1e-4, rtol=1e-4, msg=name)


def test_threads_that_want_gradients_hear_their_own_call() -> None:
    """Whoever forgets `no_grad` gets what others get."""
    unet = expert_unet("time")
    timesteps = [torch.tensor([step, step + 1]) for step in range(0, 960, 80)]

    def answer(timestep: Tensor) -> Tensor:
        sample: Tensor = unet(**{**given, "timestep": timestep}).sample.detach()
        return sample

    given = arguments(unet, 0)
    wanted = [answer(each) for each in timesteps]
    with ThreadPoolExecutor(4) as workers:
        got = list(workers.map(answer, timesteps))
    assert len(got) == 12
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(wanted[0], wanted[-1], atol=1e-3)


def test_a_unet_in_training_keeps_no_kernels() -> None:
    """Pictures between two steps are those of the weights of then."""
    unet = expert_unet("time").train()
    given = arguments(unet, 500)
    with torch.no_grad():
        first = unet(**given).sample
        for each in expert_layers(unet).values():
            each.weight.add_(0.1)
        second = unet(**given).sample
    assert not torch.allclose(first, second, atol=1e-3)
    assert all(not each.kept._mixed for each in expert_layers(unet).values())
