"""The terms of distillation, on tensors alone; BK-SDM (Kim et al. 2023), section 3.2, with weights over timesteps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

Points = float | Sequence[Sequence[float]]


def prediction_loss(predicted: Tensor, wanted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean square over a prediction [n, c, h, w], in float32; `weights` [n] for each sample's timestep."""
    error = (predicted.float() - wanted.float()).square()
    return error.mean() if weights is None else (weights * error.mean((1, 2, 3))).mean()


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], normalise: bool = False) -> Tensor:
    """Sum over features of their mean square differences, in float32.

    With `normalise` each is divided by the teacher's mean square there, so that no node outweighs the others
    (as LAPTOP-Diff has it).
    """
    terms = []
    for ours, theirs in zip(student, teacher, strict=True):
        wanted = theirs.float()
        term = (ours.float() - wanted).square().mean()
        terms.append(term / wanted.square().mean().clamp_min(1e-12) if normalise else term)
    return torch.stack(terms).sum()


def min_snr_weight(alpha: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """min(SNR, gamma) over SNR (epsilon) or SNR + 1 (v); Hang et al. 2023, eqs. 6 and 9. Finite at zero SNR.

    `alpha` [n]: the cumulative product at each sample's timestep, SNR = alpha / (1 - alpha).
    """
    if prediction_type == "v_prediction":
        return torch.minimum(alpha, gamma * (1 - alpha))
    return (gamma * (1 - alpha) / alpha).clamp(max=1)


def weight_at(weight: Points, step: int) -> float:
    """The weight at a step: a constant, or straight lines between [step, weight] points."""
    if isinstance(weight, int | float):
        return float(weight)
    after = bisect_right([point[0] for point in weight], step)
    if after == 0 or after == len(weight):
        return float(weight[min(after, len(weight) - 1)][1])
    (x0, y0), (x1, y1) = weight[after - 1], weight[after]
    return float(y0 + (y1 - y0) * (step - x0) / (x1 - x0))
