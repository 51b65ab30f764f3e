"""The drop-in itself: whose names and shapes it has, how a Conv2d's settings reach it, and that it compiles."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asdm_cli.experts import choice, layer
from asdm_cli.experts.layer import ExpertConv2d
from asdm_cli.experts.mixing import STRATEGIES
from asdm_cli.experts.router import LOOKS, ROUTINGS, Clock
from asdm_cli.experts.spec import Spec
from asdm_cli.unet.cost import inputs
from asdm_cli.unet.expansion import expand
from asdm_cli.unet.expert_unet import build, expert_layers
from tests import tiny

WIDTH = 6
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "unbiased": {"kernel_size": 3, "bias": False},
    "oblong": {"kernel_size": (3, 1), "padding": (1, 0), "stride": (2, 1)},
}


def made(spec: Spec, conv: nn.Conv2d, timesteps: Any = 0, rows: int = 4) -> ExpertConv2d:
    """With a router and experts that are nobody's copies."""
    clock = Clock()
    clock.announce(timesteps)
    clock.hear(conv, (), torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1)))
    expert = ExpertConv2d(conv, spec, WIDTH, clock).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in expert.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return expert


def images(rows: int = 4) -> Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def by_hand(expert: ExpertConv2d, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A Conv2d per expert, in float64, and the sum of what they say."""
    routing = expert.router(x, expert.clock).double()
    total = torch.zeros(())
    for number in range(expert.spec.experts):
        one = copy.deepcopy(conv).double()
        one.weight.data.copy_(expert.weight.chunk(expert.spec.experts)[number])
        if one.bias is not None:
            one.bias.data.copy_(expert.bias.chunk(expert.spec.experts)[number])
        total = total + routing[:, number].reshape(-1, 1, 1, 1) * one(x.double())
    return total


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("way", STRATEGIES)
def test_convolves_as_its_conv2d_would(monkeypatch: pytest.MonkeyPatch, kind: str, way: str) -> None:
    monkeypatch.setattr(layer, "choose", lambda *_: way)
    conv = nn.Conv2d(3, 5, **CONVOLUTIONS[kind])
    expert = made(Spec(3, "both", "softmax"), conv, torch.arange(4))
    with torch.no_grad():
        got = expert(images())
    wanted = by_hand(expert, conv, images())
    assert got.shape == conv(images()).shape == wanted.shape
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("weights", ROUTINGS)
def test_one_kernel_for_all_convolves_as_its_conv2d_would(kind: str, weights: str) -> None:
    """Drawing at one timestep, and learning at one."""
    conv = nn.Conv2d(3, 5, **CONVOLUTIONS[kind])
    expert = made(Spec(3, "time", weights), conv, 7, rows=1)
    wanted = by_hand(expert, conv, images())
    for learning in (False, True):
        with torch.set_grad_enabled(learning):
            torch.testing.assert_close(expert(images()).double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_one_expert_is_its_conv2d(kind: str) -> None:
    """Bit by bit, whatever the router holds and however many rows there are."""
    conv = nn.Conv2d(3, 5, **CONVOLUTIONS[kind])
    expert = ExpertConv2d(conv, Spec(1, "features", "softmax"), WIDTH, Clock()).eval()
    torch.nn.init.normal_(expert.router.features.weight)
    for learning in (False, True):
        with torch.set_grad_enabled(learning):
            assert torch.equal(expert(images()), conv(images()))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("look", LOOKS)
def test_rows_are_on_their_own(monkeypatch: pytest.MonkeyPatch, look: str, rows: int) -> None:
    """Where it convolves row by row, bit by bit; with gradients and without."""
    monkeypatch.setattr(layer, "choose", lambda *_: "loop")
    expert = made(Spec(3, look, "softmax"), nn.Conv2d(3, 5, 3, padding=1), torch.arange(4))
    for learning in (False, True):
        with torch.set_grad_enabled(learning):
            whole = expert(images())
            embedding = expert.clock.embedding
            alone = copy.deepcopy(expert)
            alone.clock.announce(torch.arange(rows) if rows > 1 else 2)
            alone.clock.hear(nn.Identity(), (), embedding[2:3] if rows == 1 else embedding.flip(0))
            x = images()[2:3] if rows == 1 else images().flip(0)
            assert torch.equal(alone(x), whole[2:3] if rows == 1 else whole.flip(0))


def test_its_tensors_have_a_conv2ds_names_and_other_shapes() -> None:
    conv = nn.Conv2d(3, 5, 3)
    expert = ExpertConv2d(conv, Spec(4, "both", "softmax"), WIDTH, Clock())
    shapes = {name: tuple(tensor.shape) for name, tensor in expert.state_dict().items()}
    assert shapes == {
        "weight": (20, 3, 3, 3),
        "bias": (20,),
        "router.features.weight": (4, 3),
        "router.time.weight": (4, 6),
        "router.bias": (4,),
    }
    with pytest.raises(RuntimeError, match="size mismatch"):
        conv.load_state_dict({name: expert.state_dict()[name] for name in ("weight", "bias")})
    with pytest.raises(RuntimeError, match="size mismatch"):
        expert.load_state_dict(conv.state_dict())
    assert "experts=4" in repr(expert)
    assert "router='both'" in repr(expert)


def test_a_convolution_of_groups_has_no_place_here() -> None:
    with pytest.raises(AssertionError):
        ExpertConv2d(nn.Conv2d(4, 4, 3, groups=2), Spec(2, "time", "softmax"), WIDTH, Clock())


def test_the_conv2d_is_copied() -> None:
    conv = nn.Conv2d(3, 5, 3)
    expert = ExpertConv2d(conv, Spec(2, "time", "softmax"), WIDTH, Clock())
    expert.weight.data.zero_()
    assert conv.weight.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("look", LOOKS)
def test_answers_in_the_dtype_it_is_moved_to(dtype: torch.dtype, look: str) -> None:
    conv = nn.Conv2d(3, 5, 3)
    expert = made(Spec(3, look, "softmax"), conv, torch.arange(4)).to(dtype)
    for learning in (False, True):
        with torch.set_grad_enabled(learning):
            got = expert(images().to(dtype)).detach()
        assert got.dtype == dtype
        wanted = by_hand(expert, conv, images().to(dtype))
        room = 4 * torch.finfo(dtype).eps * float(wanted.abs().max()) + 1e-6
        assert float((got.double() - wanted).abs().max()) <= room


SMALL = {
    "block_out_channels": [8, 8],
    "attention_head_dim": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
}
"""Of a UNet: little to trace."""


@pytest.mark.parametrize(("look", "timestep"), [("time", 500), ("both", torch.tensor([500, 20]))])
def test_a_compiled_unet_answers_alike(monkeypatch: pytest.MonkeyPatch, look: str, timestep: Any) -> None:
    """And nothing is measured while its graph is traced."""
    monkeypatch.setattr(choice, "_fastest", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(choice, "_known", {})
    config = expand(tiny.shape("sd15", **SMALL), Spec(3, look, "softmax"), ["mid"], None).config
    torch.manual_seed(0)
    unet = build(config).eval()
    for parameter in unet.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    given = {**inputs(dict(unet.config), 2, 8, 5, "cpu"), "timestep": timestep}
    torch.compiler.reset()
    compiled = torch.compile(unet, backend="eager")
    with torch.no_grad():
        traced = [compiled(**given).sample for _ in range(2)]
        other = compiled(**{**given, "timestep": timestep + 400}).sample
    assert torch.equal(*traced)
    assert len(expert_layers(unet)) == 4
    monkeypatch.setattr(choice, "_fastest", lambda *_: "loop")
    with torch.no_grad():
        torch.testing.assert_close(traced[0], unet(**given).sample, atol=1e-5, rtol=1e-5)
        later = unet(**{**given, "timestep": timestep + 400}).sample
    torch.testing.assert_close(other, later, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(other, traced[0], atol=1e-4)
