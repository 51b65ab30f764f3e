"""Stage `vae`: the autoencoder, 64x64x3 images <-> 32x32x4 latents."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from asdm_cli.training.loop import Noise
from pocket.drawings import Pairs, moved, to_unit

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (16, 48),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 16,
    "mid_block_add_attention": False,
    "sample_size": 64,
}
KL_WEIGHT = 1e-4


class Reconstruction(nn.Module):
    """Encode, sample, decode: one forward, so that it can be wrapped for many processes."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """-> reconstruction like `images`; KL to the unit normal, mean over latent values."""
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * noise
        return self.vae.decode(latents).sample.float(), posterior.kl().float().mean() / latents[0].numel()


class Autoencoding:
    """L1 + MSE + L1 of the edges + a small KL, on images that are mirrored, scaled and shifted at random."""

    def __init__(self, vae: AutoencoderKL, train: Pairs, held_out: Pairs, device: torch.device):
        self.module = Reconstruction(vae)
        self.images, self.held_out = train.images.to(device), held_out.images.to(device)
        self.size = len(train)
        side = train.images.shape[-1] // 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.latent = (vae.config["latent_channels"], side, side)

    def losses(self, module: nn.Module, rows: Tensor, noise: Noise) -> dict[str, Tensor]:
        with torch.autocast(rows.device.type, enabled=False):
            images = moved(to_unit(self.images[rows]), noise)
        decoded, kl = module(images.to(memory_format=torch.channels_last), noise.normal(*self.latent))
        return {
            "l1": F.l1_loss(decoded, images),
            "mse": 2 * F.mse_loss(decoded, images),
            "edges": _edge_l1(decoded, images),
            "kl": KL_WEIGHT * kl,
        }

    def figures(self) -> dict[str, float]:
        return {"psnr_db": reconstruction_psnr(self.module.vae, self.held_out)}


def _edge_l1(a: Tensor, b: Tensor) -> Tensor:
    difference = a - b
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Mean over images (uint8 [n, 3, h, w]) of each one's PSNR in dB, through the posterior's mean."""
    values = []
    for chunk in images.split(50):
        wanted = to_unit(chunk)
        got = vae.decode(vae.encode(wanted).latent_dist.mean).sample.clamp(-1, 1)
        values.append(-10 * ((got - wanted).div(2).square().mean((1, 2, 3))).log10())
    return float(torch.cat(values).mean())


@torch.no_grad()
def standardise(vae: AutoencoderKL, images: Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1 over `images`, inside the 1x1 convolutions.

    The autoencoder as a whole computes the same function; its `scaling_factor` becomes 1.
    """
    latents = torch.cat([vae.encode(to_unit(chunk)).latent_dist.mean for chunk in images.split(64)])
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
