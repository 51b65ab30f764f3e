"""Intervals: resampling as weights, so that no feature or kernel is computed twice; Wilson's for shares.

A resample of n things with replacement is how often each is in it: a row of n counts that sums to n. A figure is a
function of such rows; its row of ones is the figure itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from asdm_cli.records import Interval


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
    tail = (1 - confidence) / 2
    low, high = torch.quantile(spread.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64))
    kind = f"{100 * confidence:.4g} % bootstrap" + (", centred" if centred else "")
    return Interval(float(value), float(low), float(high), kind)


def wilson(hits: int, n: int, confidence: float) -> Interval:
    """A share of independent images with Wilson's score interval (1927)."""
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(confidence, dtype=torch.float64)))
    share, spread = hits / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), f"{100 * confidence:.4g} % Wilson")
