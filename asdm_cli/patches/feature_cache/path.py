"""The way of the latents from call to call, and what a multistep formula expects of it (as described in SADA,
arXiv:2507.17135). In the coordinate x / alpha the noise is its slope over sigma / alpha."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

FORMULA = (5 / 6, 5 / 6, -2 / 3)
"""What the last three slopes count in a step of the formula, the newest first."""


class LatentPath:
    """The latents of the last calls, no two at one level of noise, from the UNet's inputs alone: all rows of a prompt
    have the same. So a slope is what the solver followed from one call to the next, guidance and all: with DDIM and
    Euler the guided prediction itself, computed or not; with a multistep solver its mean over the step."""

    def __init__(self, signal: Sequence[float]):
        """`signal`: the share alpha^2 of each call."""
        self.alphas = [share**0.5 for share in signal]
        self.levels = [((1 - share) / share) ** 0.5 for share in signal]
        self.call = 0
        self.known: tuple[tuple[float, Tensor], ...] = ()
        """Level and place, newest first."""

    def arrive(self, call: int, latent: Tensor) -> None:
        level, wide = self.levels[call], torch.promote_types(latent.dtype, torch.float32)
        older = [each for each in self.known if each[0] != level]
        self.call, self.known = call, ((level, latent.to(wide) / self.alphas[call]), *older[: len(FORMULA)])

    @property
    def is_known(self) -> bool:
        """Whether there are as many slopes as the formula looks at."""
        return len(self.known) > len(FORMULA)

    def _slopes(self) -> list[Tensor]:
        return [(here - there) / (level - before) for (level, here), (before, there) in pairwise(self.known)]

    def unexpected(self) -> Tensor:
        """What the newest latents x are, less what the formula makes of the earlier ones and the slopes."""
        slopes, (newest, before) = self._slopes(), (self.known[0][0], self.known[1][0])
        expected = sum(weight * slope for weight, slope in zip(FORMULA, slopes, strict=True))
        return (slopes[0] - expected) * ((newest - before) * self.alphas[self.call])

    def disagreement(self) -> float:
        """The cosine between what was unexpected and the slopes' second difference; read from the device."""
        newest, middle, oldest = self._slopes()
        bend = newest - 2 * middle + oldest
        return float(torch.cosine_similarity(self.unexpected().flatten(), bend.flatten(), dim=0))
