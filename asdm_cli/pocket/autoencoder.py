"""Stage 1: the autoencoder, 64x64x3 pictures <-> 16x16x8 latents."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from typing_extensions import override

from asdm_cli.pocket.pairs import Pairs, to_unit
from asdm_cli.training.order import Noise
from asdm_cli.training.plan import Task, Term

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 48, 96),
    "layers_per_block": 1,
    "latent_channels": 8,
    "norm_num_groups": 16,
    "mid_block_add_attention": False,
    "sample_size": 64,
}
KL_WEIGHT = 1e-4
EDGE_WEIGHT = 1.0


class Reconstruction(nn.Module):
    """Encode, sample, decode: one forward, so that it can be wrapped for many processes."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """-> reconstruction like `pictures`; KL to the unit normal, mean over latent values."""
        posterior = self.vae.encode(pictures).latent_dist
        latents = posterior.mean + posterior.std * noise
        return self.vae.decode(latents).sample, posterior.kl().mean() / latents[0].numel()


class AutoencoderTask(Task):
    """L1 + L1 of the edges + a small KL; pictures are flipped at random."""

    def __init__(self, train: Pairs, held_out: Pairs):
        self.pictures, self.held_out = train.pictures, held_out.pictures
        self.size = len(train)

    def read(self, rows: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        pictures = to_unit(self.pictures[rows])
        flips = noise.uniform() < 0.5
        pictures[flips] = pictures[flips].flip(-1)
        return pictures, noise.normal(8, 16, 16)

    @override
    def losses(self, name: str, module: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Term]:
        pictures, latent_noise = batch
        decoded, kl = module(pictures, latent_noise)
        decoded = decoded.float()
        return {
            "l1": Term(F.l1_loss(decoded, pictures)),
            "mse": Term(F.mse_loss(decoded, pictures), 2.0),
            "edges": Term(_edge_l1(decoded, pictures), EDGE_WEIGHT),
            "kl": Term(kl, KL_WEIGHT),
        }

    @override
    def validate(self, name: str, module: nn.Module, step: int) -> dict[str, float]:
        return {"psnr_db": reconstruction_psnr(module.vae, self.held_out[:200])}


def _edge_l1(a: Tensor, b: Tensor) -> Tensor:
    difference = a - b
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Mean over pictures (uint8 [n, 3, h, w]) of each one's PSNR in dB, through the posterior's mean."""
    values = []
    for chunk in pictures.split(50):
        wanted = to_unit(chunk)
        got = vae.decode(vae.encode(wanted).latent_dist.mean).sample.clamp(-1, 1)
        values.append(-10 * ((got - wanted).div(2).square().mean((1, 2, 3))).log10())
    return float(torch.cat(values).mean())


@torch.no_grad()
def standardise(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1 over `pictures`, inside the 1x1 convolutions.

    The autoencoder as a whole computes the same function; its `scaling_factor` becomes 1.
    """
    latents = torch.cat([vae.encode(to_unit(chunk)).latent_dist.mean for chunk in pictures.split(64)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    into, out = vae.quant_conv, vae.post_quant_conv
    assert into is not None, "standardise needs the 1x1 convolutions"
    assert out is not None, "standardise needs the 1x1 convolutions"
    assert into.bias is not None, "diffusers gives both a bias"
    assert out.bias is not None, "diffusers gives both a bias"
    out.bias += (out.weight[:, :, 0, 0] * mean).sum(1)
    out.weight *= std[None, :, None, None]
    into.weight[:channels] /= std[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.bias[channels:] -= 2 * std.log()  # the second half is the log variance
    vae.register_to_config(scaling_factor=1.0)
