"""A UNet with experts as a whole: what it equals, what it costs, and whose call its convolutions hear."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.experts.convert import expand
from asdm_cli.experts.layer import host_timesteps
from asdm_cli.experts.unet import ExpertUNet, build, expert_layers
from asdm_cli.unet.blocks import Spec, with_experts
from asdm_cli.unet.flops import inputs, macs, macs_of, meta_unet
from asdm_cli.unet.surgery import remove
from tests import tiny

AT = ["level.0", "mid", "down.1.0"]
SMALL = {
    "block_out_channels": [8, 8],
    "attention_head_dim": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
}
"""Of a UNet: little to trace."""


def config(shape: str = "sd15", experts: int = 3) -> dict[str, Any]:
    base = remove(tiny.shape(shape), "base").config
    return expand(base, Spec(experts), AT, None).config


def expert_unet(of: dict[str, Any] | None = None, shape: str = "sd15") -> ExpertUNet:
    """Random experts: none of them is equal to its neighbour."""
    torch.manual_seed(0)
    unet = build(of or config(shape)).eval()
    assert isinstance(unet, ExpertUNet)
    for parameter in unet.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return unet


def of_expert(unet: ExpertUNet, number: int) -> Any:
    """The stock UNet that all of its experts of this number are."""
    stock = build(with_experts(dict(unet.config), {})).eval()
    state = dict(unet.state_dict())
    for name, each in expert_layers(unet).items():
        state |= {f"{name}.{part}": getattr(each, part).chunk(each.spec.experts)[number] for part in ("weight", "bias")}
    stock.load_state_dict(state)
    return stock


def arguments(unet: Any, timestep: Any = 300, rows: int = 3) -> dict[str, Any]:
    torch.manual_seed(7)
    return {**inputs(dict(unet.config), rows, 8, 5, "cpu"), "timestep": timestep}


@torch.no_grad()
def answer(unet: Any, given: dict[str, Any]) -> Tensor:
    sample: Tensor = unet(**given).sample
    return sample


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_it_is_the_stock_unet_of_each_expert_in_turn(shape: str) -> None:
    """To the bit at every timestep of its stretch, however many rows."""
    unet = expert_unet(shape=shape)
    assert len(expert_layers(unet)) == 12
    answers = []
    for number, timesteps in enumerate(
        [(0, 333), (334, 500.5, torch.tensor(666)), (667, torch.tensor([999] * 3), 1000)]
    ):
        stock = of_expert(unet, number)
        for timestep in timesteps:
            given = arguments(unet, timestep)
            answers.append(answer(unet, given))
            assert torch.equal(answers[-1], answer(stock, given)), timestep
    assert not torch.allclose(answers[1], answers[2], atol=1e-3)


def test_rows_do_not_see_each_other() -> None:
    """Each of its own timestep: alone, in another order, or beside others."""
    unet, timesteps = expert_unet(), torch.tensor([500, 20, 900])
    given = arguments(unet, timesteps, 3)
    whole, order = answer(unet, given), torch.tensor([2, 0, 1])
    moved = answer(unet, {name: value[order] for name, value in given.items()})
    torch.testing.assert_close(moved, whole[order], atol=1e-5, rtol=1e-5)
    for row, number in enumerate((1, 0, 2)):
        alone = {name: value[row : row + 1] for name, value in given.items()}
        for one in (unet, of_expert(unet, number)):
            torch.testing.assert_close(answer(one, alone), whole[row : row + 1], atol=1e-5, rtol=1e-5)


def test_a_copy_hears_its_own_calls() -> None:
    unet = expert_unet()
    other, given = copy.deepcopy(unet), arguments(unet, 100)
    wanted = answer(unet, given)
    other.context.announce(900)
    assert torch.equal(answer(unet, given), wanted)
    assert torch.equal(answer(other, given), wanted)


@pytest.mark.parametrize("shape", tiny.SHAPES)
@pytest.mark.parametrize("known", [None, torch.tensor([500, 20, 900])])
def test_a_call_reads_nothing_from_its_device(shape: str, known: Tensor | None) -> None:
    """Of the meta device nothing can be read: no item(), tolist() or cpu(). It draws with a timestep that is there,
    and learns with those that the host knows."""
    unet = expert_unet(shape=shape).to("meta")
    timestep = torch.tensor(500) if known is None else known
    given = send_to_device(arguments(unet, timestep), torch.device("meta"))
    with host_timesteps(known), torch.set_grad_enabled(known is not None):
        sample = unet(**given).sample
    assert sample.shape == (3, 4, 8, 8)
    if known is not None:
        sample.square().sum().backward()
        assert all(each.weight.grad is not None for each in expert_layers(unet).values())


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_a_call_costs_what_it_did(shape: str) -> None:
    """On paper: nothing is mixed."""
    wide = config(shape)
    assert macs(wide, batch=2) == macs(with_experts(wide, {}), batch=2)


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_it_costs_live_what_its_config_says(shape: str) -> None:
    unet = expert_unet(shape=shape)
    given = arguments(unet, rows=2) | {"encoder_hidden_states": torch.randn(2, 77, tiny.WIDTH)}
    assert macs_of(unet, given) == macs(dict(unet.config), batch=2)


@pytest.mark.parametrize("name", ["mid_block.resnets.0.norm1", "mid_block.resnets.7.conv1"])
def test_configs_that_ask_for_the_impossible(name: str) -> None:
    with pytest.raises(ModelError, match=f"{name} is no convolution"):
        meta_unet({**tiny.shape("sd15"), "experts": {name: {"experts": 2, "timesteps": 1000}}})


def learned(unet: ExpertUNet, timestep: Any, elsewhere: bool, between: Any = None) -> dict[str, Tensor]:
    """Gradients by name; `elsewhere` has the backward pass on another thread, as that of a GPU is; `between` is a
    timestep that is drawn before it."""
    unet.zero_grad()
    loss = unet(**arguments(unet, timestep, 2)).sample.square().sum()
    if between is not None:
        answer(unet, arguments(unet, between, 2))
    if elsewhere:
        with ThreadPoolExecutor(1) as worker:
            worker.submit(loss.backward).result()
    else:
        loss.backward()
    return {name: each.grad.clone() for name, each in unet.named_parameters() if each.grad is not None}


@pytest.mark.parametrize(("timestep", "between"), [(500, torch.tensor([900, 1])), (torch.tensor([500, 20]), 900)])
@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_computed_again_hears_its_own_call(timestep: Any, between: Any, frozen: bool) -> None:
    """On another thread, after other calls, and where the time embedding does not learn."""
    unet = expert_unet().train()
    unet.time_embedding.requires_grad_(not frozen)
    wanted = learned(unet, timestep, elsewhere=False)
    unet.enable_gradient_checkpointing()
    got = learned(unet, timestep, elsewhere=True, between=between)
    assert set(got) == set(wanted)
    first, second, third = wanted["mid_block.resnets.0.conv1.weight"].chunk(3)
    assert torch.equal(first, third) == (not isinstance(timestep, Tensor)), "the third has no rows"
    assert not torch.equal(second, third)
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("learning", [False, True])
def test_threads_have_a_time_each(learning: bool) -> None:
    """Those that forget `no_grad` too."""
    unet = expert_unet()
    given, timesteps = arguments(unet, 0, 2), [torch.tensor([step, step + 1]) for step in range(0, 960, 80)]

    def draw(timestep: Tensor) -> Tensor:
        with torch.set_grad_enabled(learning):
            sample: Tensor = unet(**{**given, "timestep": timestep}).sample.detach()
        return sample

    wanted = [draw(each) for each in timesteps]
    with ThreadPoolExecutor(4) as workers:
        got = list(workers.map(draw, timesteps))
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(wanted[0], wanted[-1], atol=1e-3)


def test_a_compiled_unet_answers_alike() -> None:
    unet = expert_unet(of=expand(tiny.shape("sd15", **SMALL), Spec(3), ["mid"], None).config)
    timestep = 500
    given = {**inputs(dict(unet.config), 2, 8, 5, "cpu"), "timestep": timestep}
    torch.compiler.reset()
    compiled = torch.compile(unet, backend="eager")
    with torch.no_grad():
        first, again, later = (compiled(**{**given, "timestep": timestep + more}).sample for more in (0, 0, 400))
    assert torch.equal(first, again)
    torch.testing.assert_close(first, answer(unet, given), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(later, answer(unet, {**given, "timestep": timestep + 400}), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(later, first, atol=1e-4)
