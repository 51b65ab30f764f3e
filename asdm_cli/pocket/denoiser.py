"""Stage 3: the UNet, trained on cached latents and cached text states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel

from asdm_cli.pocket.pairs import to_unit

CONFIG = {
    "sample_size": 16,
    "in_channels": 8,
    "out_channels": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (32, 64, 128, 128),
    "layers_per_block": 2,
    "norm_num_groups": 16,
    "cross_attention_dim": 128,
    "attention_head_dim": (1, 2, 4, 4),  # SD's misnomer: the number of heads
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


@dataclass(frozen=True)
class Cached:
    """`latents` [n, 8, 16, 16] already scaled to unit variance; `text` [n, tokens, width]; `empty` [tokens, width]."""

    latents: Tensor
    text: Tensor
    empty: Tensor


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """uint8 [n, 3, 64, 64] -> the posterior's means, not scaled."""
    return torch.cat([vae.encode(to_unit(chunk)).latent_dist.mean for chunk in pictures.split(64)])


@torch.no_grad()
def encode_text(text_encoder: CLIPTextModel, ids: Tensor) -> Tensor:
    """ids [n, tokens] -> last hidden states [n, tokens, width], as the pipeline computes them."""
    return torch.cat([text_encoder(chunk).last_hidden_state for chunk in ids.split(256)])


class DenoisingTask:
    """v-prediction with min-SNR weights and text dropout."""

    def __init__(self, train: Cached, held_out: Cached):
        self.train, self.held_out = train, held_out
        self.size = len(train.latents)
        self.alphas = new_scheduler().alphas_cumprod

    def losses(self, module: nn.Module, rows: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        text = self.train.text[rows]
        dropped = torch.rand(len(rows), generator=noise) < TEXT_DROPOUT
        text = torch.where(dropped[:, None, None], self.train.empty, text)
        return {"task": self._loss(module, self.train.latents[rows], text, noise)}

    def _loss(self, module: nn.Module, latents: Tensor, text: Tensor, noise: torch.Generator) -> Tensor:
        t = torch.randint(0, len(self.alphas), (len(latents),), generator=noise)
        eps = torch.randn(latents.shape, generator=noise)
        alpha = self.alphas[t][:, None, None, None]
        noisy, target = velocity(latents, eps, alpha)
        predicted = module(noisy, t, text).sample.float()
        error = (predicted - target).square().mean((1, 2, 3))
        return (min_snr_weight(self.alphas[t], MIN_SNR_GAMMA) * error).mean()

    def validate(self, module: nn.Module) -> dict[str, float]:
        noise = torch.Generator().manual_seed(1)
        latents, text = self.held_out.latents[:256], self.held_out.text[:256]
        return {"task": float(self._loss(module, latents, text, noise))}


def velocity(latents: Tensor, eps: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """-> (noisy latents, v target) for cumulative alpha; Salimans & Ho 2022, appendix D."""
    signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
    return signal * latents + spread * eps, signal * eps - spread * latents


def min_snr_weight(alpha: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) / (SNR + 1), the v-prediction form of Hang et al. 2023; finite at zero SNR."""
    return torch.minimum(alpha, gamma * (1 - alpha))
