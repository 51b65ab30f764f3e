"""Kernels that were mixed for a timestep, kept for the next pictures: a sampler comes back to the same timesteps."""

from __future__ import annotations

import threading

from torch import Tensor

ROOM = 1 << 29
"""Bytes that all layers of this process may keep together: 25 steps of a small UNet, nothing of a large one, whose
mixing is lost in the cost of its convolutions."""
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
            if Kept._taken + size <= ROOM and moment not in self._mixed:
                Kept._taken += size
                self._mixed[moment] = mixed

    def clear(self) -> None:
        with Kept._lock:
            Kept._taken -= sum(_bytes(each) for each in self._mixed.values())
            self._mixed.clear()


def _bytes(mixed: Mixed) -> int:
    return sum(tensor.nbytes for tensor in mixed if tensor is not None)
