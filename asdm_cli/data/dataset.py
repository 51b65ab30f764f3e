"""Shards as samples to learn from: encoded once, or at every read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from asdm_cli.data.cache import Build, OnFaults, Share
from asdm_cli.data.cache_key import Wanted, cache_state
from asdm_cli.data.cached import CachedSamples
from asdm_cli.data.encoder import Encoder
from asdm_cli.data.shards import Shard
from asdm_cli.data.uncached import EncodedEachTime
from asdm_cli.models.directory import ModelDirectory

Encoded = CachedSamples | EncodedEachTime


@dataclass(frozen=True)
class Dataset:
    """Shards as `model` encodes them; `cached` below `root`, where an index is kept otherwise."""

    shards: Sequence[Shard]
    model: ModelDirectory
    resolution: int
    flip: bool
    cached: bool
    root: Path
    on_faults: OnFaults

    def _wanted(self) -> Wanted:
        return Wanted(self.shards, self.model if self.cached else None, self.resolution, self.flip)

    def state(self) -> str:
        """In words: what is there already, and what must be made."""
        what = "encoded samples" if self.cached else "index of samples (encoded at every step)"
        return f"{what} in {cache_state(self._wanted(), self.root)}"

    def open(self, device: torch.device, share: Share) -> Encoded:
        """All processes come here together; what is missing is made first."""
        load: Callable[[], Encoder] = lambda: Encoder.load(self.model, self.resolution, device, torch.float32)  # noqa: E731
        folder = Build(self._wanted(), self.root, load if self.cached else None, self.on_faults, share=share).run()
        return CachedSamples(folder) if self.cached else EncodedEachTime(folder, self.shards, load())
