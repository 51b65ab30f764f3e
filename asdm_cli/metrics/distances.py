"""What images are worth, as functions of features, pixels and weights, and intervals by resampling.

A resample of n things with replacement is how often each is in it: a row of n counts that sums to n. A figure is a
function of such rows [resamples, n], so that no feature or kernel is computed twice; its row of ones is the figure
itself. torchmetrics' KID, FID and IS hold their sums inside and cannot be weighted; with all weights one, the formulas
here are torchmetrics' (tests hold them together).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.kid import poly_kernel

from asdm_cli.metrics.features import efficientnet_lite0, efficientnet_stages
from asdm_cli.records import Interval
from asdm_cli.sampling.image_set import ImageSet

BLOCK = 1024
"""Rows of a kernel matrix that are in memory at a time."""
SAME_CAPTION = 1e-4
"""Of 100: the score of a caption that stands in the list twice differs by rounding, and does not beat itself."""
PSNR_CEILING = 100.0
"""dB that a pair of equal images counts as, where the formula says infinity."""


@lru_cache(2)
def resamples(n: int, count: int, seed: int) -> Tensor:
    """float64 [1 + count, n]: the row of ones, then `count` seeded resamples."""
    random = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randint(n, (count, n), generator=random)
    counts = torch.zeros(count, n, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return torch.cat([torch.ones(1, n, dtype=torch.float64), counts])


def interval(figures: Tensor, confidence: float, centred: bool = False) -> Interval:
    """Percentile interval of `figures` [1 + count], as `resamples` orders them.

    `centred` shifts it onto the figure: for a figure that is biased by the number of distinct things (FD, IS),
    a resample has fewer of them, and its percentiles may all lie on one side of the figure.
    """
    value, spread = figures[0], figures[1:]
    spread = spread[~spread.isnan()]  # of a handful of things, a resample may be one thing n times: no pair for a KID
    if centred:
        spread = spread - spread.mean() + value
    if not len(spread):  # of two or three things that may be all of them
        return Interval(float(value), None, None, "")
    tail = (1 - confidence) / 2
    low, high = torch.quantile(spread.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64))
    kind = f"{100 * confidence:.4g} % bootstrap" + (", centred" if centred else "")
    return Interval(float(value), float(low), float(high), kind)


def wilson(hits: int, n: int, confidence: float, effect: float = 1.0) -> Interval:
    """A share of images with Wilson's score interval (1927), of as many as n / `effect` independent ones."""
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(confidence, dtype=torch.float64)))
    share, spread = hits / n, z * z * effect / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), f"{100 * confidence:.4g} % Wilson")


def design_effect(values: Tensor, times: int) -> float:
    """Of shares of `times` images of each prompt, [times x prompts]: the variance over what it would be if all were
    independent, 1 to `times` (Kish 1965). Where all are alike nothing tells it, and it is the largest."""
    by_prompt, share = values.double().view(times, -1).mean(0), float(values.double().mean())
    alone = share * (1 - share) / len(values)
    if times == 1 or len(by_prompt) < 2 or not alone:
        return float(times)
    return min(float(times), max(1.0, float(by_prompt.var()) / len(by_prompt) / alone))


def mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of per-image `values` [n] -> [resamples]."""
    return weights @ values.double() / weights.sum(1)


def kid(
    generated: Tensor,
    real: Tensor,
    generated_weights: Tensor,
    real_weights: Tensor,
    times: int = 1,
    real_within: Tensor | None = None,
) -> Tensor:
    """Unbiased squared MMD with KID's cubic kernel, over all images at once instead of random subsets.

    features [n, d] and [m, d], weights [resamples, n] and [resamples, m] -> [resamples]. An image that a resample
    holds twice is no pair with itself: such pairs would make every resample's distance too large. Nor are two of the
    `times` images of one prompt, generated i being of prompt i modulo n / times: they are alike, whoever drew them.
    `real_within` is what `within` finds of the real images, where it is known.
    See [arXiv:1801.01401]; equal to torchmetrics' KernelInceptionDistance with one subset of everything.
    """
    generated, real = generated.double(), real.double()
    cross = _kernel_sum(generated, real, generated_weights, real_weights)
    cross /= generated_weights.sum(1) * real_weights.sum(1)
    return (
        within(generated, generated_weights, times)
        + (within(real, real_weights) if real_within is None else real_within)
        - 2 * cross
    )


def within(features: Tensor, weights: Tensor, times: int = 1) -> Tensor:
    """Mean kernel over pairs of images of two prompts, of each of which there are `times`; no number for a resample
    without any."""
    features, prompts = features.double(), weights[:, : len(features) // times]
    alike = features.view(times, -1, features.shape[1]).transpose(0, 1)  # [prompts, times, d]
    own = ((alike @ alike.mT / features.shape[1] + 1) ** 3).sum((1, 2))
    total = _kernel_sum(features, features, weights, weights) - prompts.square() @ own
    pairs = weights.sum(1).square() - times**2 * prompts.square().sum(1)
    return (total / pairs).where(pairs > 0, torch.nan)


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

    Embeddings [n, d] and [m, d] of any length; image i belongs to caption i modulo m.
    """
    images, captions = F.normalize(images, dim=1), F.normalize(captions, dim=1)
    scores, better = [], []
    for start, block in zip(range(0, len(images), BLOCK), images.split(BLOCK), strict=True):
        similarity = 100 * block @ captions.T
        places = torch.arange(start, start + len(block), device=similarity.device) % len(captions)
        own = similarity.gather(1, places[:, None])[:, 0]
        scores.append(own)
        better.append((similarity > own[:, None] + SAME_CAPTION).sum(1))
    return torch.cat(scores), torch.cat(better)


@torch.inference_mode()
def compare(metric: str, images: ImageSet, reference: ImageSet, device: torch.device) -> Tensor:
    """[n] figures of images beside the reference's of the same prompts and seeds, on the CPU; `metric` as recipes call
    it."""
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
