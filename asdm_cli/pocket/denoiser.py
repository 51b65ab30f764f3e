"""Stage 3: the UNet, trained on cached latents and cached text states."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor
from transformers import CLIPTextModel

from asdm_cli.data.samples import InMemory
from asdm_cli.pocket.pairs import to_unit
from asdm_cli.training.distillation import Distillation, Row

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


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """uint8 [n, 3, 64, 64] -> the posterior's means, not scaled."""
    return torch.cat([vae.encode(to_unit(chunk)).latent_dist.mean for chunk in pictures.split(64)])


@torch.no_grad()
def encode_text(text_encoder: CLIPTextModel, ids: Tensor) -> Tensor:
    """ids [n, tokens] -> last hidden states [n, tokens, width], as the pipeline computes them."""
    return torch.cat([text_encoder(chunk).last_hidden_state for chunk in ids.split(256)])


def denoising(train: InMemory, held_out: InMemory) -> Distillation:
    """v-prediction with min-SNR weights and text dropout: what `asdm distill` does without a teacher."""
    rows = [Row("task", snr_gamma=MIN_SNR_GAMMA)]
    task = Distillation(train, new_scheduler(), rows, text_dropout=TEXT_DROPOUT)
    task.held_out = held_out
    return task
