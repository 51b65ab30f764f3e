"""One module that learns: its optimizer, its running mean, what it notes, and its state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from asdm_cli.errors import ModelError
from asdm_cli.recipe.verbs import DistillRecipe, Optimizer

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
"""What accelerate calls them."""


def native_bf16(device: str = "auto") -> bool:
    """Whether bfloat16 is fast here; on a CPU without its instructions it is a hundred times slower."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())


def mixed_precision(precision: str, device: str = "auto") -> str:
    """accelerate's word for `auto`, float32, bfloat16 or float16. ModelError for float16 without a GPU."""
    if precision == "auto":
        return "bf16" if native_bf16(device) else "no"
    if precision == "float16" and (device == "cpu" or not torch.cuda.is_available()):
        raise ModelError("float16 trains on a GPU only; use bfloat16 or float32 here")
    return PRECISIONS[precision]


def optimizer_of(settings: Optimizer, weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Of a class of torch.optim, or of an installed package (`package.module:Class`). ModelError where there is none;
    what the class says of its options is raised as it is."""
    module, _, attribute = settings.name.rpartition(":")
    try:
        kind = getattr(import_module(module) if module else torch.optim, attribute)
    except (ImportError, AttributeError, TypeError) as error:  # TypeError: a relative name
        told = f"{settings.name!r} is not there ({error}); name a class of torch.optim, or package.module:Class"
        raise ModelError(told) from None
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ModelError(f"{settings.name!r} is no torch optimizer; name a class that is one")
    # torch's own choice on a CPU is a loop over tensors, several times slower than one fused pass
    fast = {"fused", "foreach"}
    fused = {"fused": True} if "fused" in signature(kind).parameters and not fast & settings.options.keys() else {}
    return kind(weights, **{"lr": settings.lr, **fused, **settings.options})


def schedule_of(settings: Optimizer, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """What diffusers says of rates that it cannot follow is raised as it is."""
    kind = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    return get_scheduler(kind, optimizer, num_warmup_steps=settings.warmup, num_training_steps=steps)


class StudentTrainer:
    """`module` is the plain one (hooks and state dicts belong there), `wrapped` what accelerate made of it.

    Every student has an Accelerator of its own, because the loss scale of float16 follows one optimizer. What does
    not require a gradient when this is made stays as it is. `tracked` is where the recipe's trackers write, if they do.
    """

    def __init__(self, name: str, module: nn.Module, recipe: DistillRecipe, tracked: Path | None = None):
        self.name, self.module, self.clip = name, module, recipe.clip
        self.accelerator = Accelerator(
            cpu=recipe.device == "cpu"
            or not torch.cuda.is_available(),  # or it would not group processes without a GPU
            mixed_precision=mixed_precision(recipe.precision, recipe.device),
            dynamo_backend="inductor" if recipe.compile else None,
            log_with=list(recipe.trackers) if tracked and recipe.trackers else None,
            project_dir=tracked,
        )
        self.learning = [weight for weight in module.parameters() if weight.requires_grad]
        module.to(self.accelerator.device, memory_format=torch.channels_last)
        for norm in module.modules() if self.accelerator.device.type == "cpu" else ():
            if isinstance(norm, nn.GroupNorm):
                norm.register_forward_pre_hook(_spare)
        optimizer = optimizer_of(recipe.optimizer, self.learning)
        self.schedule = schedule_of(recipe.optimizer, optimizer, recipe.steps)
        self.ema: EMAModel | None = None
        if recipe.ema != "none":
            ema = recipe.ema
            self.ema = EMAModel(module.parameters(), ema.decay, update_after_step=ema.after, foreach=True)
        self.wrapped, self.optimizer = self.accelerator.prepare(module, optimizer)
        self._figures: dict[str, list[Tensor]] = defaultdict(list)

    @property
    def lr(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    def optimizer_step(self) -> Tensor:
        """With the gradients at hand; their norm before clipping."""
        norm = self.accelerator.clip_grad_norm_(self.learning, torch.inf if self.clip == "none" else self.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return norm

    def ema_step(self) -> None:
        if self.ema is not None:
            self.ema.step(self.module.parameters())

    @contextmanager
    def ema_weights(self) -> Iterator[nn.Module]:
        """The module as it is written: in evaluation mode, with the running mean, if there is one, for its weights."""
        training = self.module.training
        if self.ema is not None:
            self.ema.store(self.module.parameters())
            self.ema.copy_to(self.module.parameters())
        try:
            yield self.module.eval()
        finally:
            self.module.train(training)
            if self.ema is not None:
                self.ema.restore(self.module.parameters())

    def note(self, figures: dict[str, Tensor]) -> None:
        """Kept where they are computed until they are asked for; some are known per part of a step, some per step."""
        for name, value in figures.items():
            self._figures[name].append(value.detach().float())

    def means(self) -> dict[str, float]:
        """Of what was noted since the last call, over all processes."""
        means = {name: torch.as_tensor(sum(values) / len(values)) for name, values in self._figures.items()}
        self._figures.clear()
        return {name: float(self.accelerator.reduce(mean, "mean")) for name, mean in means.items()}

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        if self.ema is not None:
            self.ema.to(self.accelerator.device)

    def _parts(self) -> dict[str, Any]:
        parts = {"module": self.module, "optimizer": self.optimizer, "schedule": self.schedule}
        parts |= {"ema": self.ema, "scaler": self.accelerator.scaler}
        return {name: part for name, part in parts.items() if part is not None}


def _spare(norm: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
    """Behind frozen layers: torch (2.13) dies in GroupNorm's backward pass on a CPU where a channels-last input needs
    no gradient and the weights do."""
    dies = torch.is_grad_enabled() and norm.weight.requires_grad and not inputs[0].requires_grad
    return (inputs[0].contiguous(),) if dies else None
