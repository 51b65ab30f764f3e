"""A UNet with experts as a whole: what it equals, what it costs, and configs that ask for the impossible."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.experts.layer import ExpertConv2d
from asdm_cli.experts.mixing import STRATEGIES
from asdm_cli.experts.router import ROUTINGS, SUM_TO_ONE
from asdm_cli.experts.spec import Spec
from asdm_cli.unet.cost import inputs, macs, macs_of, meta_unet
from asdm_cli.unet.expansion import expand
from asdm_cli.unet.expert_config import with_specs
from asdm_cli.unet.expert_unet import ExpertUNet, build, expert_layers
from asdm_cli.unet.surgery import remove
from tests import tiny

AT = ["level.0", "mid", "down.1.0"]


def config(shape: str = "sd15", router: str = "both", weights: str = "softmax", experts: int = 3) -> dict[str, Any]:
    base = remove(tiny.shape(shape), "base").config
    return expand(base, Spec(experts, router, weights), AT, None).config


def expert_unet(seed: int = 0, **words: Any) -> ExpertUNet:
    """Random experts, and routers that choose: nothing of it is equal to its neighbours."""
    torch.manual_seed(seed)
    unet = build(config(**words)).eval()
    assert isinstance(unet, ExpertUNet)
    for name, parameter in unet.named_parameters():
        parameter.data.add_(torch.randn_like(parameter) * (0.5 if ".router." in name else 0.05))
    return unet


def with_copies(unet: ExpertUNet) -> Any:
    """Make the experts equal; returns the stock UNet that this is."""
    stock = build(with_specs(dict(unet.config), {})).eval()
    state = {name: tensor.clone() for name, tensor in unet.state_dict().items() if ".router." not in name}
    for name, layer in expert_layers(unet).items():
        for part, tensor in (("weight", layer.weight), ("bias", layer.bias)):
            first = tensor.data.chunk(layer.spec.experts)[0].clone()
            tensor.data.copy_(first.repeat(layer.spec.experts, *[1] * (first.dim() - 1)))
            state[f"{name}.{part}"] = first
    stock.load_state_dict(state)
    unet.eval()
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
@pytest.mark.parametrize("router", ["features", "time", "both"])
def test_equal_experts_are_the_stock_unet(shape: str, weights: str, router: str) -> None:
    """Whatever the routers choose: bit by bit where one kernel serves a call."""
    unet = expert_unet(shape=shape, router=router, weights=weights)
    stock = with_copies(unet)
    assert len(expert_layers(unet)) == 12
    one, three = arguments(unet, rows=1), arguments(unet)
    assert torch.equal(answer(unet, one), answer(stock, one))
    if router == "time":
        assert torch.equal(answer(unet, three), answer(stock, three))
    torch.testing.assert_close(answer(unet, three), answer(stock, three), atol=1e-5, rtol=1e-5)


def test_one_expert_is_the_stock_unet() -> None:
    unet = expert_unet(experts=1, router="features")
    stock = with_copies(unet)
    given = arguments(unet)
    assert torch.equal(answer(unet, given), answer(stock, given))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_way_is_one_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, used = expert_unet(), []
    given = arguments(unet)
    wanted = answer(unet, given)
    monkeypatch.setattr("asdm_cli.experts.layer.choose", lambda *_: used.append(name) or name)
    torch.testing.assert_close(answer(unet, given), wanted, atol=1e-5, rtol=1e-4)
    assert len(used) == len(expert_layers(unet)) == 12


def test_a_time_that_depends_on_more_is_no_key_for_kernels() -> None:
    """The scale of guidance, for one, where a UNet is told it."""
    plain = expert_unet(router="time")
    answer(plain, arguments(plain))
    assert all(layer.kept._mixed for layer in expert_layers(plain).values())
    torch.manual_seed(0)
    guided = build({**config(router="time"), "time_cond_proj_dim": 6}).eval()
    with torch.no_grad():
        for scale in (0.0, 5.0):
            guided(**arguments(guided) | {"timestep_cond": torch.full((3, 6), scale)})
    assert not any(layer.kept._mixed for layer in expert_layers(guided).values())


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_it_costs_live_what_its_config_says(shape: str) -> None:
    unet = expert_unet(shape=shape)
    given = arguments(unet, rows=2) | {"encoder_hidden_states": torch.randn(2, 77, tiny.WIDTH)}
    assert macs_of(unet, given) == macs(dict(unet.config), batch=2)
    assert macs_of(unet, given) == macs_of(unet, given), "nothing that was kept escapes the count"


def test_built_without_storage_and_from_its_own_config() -> None:
    empty = meta_unet(config())
    assert isinstance(empty, ExpertUNet)
    assert {each.device.type for each in empty.parameters()} == {"meta"}
    unet = expert_unet()
    again = ExpertUNet.from_config(unet.config)
    again.load_state_dict(unet.state_dict())
    given = arguments(unet)
    assert torch.equal(answer(again.eval(), given), answer(unet, given))
    assert type(build(tiny.shape("sd15"))).__name__ == "UNet2DConditionModel"


def test_half_precision_answers_alike() -> None:
    unet = expert_unet()
    given = arguments(unet)
    wanted = answer(unet, given)
    for dtype in (torch.bfloat16, torch.float64):
        other = copy.deepcopy(unet).to(dtype)
        cast = {name: each.to(dtype) if torch.is_floating_point(each) else each for name, each in tensors(given)}
        torch.testing.assert_close(answer(other, {**given, **cast}).float(), wanted, atol=0.1, rtol=0.1)


def tensors(given: dict[str, Any]) -> list[tuple[str, Tensor]]:
    return [(name, each) for name, each in given.items() if isinstance(each, Tensor)]


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


def test_layers_say_what_they_are() -> None:
    layer = expert_layers(expert_unet())["mid_block.resnets.0.conv1"]
    assert isinstance(layer, ExpertConv2d)
    assert "32, 32, (3, 3)" in repr(layer)
    assert "experts=3" in repr(layer)
    assert set(ROUTINGS) > set(SUM_TO_ONE)
