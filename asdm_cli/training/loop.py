"""The training loop: any task, one student or several, one process or many, resumable to the bit.

Who learns from what, and with which noise, is a function of seed and step alone: a whole step's order and noise are
drawn by every process, which keeps its part. So a run that was stopped goes on as if it had not been, and any number of
processes and of accumulated parts see the same samples and noise.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass
from errno import EINVAL
from functools import lru_cache
from math import inf, isfinite
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn

from asdm_cli.console import bar, note
from asdm_cli.errors import RunError
from asdm_cli.models.write import whole_file
from asdm_cli.recipe.verbs import DistillRecipe
from asdm_cli.training.student import StudentTrainer

LOG, TRACKERS = "log.jsonl", "trackers"
NORM = "gradient_norm"
NO_ROOM = "can't allocate memory"
"""What torch, which has no MemoryError, says of a CPU's."""
LONG = 0.5
"""Seconds of a step beside which asking other processes takes no time."""
EVERY = 10
"""Steps behind one line of the log: reading a loss off a GPU makes it wait."""
Line = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """The `index`-th of `count` equal parts of a step's `batch` samples."""

    batch: int
    index: int = 0
    count: int = 1

    @property
    def rows(self) -> slice:
        size = self.batch // self.count
        return slice(self.index * size, (self.index + 1) * size)


def sampling_order(size: int, seed: int, step: int, part: Part) -> Tensor:
    """Numbers of this part's samples, int64: every epoch of `size` samples is in an order of its own, and whole."""
    wanted = torch.arange(step * part.batch, (step + 1) * part.batch)[part.rows]
    epochs = wanted // size
    found = [_order(size, seed, epoch)[wanted[epochs == epoch] % size] for epoch in epochs.unique().tolist()]
    return torch.cat(found)


@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> Tensor:
    """Of a whole epoch, which of a large set takes longer than a step."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(_seed(seed, 10_007, epoch)))


def _seed(seed: int, factor: int, index: int) -> int:
    """torch takes seeds of 64 bits, and on a CPU looks at 32 of them."""
    return ((seed ^ seed >> 32) * factor + index) % 2**63


class Noise:
    """Random numbers of one part of one step, the same on every device of a kind; the calls must be the same in every
    part. They are drawn for the whole step, and once for all parts that are made `of` one another."""

    def __init__(self, seed: int, step: int, part: Part, device: torch.device | str = "cpu"):
        source = torch.Generator(device).manual_seed(_seed(seed, 1_000_003, step))
        self.part, self.given, self.drawn, self.calls = part, {"generator": source, "device": device}, list[Tensor](), 0

    def of(self, part: Part) -> Noise:
        """The numbers of another part of this step."""
        other = copy(self)
        other.part, other.calls = part, 0
        return other

    def normal(self, *shape: int) -> Tensor:
        """[n, *shape] of the unit normal."""
        return self._next(torch.randn, (self.part.batch, *shape))

    def uniform(self, *shape: int) -> Tensor:
        """[n, *shape] in [0, 1)."""
        return self._next(torch.rand, (self.part.batch, *shape))

    def integers(self, high: int) -> Tensor:
        """[n] int64 in [0, high)."""
        return self._next(torch.randint, high, (self.part.batch,))

    def _next(self, draw: Callable[..., Tensor], *sizes: Any) -> Tensor:
        if self.calls == len(self.drawn):
            self.drawn.append(draw(*sizes, **self.given))
        self.calls += 1
        return self.drawn[self.calls - 1][self.part.rows]


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
    def losses(self, name: str, module: nn.Module, batch: Any, step: int) -> dict[str, tuple[float, Tensor]]:
        """The terms of the student `name`, each with its weight at this step; their weighted sum is minimised."""

    def validate(self, name: str, module: nn.Module, step: int) -> dict[str, float]:  # noqa: ARG002 - for those who do
        """Figures of a student after so many steps, with the weights that it would be written with."""
        return {}


def train(task: Task, modules: dict[str, nn.Module], recipe: DistillRecipe, folder: Path) -> Training:
    """Train `modules` in place up to `recipe.steps`, going on from the newest checkpoint in `folder`.

    Writes `folder/log.jsonl`, a line of figures per ten steps and student. On SIGTERM or Ctrl-C the step is
    finished and saved. Raises RunError for a loss that is not finite, with the last good checkpoint.
    """
    training = Training(task, modules, recipe, folder)
    if recipe.trackers:
        training.lead.init_trackers("asdm")
    try:
        with stop_signals() as told, bar("training", recipe.steps, training.start) as show:
            for done in range(training.start + 1, recipe.steps + 1):
                training.step(done - 1)
                last = done == recipe.steps
                if done % EVERY == 0 or last:
                    show(done, training.report(done))
                if done % recipe.validation.every == 0 or last:
                    training.validate(done)  # before it is saved: nothing before a checkpoint is looked at again
                stop = training.agreed(told, done)
                if done % recipe.checkpoint == 0 or last or stop:
                    training.save(done)
                if stop:
                    note(f"stopped after step {done}, saved as {last_good(folder)}")
                    if stop == signal.SIGINT:
                        raise KeyboardInterrupt
                    name = signal.Signals(stop).name
                    raise RunError(f"stopped by signal {name} after step {done}; the same command goes on there")
    finally:
        for tracker in training.lead.trackers:  # not end_training(): that would part the processes
            tracker.finish()
    return training


class Training:
    """The state of one training; `start` is the step that it begins or goes on with."""

    def __init__(self, task: Task, modules: dict[str, nn.Module], recipe: DistillRecipe, folder: Path):
        self.task, self.recipe, self.folder = task, recipe, folder
        AcceleratorState._reset_state()  # an earlier training of this process may have had another precision
        places = [folder / TRACKERS, *[None] * (len(modules) - 1)]
        self.students = [
            StudentTrainer(name, modules[name], recipe, place) for name, place in zip(modules, places, strict=True)
        ]
        self.lead = lead = self.students[0].accelerator
        state = latest_checkpoint(folder)
        self.start = int(state["step"]) if state else 0
        if len(set(seen := gather_object([self.start]))) > 1:
            raise RunError(
                f"{folder}: the processes see checkpoints of different steps there ({', '.join(map(str, seen))}); all "
                "must see one and the same `out`: choose a place that the machines share"
            )
        if state:
            for student in self.students:
                student.load(state["students"][student.name])
        self.watch = Stopwatch(lead.device)
        self.step_seconds, self.asked = inf, time.monotonic()
        self.reported, self.since = self.start, time.monotonic()
        if lead.is_main_process:  # lines past a resumed step are dropped, so every step is there once
            folder.mkdir(parents=True, exist_ok=True)
            kept = [json.dumps(line) + "\n" for line in read_log(folder / LOG) if line["step"] <= self.start]
            with whole_file(folder / LOG) as partial:
                partial.write_text("".join(kept), encoding="utf-8")

    def step(self, step: int) -> None:
        recipe, task, phase = self.recipe, self.task, self.watch.phase
        noise = Noise(recipe.seed, step, Part(recipe.batch))
        for index in range(recipe.accumulate):
            own, count = index * self.lead.num_processes + self.lead.process_index, self.lead.num_processes
            part = Part(recipe.batch, own, count * recipe.accumulate)
            with phase("data"):
                rows = sampling_order(task.size, recipe.seed, step, part)
                batch = task.read(rows, noise.of(part))
            with phase("teacher"):
                batch = task.prepare(batch)
            for student in self.students:
                last = index == recipe.accumulate - 1
                with nullcontext() if last else student.accelerator.no_sync(student.wrapped):
                    with phase("students forward"):
                        terms = task.losses(student.name, student.wrapped, batch, step)
                        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
                    with phase("students backward"):
                        student.accelerator.backward(loss / recipe.accumulate)
                student.note({name: value for name, (_, value) in terms.items()} | {"loss": loss})
        for student in self.students:
            with phase("optimizer"):
                student.note({NORM: student.optimizer_step()})
            with phase("running mean"):
                student.ema_step()
        self.watch.step_done()

    def report(self, step: int) -> str:
        """Log the means since the last report; a line for the progress bar."""
        words = []
        with self.watch.phase("log"):
            for student in self.students:
                means = student.means()
                scaled = self.lead.scaler is not None  # float16 tries scales that are too large, and steps back
                broken = [key for key, each in means.items() if not isfinite(each) and not (scaled and key == NORM)]
                if broken:
                    raise RunError(
                        f"{student.name}: {', '.join(broken)} is not finite between the steps {self.reported} and "
                        f"{step}; a lower learning rate may help (from the start, "
                        f"with another `out`); the last good state is {last_good(self.folder)}"
                    )
                self._log(step, student.name, {"lr": student.lr, **means})
                shown = {"loss"} if len(self.students) > 1 else means.keys() - {NORM}
                words += [f"{student.name} {name} {value:.4g}" for name, value in means.items() if name in shown]
        samples = (step - self.reported) * self.recipe.batch / max(1e-9, time.monotonic() - self.since)
        self.reported, self.since = step, time.monotonic()
        return f"{', '.join(words)}  lr {self.students[0].lr:.2g}  {samples:.1f} images/s"

    def save(self, step: int) -> None:
        """Only what is finite: a broken state must not take a good one's place."""
        if self.reported < step:
            self.report(step)
        if self.lead.is_main_process:
            state = {"step": step, "students": {student.name: student.state() for student in self.students}}
            save_checkpoint(self.folder, step, state, self.recipe.keep)
        self.lead.wait_for_everyone()

    @torch.no_grad()
    def validate(self, step: int) -> None:
        for student in self.students:
            with student.ema_weights() as module:
                figures = self.task.validate(student.name, module, step)
            if figures:
                self._log(step, student.name, figures, held_out=True)
            if figures and self.lead.is_main_process:
                note(f"step {step}: {student.name} " + ", ".join(f"{k} {v:.5g}" for k, v in figures.items()))

    def agreed(self, told: list[int], step: int) -> int:
        """The signal that this or any other process was told to stop by, or 0; others are asked every few steps, and at
        each one where steps are long: a launcher that asks them to end kills them soon."""
        if self.lead.num_processes == 1:
            return told[0] if told else 0
        if step % EVERY and step < self.recipe.steps and self.step_seconds < LONG:
            return 0
        if not step % EVERY:  # of all processes, which must do the same
            taken = torch.tensor((time.monotonic() - self.asked) / EVERY, device=self.lead.device)
            self.step_seconds, self.asked = float(self.lead.reduce(taken, "mean")), time.monotonic()
        if told:
            self.lead.set_trigger()
        if not self.lead.check_trigger():
            return 0
        return told[0] if told else signal.SIGTERM

    def _log(self, step: int, name: str, figures: dict[str, float], held_out: bool = False) -> None:
        if self.lead.is_main_process:
            line = {"step": step, "student": name, **({"validation": figures} if held_out else figures)}
            with (self.folder / LOG).open("a") as handle:
                handle.write(json.dumps(line) + "\n")
        place = f"{name}/held_out" if held_out else name
        self.lead.log({f"{place}/{key}": value for key, value in figures.items()}, step=step)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> None:
    """Write `folder/step-N.pt`; a kill at any moment leaves the previous one usable.

    Raises RunError, with the last good checkpoint, where the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}.pt"
    try:
        with whole_file(target) as partial:
            torch.save(state, partial)
    except (OSError, RuntimeError) as error:  # torch's own writer turns a full disk into a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunError(
            f"{target}: cannot be written ({reason}); make room, then go on from {last_good(folder)}"
        ) from None
    here = _checkpoints(folder)
    older, newer = ([each for each in here if each < target], [each for each in here if each > target])
    for old in (*older[: max(0, len(older) + 1 - keep)], *newer):  # what is newer could not be gone on from
        old.unlink()


def latest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest state that is no damaged file, loaded on the CPU without running any code from it; None if there is no
    checkpoint. Raises RunError where all are damaged, and where one cannot be read now: going on from an older one
    would end it."""
    found = _checkpoints(folder)
    for file in reversed(found):
        try:
            if not file.is_file():  # a pipe would be waited for
                raise ValueError("no regular file")
            state: Any = torch.load(file, map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or type(state.get("step")) is not int:
                raise ValueError("holds no state of a training")
            return state
        except Exception as error:  # torch has many ways to say that a file is damaged
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            if isinstance(error, OSError) and error.errno not in (
                None,
                EINVAL,
            ):  # which torch says of some that are cut
                ways = "give the same command again, or take it away to go on from the one before"
                raise RunError(f"{file}: cannot be read now ({reason}); {ways}") from None
            if isinstance(error, MemoryError) or NO_ROOM in str(error):
                ways = "free some, or start fewer processes on this machine"
                raise RunError(f"{file}: is more than the memory that is free ({reason}); {ways}") from None
            note(f"{file}: cannot be read ({reason}); going on from the checkpoint before it")
    if found:
        raise RunError(f"{folder}: none of its {len(found)} checkpoints can be read; take it away, and start anew")
    return None


def last_good(folder: Path) -> str:
    """In words, for messages."""
    found = _checkpoints(folder)
    return str(found[-1]) if found else "the start: there is no checkpoint yet"


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"))


class Stopwatch:
    """Seconds by phase, the first `warmup` steps aside if there are more. On a GPU, work is only queued when a phase
    ends: there it waits at every border, for as long as `exact` says, which is `enough` steps; then nothing more is
    counted."""

    def __init__(self, device: torch.device, enough: int = 50, warmup: int = 3):
        self.device, self.enough, self.exact, self.warmup = device, enough, True, warmup
        self.gpu = device.type == "cuda"
        self.seconds: dict[str, float] = defaultdict(float)
        self.cold: dict[str, float] = {}
        self.steps = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before = self._now()
        yield
        self.seconds[name] += self._now() - before

    def step_done(self) -> None:
        self.steps += self.exact
        if self.steps == self.warmup:
            self.cold = dict(self.seconds)
        self.exact = self.exact and not (self.gpu and self.steps >= self.enough)

    def per_step(self) -> dict[str, float]:
        cold, steps = (self.cold, self.steps - self.warmup) if self.steps > self.warmup else ({}, max(1, self.steps))
        return {name: (total - cold.get(name, 0.0)) / steps for name, total in self.seconds.items()}

    def _now(self) -> float:
        if self.exact and self.gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter() if self.exact else 0.0


def read_log(file: Path) -> list[Line]:
    """All lines; one that a kill cut short is left out."""
    lines = []
    for text in file.read_text().splitlines() if file.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that holds SIGTERM or SIGINT once it came; the second one acts at once, as always."""
    told: list[int] = []

    def tell(number: int, _frame: FrameType | None) -> None:
        told.append(number)
        signal.signal(number, before[number])

    ours = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {int(number): signal.signal(number, tell) for number in ours}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
