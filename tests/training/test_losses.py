"""The terms of distillation: against hand-made numbers, diffusers' formulas, and hooks of the test's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor, nn
from torch.nn import functional

from asdm_cli.training.distillation import (
    Distillation,
    LossTerm,
    along,
    feature_loss,
    min_snr_weight,
    prediction_loss,
)
from tests import tiny
from tests.training.students import distillation, first_batch, memory, pair, scheduler


def test_prediction_loss_is_the_mean_square() -> None:
    a, b = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    assert torch.equal(prediction_loss(a, b), functional.mse_loss(a, b))
    weights = torch.tensor([0.5, 2.0, 0.0])
    by_hand = sum(w * ((x - y) ** 2).mean() for w, x, y in zip(weights, a, b, strict=True)) / 3
    assert torch.allclose(prediction_loss(a, b, weights), by_hand)


def test_losses_are_computed_in_float32() -> None:
    a, b = torch.full((1, 4, 2, 2), 300.0).half(), torch.zeros(1, 4, 2, 2).half()
    assert float(prediction_loss(a, b)) == float(feature_loss([a], [b])) == 90_000.0


def test_feature_loss_sums_over_nodes() -> None:
    ours, theirs = ([torch.randn(2, n, 3, 3) for n in (4, 8)] for _ in range(2))
    each = [functional.mse_loss(a, b) for a, b in zip(ours, theirs, strict=True)]
    assert torch.equal(feature_loss(ours, theirs), each[0] + each[1])
    scaled = [value / wanted.square().mean() for value, wanted in zip(each, theirs, strict=True)]
    assert torch.allclose(feature_loss(ours, theirs, normalise=True), scaled[0] + scaled[1])
    assert float(feature_loss([torch.zeros(1)], [torch.zeros(1)], normalise=True)) == 0
    with pytest.raises(ValueError, match="zip"):
        feature_loss(ours, theirs[:1])


def test_min_snr_weights_are_diffusers_formulas() -> None:
    ddim, timesteps = scheduler(), torch.arange(1000)
    snr = compute_snr(ddim, timesteps)
    least = torch.minimum(snr, torch.full_like(snr, 5.0))
    alpha = ddim.alphas_cumprod
    assert torch.allclose(min_snr_weight(alpha, 5.0, "epsilon"), least / snr, atol=1e-5)
    assert torch.allclose(min_snr_weight(alpha, 5.0, "v_prediction"), least / (snr + 1), atol=1e-5)
    assert float(min_snr_weight(torch.zeros(1), 5.0, "v_prediction")) == 0, "zero terminal SNR is finite"
    assert float(min_snr_weight(torch.zeros(1), 5.0, "epsilon")) == 1


def test_weights_follow_their_points() -> None:
    points = [[10, 1.0], [20, 3.0], [40, 0.0]]
    steps = {0: 1.0, 9: 1.0, 10: 1.0, 15: 2.0, 20: 3.0, 30: 1.5, 39: 0.15, 40: 0.0, 10**6: 0.0}
    assert {step: along(points, step) for step in steps} == pytest.approx(steps)
    assert along(2, 7) == 2.0
    assert along([[5, 0.5]], 3) == along([[5, 0.5]], 9) == 0.5


def by_hand(unet: nn.Module, names: list[str], inputs: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    """Output and features of one forward, with hooks as BK-SDM's training script has them."""
    kept: dict[str, Tensor] = {}
    hooks = []
    for name in names:

        def keep(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...], name: str = name) -> None:
            kept[name] = output if isinstance(output, Tensor) else output[0]

        hooks.append(unet.get_submodule(name).register_forward_hook(keep))
    output = unet(*inputs).sample
    for hook in hooks:
        hook.remove()
    return output, [kept[name] for name in names]


BASE = [f"{side}_blocks.{i}" for side in ("up", "down") for i in range(4)]
DOWN = ["down_blocks.0", "down_blocks.1"]
NODES = {
    "base": (BASE, BASE),
    "small": (BASE, BASE),
    "tiny": (
        [*DOWN, "down_blocks.2.attentions.0.proj_out", *(f"up_blocks.{i}" for i in (0, 1, 2))],
        [*DOWN, "down_blocks.2.attentions.1.proj_out", *(f"up_blocks.{i}" for i in (1, 2, 3))],
    ),
}
"""Student's and teacher's modules, as BK-SDM's training scripts name them."""


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", NODES)
def test_the_loss_is_that_of_bk_sdm(kind: str, prediction: str) -> None:
    """task + output + features by formulas and hooks that share nothing with ours."""
    teacher, student = pair(kind)
    samples, noise, wanted = memory(12), scheduler(prediction_type=prediction), torch.tensor([3, 1, 4, 5])
    task = distillation({"s": student}, teacher, samples, noise=noise)
    terms = task.losses("s", student, first_batch(task, wanted, step=7), 0)
    total = torch.stack([weight * value for weight, value in terms.values()]).sum()
    total.backward()
    ours = {name: weight.grad.clone() for name, weight in student.named_parameters()}
    student.zero_grad()

    draws = torch.Generator().manual_seed(7)
    timesteps = torch.randint(0, 1000, (4,), generator=draws)
    torch.rand(4, generator=draws)  # whose caption is dropped
    eps = torch.randn(4, 4, 8, 8, generator=draws)
    latents = samples.latents[wanted]
    alpha = noise.alphas_cumprod[timesteps].view(4, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * eps
    target = eps if prediction == "epsilon" else alpha.sqrt() * eps - (1 - alpha).sqrt() * latents
    inputs = (noisy, timesteps, samples.condition.text[wanted])
    predicted, features = by_hand(student, NODES[kind][0], inputs)
    with torch.no_grad():
        answer, wanted_features = by_hand(teacher, NODES[kind][1], inputs)
    assert len(features) == {"tiny": 6}.get(kind, 8)
    mse = functional.mse_loss
    expected = {
        "task": mse(predicted, target),
        "output": mse(predicted, answer),
        "features": sum(mse(a, b) for a, b in zip(features, wanted_features, strict=True)),
    }
    assert {name: value.item() for name, (_, value) in terms.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-6
    )
    loss = sum(expected.values())
    assert total.item() == pytest.approx(loss.item(), rel=1e-6)
    loss.backward()
    for name, weight in student.named_parameters():
        assert torch.allclose(weight.grad, ours[name], rtol=1e-3, atol=1e-6), name


def test_terms_are_weighed_by_step_and_told_apart() -> None:
    teacher, student = pair("base")
    plain = [LossTerm("task"), LossTerm("task", 2.0, snr_gamma=5.0), LossTerm("output", [[0, 1.0], [10, 0.0]])]
    task = distillation({"s": student}, teacher, memory(4), terms=plain, normalise=True)
    batch = first_batch(task)
    weights, values = zip(*(terms := task.losses("s", student, batch, 5)).values(), strict=True)
    assert dict(zip(terms, weights, strict=True)) == {"task": 1.0, "task 2": 2.0, "output": 0.5, "features": 1.0}
    inputs = (batch.noisy, batch.timesteps, batch.text)
    with torch.no_grad():
        (predicted, ours), (_, theirs) = by_hand(student, BASE, inputs), by_hand(teacher, BASE, inputs)
    snr = compute_snr(scheduler(), batch.timesteps)
    error = (predicted - batch.target).square().mean((1, 2, 3))
    assert values[1].item() == pytest.approx((error * (snr.clamp(max=5) / snr)).mean().item(), rel=1e-4)
    assert values[3].item() == pytest.approx(feature_loss(ours, theirs, normalise=True).item(), rel=1e-5)


def test_a_zero_snr_schedule_trains() -> None:
    """SD 2.1 and its like end without signal; nothing of the loss is infinite there."""
    config = dict(scheduler(prediction_type="v_prediction").config)
    ddim = DDIMScheduler.from_config(config, rescale_betas_zero_snr=True)
    assert float(ddim.alphas_cumprod[-1]) < 1e-6
    unet = tiny.unet(tiny.shape("sd15"))
    task = Distillation(memory(2), ddim, [LossTerm("task", snr_gamma=5.0)])
    task.attach_student("s", unet)
    noise = SimpleNamespace(
        integers=lambda _high: torch.tensor([999, 998]),
        uniform=lambda: torch.ones(2),
        normal=lambda *shape: torch.randn(2, *shape),
    )
    batch = task.read(torch.arange(2), noise)
    assert torch.isfinite(task.losses("s", unet, task.prepare(batch), 0)["task"][1])
