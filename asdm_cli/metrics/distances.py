"""What sets of images are worth, as functions of features and of weights [resamples, n] (see `bootstrap`).

torchmetrics' KID, FID and IS hold their sums inside and cannot be weighted, so a bootstrap through them would
extract features again for each resample. The formulas here take weights instead; with all weights one they are
torchmetrics' (tests hold them together).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.image.kid import poly_kernel

BLOCK = 1024
"""Rows of a kernel matrix that are in memory at a time."""
SAME_CAPTION = 1e-4
"""Of 100: the score of a caption that stands in the list twice differs by rounding, and does not beat itself."""


def mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of per-image `values` [n] -> [resamples]."""
    return weights @ values.double() / weights.sum(1)


def kid(generated: Tensor, real: Tensor, generated_weights: Tensor, real_weights: Tensor) -> Tensor:
    """Unbiased squared MMD with KID's cubic kernel, over all images at once instead of random subsets.

    features [n, d] and [m, d], weights [resamples, n] and [resamples, m] -> [resamples]. An image that a resample
    holds twice is no pair with itself: such pairs would make every resample's distance too large.
    See [arXiv:1801.01401]; equal to torchmetrics' KernelInceptionDistance with one subset of everything.
    """
    generated, real = generated.double(), real.double()
    cross = _kernel_sum(generated, real, generated_weights, real_weights)
    cross /= generated_weights.sum(1) * real_weights.sum(1)
    return _within(generated, generated_weights) + _within(real, real_weights) - 2 * cross


def _within(features: Tensor, weights: Tensor) -> Tensor:
    """Mean kernel over pairs of two different images."""
    own = (features.square().sum(1) / features.shape[1] + 1) ** 3
    total = _kernel_sum(features, features, weights, weights) - weights.square() @ own
    return total / (weights.sum(1).square() - weights.square().sum(1))


def _kernel_sum(a: Tensor, b: Tensor, a_weights: Tensor, b_weights: Tensor) -> Tensor:
    """sum_ij u_i k(a_i, b_j) v_j for every resample (u, v)."""
    total = torch.zeros(len(a_weights), dtype=torch.float64)
    for block, weights in zip(a.split(BLOCK), a_weights.split(BLOCK, dim=1), strict=True):
        total += (weights * (b_weights @ poly_kernel(b, block))).sum(1)
    return total


def frechet(generated: Tensor, real: Tensor, generated_weights: Tensor, real_weights: Tensor) -> Tensor:
    """Frechet distance of the two sets' Gaussians (FID's formula) -> [resamples].

    tr (S1 S2)^(1/2) is the nuclear norm of A1 A2^T where S = A^T A, so no matrix is larger than min(n, d).
    """
    pairs = zip(generated_weights, real_weights, strict=True)
    return torch.stack([_frechet_once(generated.double(), real.double(), u, v) for u, v in pairs])


def _frechet_once(generated: Tensor, real: Tensor, generated_weights: Tensor, real_weights: Tensor) -> Tensor:
    mean_generated, root_generated = _gaussian(generated, generated_weights)
    mean_real, root_real = _gaussian(real, real_weights)
    product = root_generated @ root_real.T
    overlap = torch.linalg.eigvalsh(product @ product.T).clamp(min=0).sqrt().sum()
    spread = root_generated.square().sum() + root_real.square().sum()
    return (mean_generated - mean_real).square().sum() + spread - 2 * overlap


def _gaussian(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and a root A [<= min(n, d), d] of the unbiased covariance A^T A."""
    present = weights > 0
    features, weights = features[present], weights[present]
    count = weights.sum()
    centre = weights @ features / count
    root = (features - centre) * (weights / (count - 1)).sqrt()[:, None]
    if len(root) > root.shape[1]:
        root = torch.linalg.qr(root, mode="r").R
    return centre, root


def inception_score(logits: Tensor, weights: Tensor) -> Tensor:
    """exp of the mean KL divergence of an image's classes from all images' -> [resamples]; one split of all."""
    logs = logits.double().log_softmax(1)
    sharpness = mean((logs.exp() * logs).sum(1), weights)
    marginal = weights @ logs.exp() / weights.sum(1, keepdim=True)
    return (sharpness - torch.special.xlogy(marginal, marginal).sum(1)).exp()


def own_caption(images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    """How each image fits its own caption: 100 * cosine (CLIPScore) [n], and how many captions fit better [n].

    Embeddings [n, d] of any length; image i belongs to caption i.
    """
    images, captions = F.normalize(images, dim=1), F.normalize(captions, dim=1)
    scores, better = [], []
    for start, block in zip(range(0, len(images), BLOCK), images.split(BLOCK), strict=True):
        similarity = 100 * block @ captions.T
        own = similarity.diagonal(offset=start)
        scores.append(own)
        better.append((similarity > own[:, None] + SAME_CAPTION).sum(1))
    return torch.cat(scores), torch.cat(better)
