"""Kernels that were mixed for a timestep, kept for the next pictures: a sampler comes back to the same timesteps."""

from __future__ import annotations

import os
import threading

from torch import Tensor

ROOM_MB = "ASDM_KEPT_KERNELS_MB"
"""What all layers of this process may keep together, from the environment; 512 if it does not say. 25 steps of SD
1.5's Base take some 13,000 in bfloat16."""
Mixed = tuple[Tensor, Tensor | None]


class Kept:
    """Of one layer: timestep -> kernel and bias. A copied layer begins with none."""

    _taken = 0
    _lock = threading.RLock()  # collecting garbage may end another layer while this thread holds it

    def __init__(self) -> None:
        self._mixed: dict[float, Mixed] = {}

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return (Kept, ())

    def __del__(self) -> None:
        self.clear()

    def get(self, moment: float) -> Mixed | None:
        return self._mixed.get(moment)

    def put(self, moment: float, mixed: Mixed) -> None:
        """Nothing happens where there is no room."""
        size = _bytes(mixed)
        with Kept._lock:
            if Kept._taken + size <= room() and moment not in self._mixed:
                Kept._taken += size
                self._mixed[moment] = mixed

    def clear(self) -> None:
        with Kept._lock:
            Kept._taken -= sum(_bytes(each) for each in self._mixed.values())
            self._mixed.clear()


def room() -> float:
    """Bytes."""
    return float(os.environ.get(ROOM_MB, "512")) * 1e6


def _bytes(mixed: Mixed) -> int:
    return sum(tensor.nbytes for tensor in mixed if tensor is not None)
