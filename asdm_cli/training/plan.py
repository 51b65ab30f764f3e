"""How a training goes, and what is trained: the two things that the loop is told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from asdm_cli.errors import ModelError
from asdm_cli.training.losses import Points, weight_at
from asdm_cli.training.order import Noise

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
"""What accelerate calls them."""


@dataclass(frozen=True)
class Plan:
    """How long, how fast, how often to look. `batch` is over all processes and accumulated parts."""

    steps: int
    batch: int
    lr: float
    schedule: str = "cosine"
    warmup: int = 50
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW
    options: dict[str, Any] = field(default_factory=lambda: {"weight_decay": 0.01, "betas": (0.9, 0.99)})
    accumulate: int = 1
    clip: float | None = 1.0
    ema_decay: float | None = 0.999
    ema_after: int = 0
    seed: int = 0
    save_every: int = 100
    keep: int = 2
    validate_every: int = 200
    precision: str = "auto"
    device: str = "auto"
    compile: bool = False
    trackers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Term:
    """One row of the loss: its value, and what it weighs at this step."""

    value: Tensor
    weight: float = 1.0

    @classmethod
    def at(cls, step: int, value: Tensor, weight: Points) -> Term:
        return cls(value, weight_at(weight, step))


class Task(ABC):
    """What is learnt. `size` samples make an epoch; what `read` and `prepare` return is shared by all who learn."""

    size: int

    @abstractmethod
    def read(self, rows: Tensor, noise: Noise) -> Any:
        """Samples of these numbers, and all that is random about this step."""

    def prepare(self, batch: Any) -> Any:
        """What costs once for all students: on the device, with the teacher's answers."""
        return batch

    @abstractmethod
    def losses(self, name: str, module: nn.Module, batch: Any, step: int) -> dict[str, Term]:
        """The terms of the student `name`, whose weighted sum is minimised."""

    def validate(self, name: str, module: nn.Module, step: int) -> dict[str, float]:  # noqa: ARG002 - for those who do
        """Figures of a student after so many steps, with the weights that it would be written with."""
        return {}


def native_bf16() -> bool:
    """Whether bfloat16 is fast here; on a CPU without its instructions it is a hundred times slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())


def mixed_precision(precision: str, device: str = "auto") -> str:
    """accelerate's word for `auto`, float32, bfloat16 or float16. ModelError for float16 without a GPU."""
    if precision == "auto":
        return "bf16" if native_bf16() else "no"
    if precision == "float16" and (device == "cpu" or not torch.cuda.is_available()):
        raise ModelError("float16 trains on a GPU only; use bfloat16 or float32 here")
    return PRECISIONS[precision]
