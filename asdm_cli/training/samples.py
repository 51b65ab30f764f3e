"""What a UNet is trained on: latents and the conditioning of their captions, read by number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

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

    size: int
    empty: Condition
    """Of the empty prompt, one row: what text dropout puts in a caption's place."""

    def read(self, rows: Tensor, flipped: Tensor | None = None) -> Batch:
        """`rows` int64 [n]; `flipped` bool [n] asks for the mirrored picture's latents."""
