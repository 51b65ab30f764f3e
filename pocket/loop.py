"""The training of one part: by steps or by minutes, in one process or several, resumable to the bit.

A *stretch* is one call of `train`: the learning rate warms up, stays, and falls to zero over its last part. What is
random about a step depends on the seed and the step alone, so any number of processes sees the same samples and noise.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from asdm_cli.errors import RunError
from asdm_cli.training.loop import Noise, Part, sampling_order, stop_signals
from asdm_cli.training.student import native_bf16

LOG_EVERY = 10
SAVE_SECONDS = 60.0
LATEST, BEFORE = "latest.pt", "before.pt"


class Stage(Protocol):
    """What learns, and from what. `module` is called by `losses` only, so that it may be wrapped for many processes."""

    module: nn.Module
    size: int
    """Samples in an epoch."""

    def losses(self, module: nn.Module, rows: Tensor, noise: Noise) -> dict[str, Tensor]:
        """The terms, already weighted, of these samples; all randomness comes from `noise`."""

    def figures(self) -> dict[str, float]:
        """Of `module` as it is, on held-out samples."""


@dataclass(frozen=True)
class Plan:
    """`steps` is the length of a stretch where no minutes are given; `decay` the share of it in which the rate falls.

    `emas` are the decays of the two running means; which is better is for the held-out figures to say.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 100
    decay: float = 0.3
    clip: float = 1.0
    emas: tuple[float, ...] = (0.998, 0.9995)
    options: dict[str, Any] = field(default_factory=lambda: {"weight_decay": 0.01, "betas": (0.9, 0.99)})
    seed: int = 0


@dataclass
class State:
    """All that a stretch goes on with."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    emas: list[EMAModel]
    step: int = 0
    start: int = 0
    """The step at which this stretch began."""
    spent: float = 0.0
    """Seconds of this stretch so far, over all restarts."""
    finished: bool = False

    def ready(self) -> State:
        """Behind a finished stretch another one begins."""
        if self.finished:
            self.start, self.spent, self.finished = self.step, 0.0, False
        return self

    def saved(self) -> dict[str, Any]:
        keep = ("step", "start", "spent", "finished")
        return {name: getattr(self, name) for name in keep} | {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "emas": [ema.state_dict() for ema in self.emas],
        }

    def load(self, saved: dict[str, Any], device: torch.device) -> None:
        self.module.load_state_dict(saved["module"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for ema, own in zip(self.emas, saved["emas"], strict=True):
            ema.load_state_dict(own)
            ema.to(device)
        for name in ("step", "start", "spent", "finished"):
            setattr(self, name, saved[name])


def place() -> torch.device:
    """The GPU of this process, or the CPU."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )


def train(stage: Stage, plan: Plan, folder: Path, minutes: float | None = None) -> State:
    """Train to the end of a stretch and return the state; a killed stretch goes on, a finished one is followed by
    another. Ctrl-C and SIGTERM save first. Raises RunError for a loss that is not finite, and for a signal."""
    folder.mkdir(parents=True, exist_ok=True)
    device = place()
    with _company(device) as (rank, world), stop_signals() as stop:
        if plan.batch % world:
            raise RunError(f"a batch of {plan.batch} cannot be shared by {world} processes")
        stage.module.to(device, memory_format=torch.channels_last).train()
        state = resumed(stage.module, plan, folder, device).ready()
        wrapped = DistributedDataParallel(stage.module) if world > 1 else stage.module
        part = Part(plan.batch, rank, world)
        log = _Log(folder / "log.jsonl", state.step, rank == 0)
        saved = time.monotonic()
        began = saved - state.spent
        while True:
            done = (state.step - state.start) / plan.steps if minutes is None else state.spent / (60 * minutes)
            if done >= 1 or _anyone(bool(stop), state.step, world):
                break
            lr = plan.lr * min(1.0, (state.step - state.start + 1) / plan.warmup, (1 - done) / plan.decay)
            for group in state.optimizer.param_groups:
                group["lr"] = lr
            terms = _step(stage, wrapped, state, plan, part, device)
            state.step += 1
            if world == 1 or state.step % LOG_EVERY == 0:
                state.spent = _agreed(time.monotonic() - began, world)
            if state.step % LOG_EVERY == 0:
                log.line(state, plan, done, lr, terms)
            if rank == 0 and time.monotonic() - saved > SAVE_SECONDS:
                _save(state, folder)
                saved = time.monotonic()
        del wrapped  # before its group is: it would wait for peers that may be gone
        state.finished = done >= 1
        if rank == 0:
            _save(state, folder)
        if not state.finished:
            raise RunError(f"stopped after step {state.step}; the same command goes on there")
    return state


def _step(
    stage: Stage, wrapped: nn.Module, state: State, plan: Plan, part: Part, device: torch.device
) -> dict[str, Tensor]:
    noise = Noise(plan.seed, state.step, part, device)
    rows = sampling_order(stage.size, plan.seed, state.step, part).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=native_bf16()):
        terms = stage.losses(wrapped, rows, noise)
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    norm = nn.utils.clip_grad_norm_(state.module.parameters(), plan.clip)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    for ema in state.emas:
        ema.step(state.module.parameters())
    return {name: term.detach() for name, term in terms.items()} | {"gradient_norm": norm}


def newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read."""
    for name in (LATEST, BEFORE):
        try:
            found: dict[str, Any] = torch.load(folder / name, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            continue
        except Exception as error:  # a torn file fails in as many ways as there are places to tear it
            print(f"pocket: {folder / name} cannot be read ({error}); the one before it is taken")
            continue
        return found
    return None


def resumed(module: nn.Module, plan: Plan, folder: Path, device: torch.device) -> State:
    """The state of the newest checkpoint, or of a module that has not learnt yet. `module` lies on `device`."""
    learning = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=plan.lr, **plan.options)
    emas = [EMAModel(module.parameters(), decay, foreach=True) for decay in plan.emas]
    state = State(module, optimizer, emas)
    if (found := newest(folder)) is not None:
        state.load(found, device)
    return state


def _save(state: State, folder: Path) -> None:
    """The newest two are kept, and neither is ever half written, or of no numbers."""
    if not all(torch.isfinite(weight).all() for weight in state.module.parameters()):
        raise RunError(f"weights are not finite at step {state.step}; the last checkpoint is good")
    partial = folder / "partial.pt"
    torch.save(state.saved(), partial)
    if (folder / LATEST).exists():
        (folder / LATEST).replace(folder / BEFORE)
    partial.replace(folder / LATEST)


class _Log:
    """A line of figures every few steps, in `log.jsonl` and on stdout; lines behind a checkpoint are cut off."""

    def __init__(self, file: Path, step: int, writes: bool):
        self.file, self.writes, self.since, self.reported = file, writes, time.monotonic(), step
        if writes:
            lines = file.read_text().splitlines() if file.exists() else []
            kept = [line for line in lines if _step_of(line) <= step]
            file.write_text("".join(f"{line}\n" for line in kept))

    def line(self, state: State, plan: Plan, done: float, lr: float, terms: dict[str, Tensor]) -> None:
        values = {name: float(term) for name, term in terms.items()}
        if bad := [name for name, value in values.items() if value - value != 0]:
            raise RunError(f"{', '.join(bad)} is not finite at step {state.step}; the last checkpoint is good")
        rate = (state.step - self.reported) * plan.batch / max(1e-9, time.monotonic() - self.since)
        self.since, self.reported = time.monotonic(), state.step
        if not self.writes:
            return
        row = {"step": state.step, "lr": lr, "samples_per_s": round(rate, 1)} | values
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        words = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        print(f"{done:4.0%}  {words}", flush=True)


def _step_of(line: str) -> float:
    """Of a line that a kill cut off none."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return float("inf")


def _anyone(stop: bool, step: int, world: int) -> bool:
    """Whether any process was told to stop; the others are asked every few steps only."""
    if world == 1:
        return stop
    if step % LOG_EVERY:
        return False
    told = torch.tensor(float(stop))
    dist.all_reduce(told)
    return bool(told)


def _agreed(seconds: float, world: int) -> float:
    """The clock of the first process, so that all end at the same step."""
    if world == 1:
        return seconds
    clock = torch.tensor(seconds, dtype=torch.float64)
    dist.broadcast(clock, 0)
    return float(clock)


@contextmanager
def _company(device: torch.device) -> Iterator[tuple[int, int]]:
    """(rank, number of processes), as torchrun started them."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield int(os.environ.get("RANK", 0)), world
    finally:
        if world > 1:
            dist.destroy_process_group()
