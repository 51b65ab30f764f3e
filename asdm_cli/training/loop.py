"""The training loop: any task, one student or several, one process or many, resumable to the bit."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn

from asdm_cli.console import bar, note
from asdm_cli.errors import RunError
from asdm_cli.training import checkpoints
from asdm_cli.training.log import EVERY, Log, Means, Stopwatch
from asdm_cli.training.order import Noise, Part, rows
from asdm_cli.training.plan import Plan, Task, Term
from asdm_cli.training.trainee import Trainee

LOG, TRACKERS = "log.jsonl", "trackers"
NORM = "gradient_norm"


def train(task: Task, modules: dict[str, nn.Module], plan: Plan, folder: Path) -> Training:
    """Train `modules` in place up to `plan.steps`, going on from the newest checkpoint in `folder`.

    Writes `folder/log.jsonl`, a line of figures per ten steps and student. On SIGTERM or Ctrl-C the step is
    finished and saved. Raises RunError for a loss that is not finite, with the last good checkpoint.
    """
    training = Training(task, modules, plan, folder)
    with _stop_signals() as stop, training.tracked(), bar("training", plan.steps, training.start) as show:
        for step in range(training.start, plan.steps):
            training.step(step)
            done = step + 1
            if done % EVERY == 0 or done == plan.steps:
                show(done, training.report(done))
            if done == plan.steps or done % plan.validate_every == 0:
                training.validate(done)  # before it is saved: what a checkpoint leaves behind is never looked at again
            last = done == plan.steps or training.stopped(stop, done)
            if last or done % plan.save_every == 0:
                training.save(done)
            if stop and last:
                _end(stop[0], done, folder)
    return training


class Training:
    """The state of one training; `start` is the step that it begins or goes on with."""

    def __init__(self, task: Task, modules: dict[str, nn.Module], plan: Plan, folder: Path):
        self.task, self.plan, self.folder = task, plan, folder
        AcceleratorState._reset_state()  # an earlier training of this process may have had another precision
        places = [folder / TRACKERS, *[None] * (len(modules) - 1)]
        self.crew = [Trainee(name, modules[name], plan, place) for name, place in zip(modules, places, strict=True)]
        self.lead = lead = self.crew[0].accelerator
        self.parts = lead.num_processes * plan.accumulate
        if plan.batch % self.parts:
            raise RunError(
                f"a batch of {plan.batch} cannot be divided into {self.parts} parts of {lead.num_processes} "
                f"process(es); choose a multiple"
            )
        self.rank, self.is_main, self.device = lead.process_index, lead.is_main_process, lead.device
        self.start = self._resume()
        self.log = Log(folder / LOG, self.start, self.is_main)
        self.watch = Stopwatch(self.device)
        self.means = {trainee.name: Means() for trainee in self.crew}
        self.reported, self.since = self.start, time.monotonic()

    def step(self, step: int) -> None:
        for index in range(self.plan.accumulate):
            self._part(step, index)
        for trainee in self.crew:
            with self.watch.phase("optimizer"):
                self.means[trainee.name].add({NORM: trainee.update()})
            with self.watch.phase("running mean"):
                trainee.remember()
        self.watch.step_done()

    def _part(self, step: int, index: int) -> None:
        """Forward and backward over one part of the step's samples."""
        plan = self.plan
        part = Part(plan.batch, index * self.parts // plan.accumulate + self.rank, self.parts)
        with self.watch.phase("data"):
            wanted = rows(self.task.size, plan.seed, step, part)
            batch = self.task.read(wanted, Noise(plan.seed, step, part))
        with self.watch.phase("teacher"):
            batch = self.task.prepare(batch)
        for trainee in self.crew:
            final = index == plan.accumulate - 1
            with nullcontext() if final else trainee.alone():
                with self.watch.phase("students forward"):
                    terms = self.task.losses(trainee.name, trainee.wrapped, batch, step)
                    total = _total(terms)
                with self.watch.phase("students backward"):
                    trainee.accelerator.backward(total / plan.accumulate)
            self.means[trainee.name].add({name: term.value for name, term in terms.items()} | {"loss": total})

    def report(self, step: int) -> str:
        """Log the means since the last report; a line for the progress bar."""
        with self.watch.phase("log"):
            seen = []
            for trainee in self.crew:
                means = self.means[trainee.name].take()
                figures = {name: self._mean(trainee, value) for name, value in means.items()}
                self._check_finite(trainee.name, figures, step)
                self.log.line(step, student=trainee.name, lr=trainee.lr, **figures)
                self._track(step, trainee.name, {"lr": trainee.lr, **figures})
                seen.append(_words(trainee.name if len(self.crew) > 1 else "", figures))
        samples = (step - self.reported) * self.plan.batch / max(1e-9, time.monotonic() - self.since)
        self.reported, self.since = step, time.monotonic()
        return f"{', '.join(seen)}  lr {self.crew[0].lr:.2g}  {samples:.1f} images/s"

    def save(self, step: int) -> None:
        """Only what is finite: a broken state must not take a good one's place."""
        if self.reported < step:
            self.report(step)
        if self.is_main:
            state = {"step": step, "crew": {trainee.name: trainee.state() for trainee in self.crew}}
            checkpoints.save(self.folder, step, state, self.plan.keep)
        self.lead.wait_for_everyone()

    @torch.no_grad()
    def validate(self, step: int) -> None:
        for trainee in self.crew:
            with trainee.as_written() as module:
                figures = self.task.validate(trainee.name, module, step)
            if figures:
                self.log.line(step, student=trainee.name, validation=figures)
                self._track(step, f"{trainee.name}/held_out", figures)
            if figures and self.is_main:
                note(f"step {step}: {trainee.name} " + ", ".join(f"{k} {v:.5g}" for k, v in figures.items()))

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Until the block is left, the plan's trackers hear what is logged."""
        if self.plan.trackers:
            self.lead.init_trackers("asdm")
        try:
            yield
        finally:
            for tracker in self.lead.trackers:  # not end_training(): that would part the processes
                tracker.finish()

    def _track(self, step: int, place: str, figures: dict[str, float]) -> None:
        self.lead.log({f"{place}/{name}": value for name, value in figures.items()}, step=step)

    def stopped(self, stop: list[int], step: int) -> bool:
        """Whether this or any other process was told to stop; asked of the others every few steps only."""
        lead = self.lead
        if lead.num_processes == 1:
            return bool(stop)
        if step % EVERY:
            return False
        if stop:
            lead.set_trigger()
        if told := lead.check_trigger():
            stop[:] = stop or [signal.SIGTERM]
        return told

    def _resume(self) -> int:
        state = checkpoints.latest(self.folder)
        start = int(state["step"]) if state else 0
        seen = gather_object([start])
        if len(set(seen)) > 1:
            raise RunError(
                f"{self.folder}: the processes see checkpoints of different steps there ({', '.join(map(str, seen))}); "
                "all must see one and the same `out`: choose a place that the machines share"
            )
        if state:
            for trainee in self.crew:
                trainee.load(state["crew"][trainee.name])
        return start

    def _mean(self, trainee: Trainee, value: Tensor) -> float:
        return float(trainee.accelerator.reduce(value.to(self.device), "mean"))

    def _check_finite(self, name: str, figures: dict[str, float], step: int) -> None:
        scaled = self.lead.scaler is not None  # float16 tries scales that are too large, and steps back
        broken = [key for key, value in figures.items() if value - value != 0 and not (scaled and key == NORM)]
        if broken:
            raise RunError(
                f"{name}: {', '.join(broken)} is not finite between the steps {self.reported} and {step}; a lower "
                f"learning rate may help; the last good state is {checkpoints.last_good(self.folder)}"
            )


def _words(name: str, figures: dict[str, float]) -> str:
    """Of one student alone every term; beside others there is room for the whole only."""
    if name:
        return f"{name} {figures['loss']:.4g}"
    return " ".join(f"{term} {value:.4g}" for term, value in figures.items() if term != NORM)


def _total(terms: dict[str, Term]) -> Tensor:
    return torch.stack([term.weight * term.value for term in terms.values()]).sum()


def _end(number: int, step: int, folder: Path) -> None:
    note(f"stopped after step {step}, saved as {checkpoints.last_good(folder)}")
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise RunError(f"stopped by signal {signal.Signals(number).name} after step {step}; the same command goes on there")


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that holds SIGTERM or SIGINT once it came; the second one acts at once, as always."""
    told: list[int] = []
    before: dict[int, Any] = {}

    def tell(number: int, _frame: FrameType | None) -> None:
        told.append(number)
        signal.signal(number, before[number])

    for number in map(int, (signal.SIGTERM, signal.SIGINT)):
        try:
            before[number] = signal.signal(number, tell)
        except ValueError:  # not in the main thread: somebody else's business
            continue
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
