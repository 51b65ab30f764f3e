"""The mathematics of the three stages, each against someone else's code or its own inverse."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL

from asdm_cli.metrics.probe import CONFIG, WEIGHTS, read_probe
from asdm_cli.training.distillation import min_snr_weight
from asdm_cli.training.loop import Noise, Part
from pocket import art, autoencoder, denoiser, drawings, probe, stages
from pocket.drawings import to_unit


def test_standardise_keeps_the_function_and_gives_unit_latents():
    torch.manual_seed(0)
    vae = AutoencoderKL(**autoencoder.CONFIG)
    pictures = torch.randint(0, 255, (8, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        before = vae.decode(vae.encode(to_unit(pictures)).latent_dist.mean).sample
        autoencoder.standardise(vae, pictures)
        latents = vae.encode(to_unit(pictures)).latent_dist.mean
        after = vae.decode(latents).sample
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)


def test_denoising_is_the_scheduler_s_own_mathematics() -> None:
    torch.manual_seed(0)
    latents, text = torch.randn(2, 5, 4, 8, 8), torch.randn(6, 3, 7)
    seen: dict[str, torch.Tensor] = {}

    def unet(noisy: torch.Tensor, timesteps: torch.Tensor, given: torch.Tensor, **_: Any) -> tuple:
        seen.update(noisy=noisy, timesteps=timesteps, text=given)
        return (torch.zeros_like(noisy),)

    task = denoiser.Denoising(torch.nn.Identity(), latents, text, (latents[0], text[:-1]))
    rows = torch.tensor([3, 1, 4, 0])
    draws = Noise(0, 7, Part(4))
    loss = task.losses(unet, rows, draws)["task"]
    again = Noise(0, 7, Part(4))
    chosen, kept = latents[again.integers(2), rows], again.uniform() >= denoiser.TEXT_DROPOUT
    timesteps, noise = again.integers(1000), again.normal(4, 8, 8)
    assert torch.equal(seen["timesteps"], timesteps)
    torch.testing.assert_close(seen["noisy"], task.scheduler.add_noise(chosen, noise, timesteps))
    assert torch.equal(seen["text"], text[torch.where(kept, rows, 5)])
    velocity = task.scheduler.get_velocity(chosen, noise, timesteps)
    weights = min_snr_weight(task.alphas[timesteps], denoiser.MIN_SNR_GAMMA, "v_prediction")
    torch.testing.assert_close(loss, (weights * velocity.square().mean((1, 2, 3))).mean())


def test_a_fitted_probe_separates_what_can_be_separated() -> None:
    torch.manual_seed(0)
    truth = torch.arange(60) % 3
    inputs = torch.randn(60, 5) + 8 * torch.nn.functional.one_hot(truth, 5)
    weight, bias = probe.fit(inputs, truth, 3, 1e-3)
    assert torch.equal((inputs @ weight.T + bias).argmax(1), truth)
    shift = 100 + torch.arange(5.0)
    moved, moved_bias = probe.fit(inputs * 3 + shift, truth, 3, 1e-3)  # standardised inside: units do not matter
    torch.testing.assert_close(
        (inputs * 3 + shift) @ moved.T + moved_bias, inputs @ weight.T + bias, atol=2e-2, rtol=2e-2
    )


def test_the_probe_that_ships_knows_the_labels_and_styles() -> None:
    folder = stages.WEIGHTS / "probe"
    assert {(folder / name).is_file() for name in (CONFIG, WEIGHTS)} == {True}
    shipped = read_probe(folder)
    found = {name: target.classes for name, target in shipped.targets.items()}
    assert found == {"label": drawings.labels(), "style": [each.style for each in art.SETS]}
