"""The one way in which pictures are brought to a network's size; every protocol card names it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

KERNEL = "bicubic, antialiased"


def resized(pictures: Tensor, size: int) -> Tensor:
    """uint8 [n, 3, h, w] -> float 0..1 [n, 3, size, size]; bicubic with antialiasing."""
    pixels = pictures.float() / 255
    if pixels.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
