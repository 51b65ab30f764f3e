"""Features as they pass: what chosen modules return during a forward, without touching the forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Features:
    """Hooks on modules of a plain (unwrapped) model; they keep outputs only while `recorded` is open.

    Gradient checkpointing runs layers a second time in the backward pass: that pass is not recorded.
    """

    def __init__(self, model: nn.Module, modules: Sequence[str]):
        self.names = tuple(modules)
        self._kept: dict[str, Tensor] | None = None
        for name in self.names:
            model.get_submodule(name).register_forward_hook(self._hook(name))

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """A list that holds the outputs, in the order of the modules asked for, once the block is left."""
        self._kept = {}
        outputs: list[Tensor] = []
        try:
            yield outputs
            outputs.extend(self._kept[name] for name in self.names)
        finally:
            self._kept = None

    def _hook(self, name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._kept is not None:
                self._kept[name] = output if isinstance(output, Tensor) else output[0]

        return keep
