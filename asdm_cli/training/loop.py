"""The training loop: any task, one process or many, resumable to the bit.

A step's samples and noise depend on (seed, step) alone, so a run that was killed and resumed
sees exactly what the undisturbed run would have seen.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from asdm_cli.errors import RunError
from asdm_cli.training import checkpoints

Say = Callable[[dict[str, Any]], object]
"""Takes a line of the log as it is written."""


class Task(Protocol):
    """What is trained. `losses` are already weighted; their sum is minimised."""

    size: int  # how many samples an epoch has

    def losses(self, module: nn.Module, rows: Tensor, noise: torch.Generator) -> dict[str, Tensor]: ...

    def validate(self, module: nn.Module) -> dict[str, float]: ...


@dataclass(frozen=True)
class Plan:
    """How long and how fast. `lr` decays to a hundredth along a cosine after `warmup` steps."""

    steps: int
    batch: int
    lr: float
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    save_every: int = 100
    validate_every: int = 200


def native_bf16() -> bool:
    """Whether bfloat16 is fast here; on a CPU without its instructions it is a hundred times slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())


def train(task: Task, module: nn.Module, plan: Plan, folder: Path, say: Say = print) -> EMAModel:
    """Train `module` in place up to `plan.steps`, going on from the newest checkpoint in `folder`.

    Returns the EMA of its weights. Writes `folder/log.jsonl`, one line of figures per ten steps.
    """
    accelerator = Accelerator(mixed_precision="bf16" if native_bf16() else "no")
    optimizer = torch.optim.AdamW(module.parameters(), lr=plan.lr, weight_decay=plan.weight_decay, betas=(0.9, 0.99))
    ema = EMAModel(module.parameters(), decay=plan.ema_decay)
    start = _resume(folder, module, optimizer, ema)
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    ema.to(accelerator.device)
    log = Log(folder / "log.jsonl", start, accelerator.is_main_process, say)
    for step in range(start, plan.steps):
        lr = _set_lr(optimizer, plan, step)
        rows, noise = _draw(task.size, plan, step, accelerator)
        losses = task.losses(wrapped, rows, noise)
        total = sum(losses.values(), torch.zeros((), device=accelerator.device))
        accelerator.backward(total)
        accelerator.clip_grad_norm_(wrapped.parameters(), plan.clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(module.parameters())
        log.add(step + 1, lr, plan.batch, losses)
        done = step + 1 == plan.steps
        if done or (step + 1) % plan.save_every == 0:
            _check_finite(losses, step, folder)
            if accelerator.is_main_process:
                state = {
                    "step": step + 1,
                    "module": module.state_dict(),
                    "ema": ema.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
                checkpoints.save(folder, step + 1, state)
        if done or (step + 1) % plan.validate_every == 0:
            log.validated(step + 1, _validate(task, module, ema))
    return ema


def _resume(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel) -> int:
    state = checkpoints.latest(folder)
    if state is None:
        return 0
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    ema.load_state_dict(state["ema"])
    return int(state["step"])


def _draw(size: int, plan: Plan, step: int, accelerator: Accelerator) -> tuple[Tensor, torch.Generator]:
    """This process's rows of the batch, without replacement inside an epoch, and its noise source."""
    first = step * plan.batch
    rows = torch.arange(first, first + plan.batch)
    epochs = torch.stack([_permutation(size, plan.seed, int(e)) for e in torch.unique(rows // size)])
    rows = epochs[(rows // size) - first // size, rows % size]
    rank, world = accelerator.process_index, accelerator.num_processes
    noise = torch.Generator().manual_seed((plan.seed * 1_000_003 + step) * 1_009 + rank)
    return rows[rank::world], noise


def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed * 10_007 + epoch))


def _set_lr(optimizer: Any, plan: Plan, step: int) -> float:
    warm = min(1.0, (step + 1) / max(1, plan.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * step / plan.steps))
    lr = plan.lr * warm * (0.01 + 0.99 * cosine)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def _check_finite(losses: dict[str, Tensor], step: int, folder: Path) -> None:
    broken = [name for name, value in losses.items() if not torch.isfinite(value)]
    if broken:
        raise RunError(f"step {step}: {', '.join(broken)} is not finite; the last good state is in {folder}")


@torch.no_grad()
def _validate(task: Task, module: nn.Module, ema: EMAModel) -> dict[str, float]:
    ema.store(module.parameters())
    ema.copy_to(module.parameters())
    module.eval()
    figures = task.validate(module)
    module.train()
    ema.restore(module.parameters())
    return figures


class Log:
    """`log.jsonl`: mean losses of each ten steps, and validation figures; lines past a resume are dropped."""

    def __init__(self, path: Path, start: int, write: bool, say: Say):
        self.path, self.write, self.say = path, write, say
        self.sums: dict[str, Tensor] = {}
        self.count, self.samples, self.since = 0, 0, time.monotonic()
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            old = path.read_text().splitlines() if path.exists() else []
            kept = [line for line in old if json.loads(line)["step"] <= start]
            path.write_text("".join(line + "\n" for line in kept))

    def add(self, step: int, lr: float, batch: int, losses: dict[str, Tensor], every: int = 10) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros(())) + value.detach().float().cpu()
        self.count, self.samples = self.count + 1, self.samples + batch
        if step % every:
            return
        seconds = time.monotonic() - self.since
        row = {name: round(float(total) / self.count, 6) for name, total in self.sums.items()}
        self._line({"step": step, "lr": round(lr, 8), "images_per_s": round(self.samples / seconds, 2), **row})
        self.sums, self.count, self.samples, self.since = {}, 0, 0, time.monotonic()

    def validated(self, step: int, figures: dict[str, float]) -> None:
        self._line({"step": step, "validation": {name: round(value, 5) for name, value in figures.items()}})
        self.since = time.monotonic()

    def _line(self, row: dict) -> None:
        if self.write:
            with self.path.open("a") as handle:
                handle.write(json.dumps(row) + "\n")
            self.say(row)
