"""A UNet with experts as a whole: what it equals, what it costs, and whose call its routers hear."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.experts import layer
from asdm_cli.experts.convert import expand
from asdm_cli.experts.layer import LOOKS, SUM_TO_ONE, WAYS
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


def config(shape: str = "sd15", router: str = "both", weights: str = "softmax", experts: int = 3) -> dict[str, Any]:
    base = remove(tiny.shape(shape), "base").config
    return expand(base, Spec(experts, router, weights), AT, None).config


def expert_unet(router: str = "both", seed: int = 0, of: dict[str, Any] | None = None, **words: Any) -> ExpertUNet:
    """Random experts, and routers that choose: nothing of it is equal to its neighbours."""
    torch.manual_seed(seed)
    unet = build(of or config(router=router, **words)).eval()
    assert isinstance(unet, ExpertUNet)
    for name, parameter in unet.named_parameters():
        parameter.data.add_(torch.randn_like(parameter) * (0.5 if ".router." in name else 0.05))
    return unet


def with_copies(unet: ExpertUNet) -> Any:
    """Make the experts equal; returns the stock UNet that this is."""
    stock = build(with_experts(dict(unet.config), {})).eval()
    state = {name: tensor.clone() for name, tensor in unet.state_dict().items() if ".router." not in name}
    for name, each in expert_layers(unet).items():
        for part, tensor in (("weight", each.weight), ("bias", each.bias)):
            first = tensor.data.chunk(each.spec.experts)[0].clone()
            tensor.data.copy_(first.repeat(each.spec.experts, *[1] * (first.dim() - 1)))
            state[f"{name}.{part}"] = first
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
@pytest.mark.parametrize("weights", SUM_TO_ONE)
@pytest.mark.parametrize("router", LOOKS)
def test_equal_experts_are_the_stock_unet(shape: str, weights: str, router: str) -> None:
    """Whatever the routers choose: bit by bit where one kernel serves a call."""
    unet = expert_unet(router, shape=shape, weights=weights)
    stock = with_copies(unet)
    assert len(expert_layers(unet)) == 12
    for rows in (1, 3):
        given = arguments(unet, rows=rows)
        got, wanted = answer(unet, given), answer(stock, given)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
        assert torch.equal(got, wanted) or (rows > 1 and router != "time")
    one = expert_unet(router, shape=shape, weights=weights, experts=1)
    assert torch.equal(answer(one, given), answer(with_copies(one), given))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("look", LOOKS)
def test_rows_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch, look: str, way: str) -> None:
    """Alone, in another order, or beside others; and every way is one answer."""
    unet, timesteps = expert_unet(look), torch.tensor([500, 20, 900])
    given = arguments(unet, timesteps, 3)
    usual = answer(unet, given)
    monkeypatch.setattr(layer, "FASTEST", {"cpu": way})
    order = torch.tensor([2, 0, 1])
    whole = answer(unet, given)
    torch.testing.assert_close(whole, usual, atol=1e-5, rtol=1e-4)
    moved = answer(unet, {name: value[order] for name, value in given.items()})
    torch.testing.assert_close(moved, whole[order], atol=1e-5, rtol=1e-5)
    for row in range(3):
        alone = answer(unet, {name: value[row : row + 1] for name, value in given.items()})
        torch.testing.assert_close(alone, whole[row : row + 1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_it_costs_live_what_its_config_says(shape: str) -> None:
    unet = expert_unet(shape=shape)
    given = arguments(unet, rows=2) | {"encoder_hidden_states": torch.randn(2, 77, tiny.WIDTH)}
    assert macs_of(unet, given) == macs(dict(unet.config), batch=2)


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "is no convolution": ("mid_block.resnets.0.norm1", {}),
    "mid_block.resnets.7.conv1 is no convolution": ("mid_block.resnets.7.conv1", {}),
    "router must be one of features, time, both": ("mid_block.resnets.0.conv1", {"router": "stars"}),
    "weights must be one of softmax": ("mid_block.resnets.0.conv1", {"weights": "hard"}),
}


@pytest.mark.parametrize("words", WRONG)
def test_configs_that_ask_for_the_impossible(words: str) -> None:
    name, change = WRONG[words]
    entry = {"experts": 2, "router": "time", "weights": "softmax", **change}
    with pytest.raises(ModelError, match=words):
        meta_unet({**tiny.shape("sd15"), "experts": {name: entry}})


def test_a_timestep_mixes_one_kernel_for_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, mixed = expert_unet("time"), []
    own = layer.mix_both
    monkeypatch.setattr(layer, "mix_both", lambda routing, *rest: mixed.append(len(routing)) or own(routing, *rest))
    answer(unet, arguments(unet, 500))
    assert mixed == [1] * 12
    answer(unet, arguments(unet, torch.tensor([500, 20, 500])))
    assert mixed[12:] == [3] * 12, "rows of their own times have kernels of their own"


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


@pytest.mark.parametrize("look", LOOKS)
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


@pytest.mark.parametrize("learning", [False, True])
def test_threads_have_a_time_each(learning: bool) -> None:
    """Those that forget `no_grad` too."""
    unet = expert_unet("time")
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
    unet = expert_unet(of=expand(tiny.shape("sd15", **SMALL), Spec(3, "time", "softmax"), ["mid"], None).config)
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
