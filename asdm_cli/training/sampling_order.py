"""Who learns from what, and with which noise: a function of seed and step alone.

A whole step's order and noise are drawn by every process, which keeps its part. So a run that was stopped goes on
as if it had not been, and any number of processes and of accumulated parts see the same samples and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """The `index`-th of `count` equal parts of a step's `batch` samples."""

    batch: int
    index: int = 0
    count: int = 1

    @property
    def rows(self) -> slice:
        size = self.batch // self.count
        return slice(self.index * size, (self.index + 1) * size)


def sampling_order(size: int, seed: int, step: int, part: Part) -> Tensor:
    """Numbers of this part's samples, int64: every epoch of `size` samples is in an order of its own, and whole."""
    wanted = torch.arange(step * part.batch, (step + 1) * part.batch)
    epochs = wanted // size
    orders = [torch.randperm(size, generator=_generator(seed, 10_007, int(epoch))) for epoch in epochs.unique()]
    return torch.stack(orders)[epochs - epochs[0], wanted % size][part.rows]


def _generator(seed: int, factor: int, index: int) -> torch.Generator:
    """torch takes seeds of 64 bits, and on a CPU looks at 32 of them."""
    return torch.Generator().manual_seed(((seed ^ seed >> 32) * factor + index) % 2**63)


class Noise:
    """Random numbers of one part of one step, on the CPU; the calls must be the same in every part."""

    def __init__(self, seed: int, step: int, part: Part):
        self.part, self.source = part, _generator(seed, 1_000_003, step)

    def normal(self, *shape: int) -> Tensor:
        """[n, *shape] of the unit normal."""
        return torch.randn((self.part.batch, *shape), generator=self.source)[self.part.rows]

    def uniform(self, *shape: int) -> Tensor:
        """[n, *shape] in [0, 1)."""
        return torch.rand((self.part.batch, *shape), generator=self.source)[self.part.rows]

    def integers(self, high: int) -> Tensor:
        """[n] int64 in [0, high)."""
        return torch.randint(0, high, (self.part.batch,), generator=self.source)[self.part.rows]
