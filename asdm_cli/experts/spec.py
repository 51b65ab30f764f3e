"""What is said of one expert convolution. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Spec:
    """How one convolution is made of experts: how many, what its router looks at, how it weighs them.

    The words are keys of `router.LOOKS` and `router.ROUTINGS`.
    """

    experts: int
    router: str
    weights: str
