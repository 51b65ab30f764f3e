"""Banks and routers begin as the kernel that they stand for, ready to become different."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from asdm_cli.experts import convert
from asdm_cli.experts.convert import Init
from asdm_cli.experts.layer import LOOKS, ROUTINGS, SUM_TO_ONE, Router, TimestepContext, mix
from asdm_cli.unet.blocks import Spec

CHANNELS, WIDTH = 3, 6
INITS = {"copies": Init("copies"), "noise": Init("noise", noise=0.5), "inherited": Init("inherited")}

REFUSED = ("copies", "sigmoid")
"""By recipes: copies of random weights would not sum to the kernel, and copies of equal weights stay equal."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kernels(count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    drawn = generator(9)
    return [(0.2 * torch.randn(5, CHANNELS, 3, 3, generator=drawn)).to(dtype) for _ in range(count)]


def begun(spec: Spec, how: Init, inherited: int = 2) -> tuple[Tensor, Router]:
    """Bank [K O, ...] and router of one layer."""
    held = kernels(1 + inherited if how.kind == "inherited" else 1)
    bank = convert.bank(held, spec, how, generator())
    made = Router(
        CHANNELS if spec.router != "time" else 0, WIDTH if spec.router != "features" else 0, spec.experts, spec.weights
    )
    tensors = convert.router(spec, how, CHANNELS, WIDTH, generator())
    made.load_state_dict(tensors)
    return bank, made


def asked(router: Router, rows: int = 6) -> Tensor:
    """Weights [rows, K] for whatever comes."""
    context = TimestepContext()
    context.announce(torch.arange(rows))
    context.hear(nn.Identity(), (), torch.randn(rows, WIDTH, generator=generator(3)))
    with torch.no_grad():
        return router(3 * torch.randn(rows, CHANNELS, 4, 4, generator=generator(4)), context)


@pytest.mark.parametrize(("kind", "weights"), [pair for pair in product(INITS, ROUTINGS) if pair != REFUSED])
@pytest.mark.parametrize("look", LOOKS)
def test_what_is_mixed_at_first_is_the_kernel(kind: str, weights: str, look: str) -> None:
    """Whatever the router is shown."""
    for experts in (1, 2, 4, 8):
        bank, router = begun(Spec(experts, look, weights), INITS[kind])
        with torch.no_grad():
            mixed = mix(asked(router), bank.reshape(experts, -1), weights in SUM_TO_ONE)
        wanted = kernels(1)[0].flatten().expand_as(mixed)
        torch.testing.assert_close(mixed, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weights", SUM_TO_ONE)
@pytest.mark.parametrize("look", LOOKS)
def test_copies_are_told_apart_from_the_first_step(weights: str, look: str) -> None:
    bank, router = begun(Spec(4, look, weights), INITS["copies"])
    assert all(torch.equal(part, kernels(1)[0]) for part in bank.chunk(4))
    weighed = asked(router)
    assert len({round(float(weight), 4) for weight in weighed.flatten()}) >= 8, "random weights"
    assert not router.bias.any()


@pytest.mark.parametrize("weights", ROUTINGS)
def test_noise_is_a_share_of_the_kernels_own(weights: str) -> None:
    """It sums to nothing, and weighing even hides it."""
    bank, router = begun(Spec(4, "both", weights), INITS["noise"])
    assert not any(parameter.any() for parameter in router.parameters())
    scale = 1 if weights in SUM_TO_ONE else 2
    each = scale * torch.stack(bank.chunk(4))
    kernel = kernels(1)[0]
    torch.testing.assert_close(each.mean(0), kernel, atol=1e-6, rtol=1e-5)
    spread = float((each - kernel).std() / kernel.std())
    assert spread == pytest.approx(0.5 * (3 / 4) ** 0.5, rel=0.15), "less what the mean took of it"
    assert len({part.sum().item() for part in each}) == 4


@pytest.mark.parametrize("share", [1e-3, 0.2, 0.6])
@pytest.mark.parametrize("weights", ROUTINGS)
def test_inherited_kernels_weigh_their_share(weights: str, share: float) -> None:
    """Together, while the router is shown nothing: whoever begins beside them weighs the rest."""
    spec = Spec(4, "both", weights)
    tensors = convert.router(spec, Init("inherited", share=share), CHANNELS, WIDTH, generator())
    first, *others = ROUTINGS[weights](tensors["bias"][None])[0].tolist()
    if weights == "sigmoid":
        assert first == 0.5
        assert others == pytest.approx([share / 3] * 3, rel=1e-4)
    else:
        assert first == pytest.approx(1 - share, rel=1e-4)
        assert others == pytest.approx([share / 3] * 3, rel=1e-4)
    for name in ("features.weight", "time.weight"):
        assert not tensors[name][0].any(), "the first one's weight hangs on nothing"
        assert bool(tensors[name][1:].any(1).all())


@pytest.mark.parametrize("weights", ROUTINGS)
def test_inherited_kernels_stand_in_order_and_copies_fill_up(weights: str) -> None:
    held = kernels(3)
    first = 1 if weights in SUM_TO_ONE else 2
    for experts, wanted in {
        1: [0],
        2: [0, 1],
        3: [0, 1, 2],
        5: [0, 1, 2, 0, 0],
    }.items():
        bank = convert.bank(held, Spec(experts, "time", weights), INITS["inherited"], generator())
        parts = bank.chunk(experts)
        assert torch.equal(parts[0], first * held[0])
        assert all(torch.equal(part, held[number]) for part, number in zip(parts[1:], wanted[1:], strict=True))
