"""Figures of a picture beside the reference's picture of the same prompt and seed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asdm_cli.measure.features import efficientnet_lite0, efficientnet_stages
from asdm_cli.measure.metrics import psnr, ssim
from asdm_cli.measure.pictures import PictureSet

Compare = Callable[[Tensor, Tensor], Tensor]
"""uint8 pictures and their references, [n, 3, h, w] each -> [n]."""


def comparison(metric: str, device: torch.device) -> Compare:
    """What `psnr`, `ssim` or `perceptual` of a recipe computes."""
    if metric == "perceptual":
        return partial(perceptual_distance, efficientnet_lite0(device))
    figure = {"psnr": psnr, "ssim": ssim}[metric]
    return lambda pictures, reference: figure(pictures.float() / 255, reference.float() / 255)


@torch.inference_mode()
def compare(how: Compare, pictures: PictureSet, reference: PictureSet, device: torch.device) -> Tensor:
    """[n] figures, picture by picture, on the CPU."""
    pairs = zip(pictures.batches(16), reference.batches(16), strict=True)
    return torch.cat([how(mine.to(device), theirs.to(device)).cpu() for mine, theirs in pairs])


def perceptual_distance(network: nn.Module, pictures: Tensor, reference: Tensor) -> Tensor:
    """LPIPS's formula with all channel weights one, on the five stages of EfficientNet-Lite0: 0 (equal) .. 4.

    No weights were fitted to human judgement, so it is not LPIPS and its figures do not compare with LPIPS's.
    See [arXiv:1801.03924], equation 1.
    """
    both, _ = efficientnet_stages(network, torch.cat([pictures, reference]))
    distances = []
    for stage in both:
        mine, theirs = F.normalize(stage, dim=1).chunk(2)
        distances.append((mine - theirs).square().sum(1).mean((1, 2)))
    return torch.stack(distances).mean(0)
