"""What a UNet is trained on: latents and the conditioning of their captions, read by number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """`text` [n, tokens, width]: what cross-attention reads; `added`: SDXL's `text_embeds` [n, width] and `time_ids`
    [n, 6], empty for others. float32, on the CPU."""

    text: Tensor
    added: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """`latents` [n, channels, height, width], scaled to the UNet's variance, float32 on the CPU."""

    latents: Tensor
    condition: Condition

    def __len__(self) -> int:
        return len(self.latents)


class Samples(Protocol):
    """Samples are told apart by their number alone: who reads which, in what order, is the loop's affair."""

    @property
    def size(self) -> int: ...

    @property
    def empty(self) -> Condition:
        """Of the empty prompt, one row: what text dropout puts in a caption's place."""

    def read(self, rows: Tensor, flipped: Tensor | None = None) -> Batch:
        """`rows` int64 [n]; `flipped` bool [n] asks for the mirrored picture's latents."""


@dataclass(frozen=True)
class InMemory:
    """Samples that are tensors already. `mirrored`, where there is any, are the latents of the mirrored pictures."""

    latents: Tensor
    condition: Condition
    empty: Condition
    mirrored: Tensor | None = None

    @property
    def size(self) -> int:
        return len(self.latents)

    def read(self, rows: Tensor, flipped: Tensor | None = None) -> Batch:
        added = {name: value[rows].float() for name, value in self.condition.added.items()}
        latents = self.latents[rows].float()
        if flipped is not None and self.mirrored is not None:
            latents = torch.where(flipped[:, None, None, None], self.mirrored[rows].float(), latents)
        return Batch(latents, Condition(self.condition.text[rows].float(), added))
