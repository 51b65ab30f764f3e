"""Stage `unet`: the UNet, on cached latents and cached text states."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from asdm_cli.training.loop import Noise, Part
from pocket.drawings import moved, to_unit

CONFIG = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (24, 48, 96, 192),
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "cross_attention_dim": 128,
    "attention_head_dim": (1, 2, 4, 8),  # SD's misnomer: the number of heads
}
TEXT_DROPOUT = 0.1
MIN_SNR_GAMMA = 5.0


def new_scheduler() -> DDIMScheduler:
    """SD's betas, rescaled to zero terminal SNR (white backgrounds need it), v-prediction as SD 2.x."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """[n, 3, 64, 64] in -1..1 -> the posterior's means, scaled to the UNet's variance."""
    means = [vae.encode(chunk).latent_dist.mean for chunk in images.split(64)]
    return torch.cat(means) * vae.config["scaling_factor"]


@torch.no_grad()
def encode_text(text_encoder: CLIPTextModel, ids: Tensor) -> Tensor:
    """ids [n, tokens] -> last hidden states [n, tokens, width], as the pipeline computes them."""
    return torch.cat([text_encoder(chunk).last_hidden_state for chunk in ids.split(256)])


def copies(vae: AutoencoderKL, images: Tensor, count: int) -> Tensor:
    """Latents [1 + count, n, ...] of uint8 images [n, 3, h, w] as they are and moved `count` times."""
    own = to_unit(images)
    noise = Noise(0, 0, Part(len(images)), images.device)
    return torch.stack([encode_latents(vae, own), *(encode_latents(vae, moved(own, noise)) for _ in range(count))])


class Denoising:
    """v-prediction with min-SNR weights and text dropout.

    `latents` [copies, n, ...] and `text` [n + 1, tokens, width], whose last row is the empty prompt's; `held_out` is
    (latents [m, ...], text [m, tokens, width]).
    """

    def __init__(self, unet: UNet2DConditionModel, latents: Tensor, text: Tensor, held_out: tuple[Tensor, Tensor]):
        self.module = unet
        self.latents, self.text, self.held_out = latents, text, held_out
        self.size = latents.shape[1]
        self.scheduler = new_scheduler()
        self.alphas = self.scheduler.alphas_cumprod.to(latents.device)

    def losses(self, module: nn.Module, rows: Tensor, noise: Noise) -> dict[str, Tensor]:
        latents = self.latents[noise.integers(len(self.latents)), rows]
        kept = noise.uniform() >= TEXT_DROPOUT
        text = self.text[torch.where(kept, rows, len(self.text) - 1)]
        return {"task": self._task(module, latents, text, noise, MIN_SNR_GAMMA)}

    def _task(self, module: nn.Module, latents: Tensor, text: Tensor, noise: Noise, gamma: float | None) -> Tensor:
        timesteps, eps = noise.integers(len(self.alphas)), noise.normal(*latents.shape[1:])
        alpha = self.alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * eps
        velocity = alpha.sqrt() * eps - (1 - alpha).sqrt() * latents
        predicted = module(noisy.to(memory_format=torch.channels_last), timesteps, text, return_dict=False)[0]
        each = F.mse_loss(predicted.float(), velocity, reduction="none").mean((1, 2, 3))
        if gamma is None:
            return each.mean()
        snr = self.alphas[timesteps] / (1 - self.alphas[timesteps])
        return (each * snr.clamp(max=gamma) / (snr + 1)).mean()  # min-SNR for v: arXiv:2303.09556

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """The loss without weights, on held-out samples and as many trained ones, always with the same noise."""
        n = len(self.held_out[0])
        sides = {"held_out": self.held_out, "trained": (self.latents[0, :n], self.text[:n])}
        losses = {}
        for name, (latents, text) in sides.items():
            noise = Noise(0, 0, Part(n), self.latents.device)
            losses[f"{name}_loss"] = float(self._task(self.module, latents, text, noise, None))
        return losses
