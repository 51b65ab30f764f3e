"""Figures of an image beside the reference's image of the same prompt and seed: uint8 [n, 3, h, w] twice -> [n]."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from asdm_cli.metrics.features import efficientnet_lite0, efficientnet_stages
from asdm_cli.sampling.image_set import ImageSet

PSNR_CEILING = 100.0
"""dB that a pair of equal images counts as, where the formula says infinity."""


@torch.inference_mode()
def compare(metric: str, images: ImageSet, reference: ImageSet, device: torch.device) -> Tensor:
    """[n] figures, image by image, on the CPU; `metric` as recipes call it."""
    how: Callable[[Tensor, Tensor], Tensor]
    how = (
        partial(perceptual, efficientnet_lite0(device))
        if metric == "perceptual"
        else {"psnr": psnr, "ssim": ssim}[metric]
    )
    pairs = zip(images.batches(16), reference.batches(16), strict=True)
    return torch.cat([how(mine.to(device), theirs.to(device)).cpu() for mine, theirs in pairs])


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """dB."""
    each = peak_signal_noise_ratio(images / 255, reference / 255, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return each.clamp(max=PSNR_CEILING)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """With an 11 x 11 Gaussian window."""
    each = structural_similarity_index_measure(images / 255, reference / 255, data_range=1.0, reduction="none")
    assert isinstance(each, Tensor), "no full image was asked for"
    return each.reshape(len(images))


def perceptual(network: nn.Module, images: Tensor, reference: Tensor) -> Tensor:
    """LPIPS's formula with all channel weights one, on the five stages of EfficientNet-Lite0: 0 (equal) .. 4.

    No weights were fitted to human judgement, so it is not LPIPS and its figures do not compare with LPIPS's.
    See [arXiv:1801.03924], equation 1.
    """
    both, _ = efficientnet_stages(network, torch.cat([images, reference]))
    distances = []
    for stage in both:
        mine, theirs = F.normalize(stage, dim=1).chunk(2)
        distances.append((mine - theirs).square().sum(1).mean((1, 2)))
    return torch.stack(distances).mean(0)
