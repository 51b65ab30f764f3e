"""Extrapolating a feature from its last key steps: Newton's divided differences, tensors in and tensors out.

With values F at coordinates c0 > c1 > c2 (newest first), D1 = (F0 - F1) / (c0 - c1), D2 = (D1 - D1') / (c0 - c2), the
value at c is F0 + (c - c0) D1 + (c - c0)(c - c1) D2: exact for polynomials of its order, however far apart the
key steps are. Order 0 hands on F0 itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Differences = tuple[Tensor, ...]
"""F0, D1, D2: as many as the order says and one more, all of the feature's shape and dtype."""


def first(value: Tensor, order: int) -> Differences:
    """After one key step nothing is known of the change: zero, so that the value is plain reuse."""
    return (value, *(torch.zeros_like(value) for _ in range(order)))


def differences(value: Tensor, before: Differences, scales: Sequence[float]) -> Differences:
    """The differences at a new key step from those at the last one and `scales`, 1 / (c - c_k) for k = 0, 1."""
    found = [value]
    for old, scale in zip(before, scales, strict=False):  # the last one before has nothing newer to differ from
        found.append((found[-1] - old).mul_(scale))
    return tuple(found)


def extrapolate(known: Differences, factors: Sequence[float]) -> Tensor:
    """The value at a coordinate with these `factors`; order 0 returns the kept tensor, not a copy."""
    if not factors:
        return known[0]
    value = torch.add(known[0], known[1], alpha=factors[0])
    for difference, factor in zip(known[2:], factors[1:], strict=True):
        value.add_(difference, alpha=factor)
    return value


def relative_error(guess: Tensor, truth: Tensor) -> Tensor:
    """Scalar: the norm of the difference over the norm of the truth, in float32."""
    return torch.linalg.vector_norm(guess - truth, dtype=torch.float32) / torch.linalg.vector_norm(
        truth, dtype=torch.float32
    )


def scales(coordinate: float, known: Sequence[float], order: int) -> tuple[float, ...]:
    """1 / (coordinate - c_k) for the `order` newest known coordinates; 0 where there is none, or no distance."""
    distances = [coordinate - each for each in known[:order]]
    return _padded([1 / distance if distance else 0.0 for distance in distances], order)


def factors(coordinate: float, known: Sequence[float], order: int) -> tuple[float, ...]:
    """Newton's products (coordinate - c_0) ... (coordinate - c_k-1), of as many as `known` points determine."""
    found, product = [], 1.0
    for k in range(min(order, len(known) - 1)):
        product *= coordinate - known[k]
        found.append(product)
    return _padded(found, order)


def _padded(numbers: list[float], length: int) -> tuple[float, ...]:
    return (*numbers, *(0.0 for _ in range(length - len(numbers))))
