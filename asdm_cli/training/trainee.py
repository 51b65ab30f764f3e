"""One module that learns: its optimizer, its running mean, and its state on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from asdm_cli.errors import ModelError
from asdm_cli.training.plan import Plan, mixed_precision


class Trainee:
    """`module` is the plain one (hooks and state dicts belong there), `wrapped` what accelerate made of it.

    Every trainee has an Accelerator of its own, because the loss scale of float16 follows one optimizer. What does
    not require a gradient when this is made stays as it is. Where `tracked` is a folder, the accelerator has the
    plan's trackers, and they write there.
    """

    def __init__(self, name: str, module: nn.Module, plan: Plan, tracked: Path | None = None):
        self.name, self.module, self.clip = name, module, plan.clip
        self.accelerator = accelerator(plan, tracked)
        learning = [weight for weight in module.parameters() if weight.requires_grad]
        if not learning:
            raise ModelError(f"{name}: all of it is frozen; leave something to learn")
        module.to(self.accelerator.device, memory_format=torch.channels_last)
        if self.accelerator.device.type == "cpu":
            _spare_norms(module)
        self.learning = learning
        optimizer = plan.optimizer(learning, lr=plan.lr, **plan.options)
        kind = "constant_with_warmup" if plan.schedule == "constant" else plan.schedule
        self.schedule = get_scheduler(kind, optimizer, num_warmup_steps=plan.warmup, num_training_steps=plan.steps)
        self.ema: EMAModel | None = None
        if plan.ema_decay is not None:
            decay, after = plan.ema_decay, plan.ema_after
            self.ema = EMAModel(module.parameters(), decay, update_after_step=after, foreach=True)
        self.wrapped, self.optimizer = self.accelerator.prepare(module, optimizer)

    @property
    def lr(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    def alone(self) -> AbstractContextManager[None]:
        """Gradients of an accumulated part: not yet shared between processes."""
        shared = self.accelerator.num_processes == 1
        return nullcontext() if shared else self.accelerator.no_sync(self.wrapped)

    def update(self) -> Tensor:
        """One optimizer step with the gradients at hand; their norm before clipping."""
        limit = torch.inf if self.clip is None else self.clip
        norm = self.accelerator.clip_grad_norm_(self.learning, limit)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return norm

    def remember(self) -> None:
        """Let the running mean follow."""
        if self.ema is not None:
            self.ema.step(self.module.parameters())

    @contextmanager
    def as_written(self) -> Iterator[nn.Module]:
        """The module in evaluation mode, with the running mean for its weights."""
        training = self.module.training
        if self.ema is not None:
            self.ema.store(self.module.parameters())
            self.ema.copy_to(self.module.parameters())
        self.module.eval()
        try:
            yield self.module
        finally:
            self.module.train(training)
            if self.ema is not None:
                self.ema.restore(self.module.parameters())

    def state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "scaler": scaler.state_dict() if scaler else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.accelerator.device)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def _spare_norms(module: nn.Module) -> None:
    """Behind frozen layers: torch (2.13) dies in GroupNorm's backward pass on a CPU where a channels-last input needs
    no gradient and the weights do."""

    def contiguous(norm: nn.GroupNorm, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        dies = torch.is_grad_enabled() and norm.weight.requires_grad and not inputs[0].requires_grad
        return (inputs[0].contiguous(),) if dies else None

    for each in module.modules():
        if isinstance(each, nn.GroupNorm):
            each.register_forward_pre_hook(contiguous)


def accelerator(plan: Plan, tracked: Path | None = None) -> Accelerator:
    """As the plan and the launcher say. Processes without a GPU are told so: accelerate would not group them."""
    on_cpu = plan.device == "cpu" or not torch.cuda.is_available()
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=mixed_precision(plan.precision, plan.device),
        dynamo_backend="inductor" if plan.compile else None,
        log_with=list(plan.trackers) if tracked and plan.trackers else None,
        project_dir=tracked,
    )
