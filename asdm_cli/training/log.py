"""What a training leaves to read: a line of figures every few steps, and where the time went."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

EVERY = 10
"""Steps behind one line: reading a loss off a GPU makes it wait."""
Line = dict[str, Any]


class Log:
    """`log.jsonl`, from one process: lines past a resumed step are dropped, so every step is there once."""

    def __init__(self, path: Path, start: int, write: bool = True):
        self.path, self.write = path, write
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = [line for line in read(path) if line["step"] <= start]
            path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def line(self, step: int, **figures: Any) -> None:
        if self.write:
            with self.path.open("a") as handle:
                handle.write(json.dumps({"step": step, **figures}) + "\n")


def read(path: Path) -> list[Line]:
    """All lines; one that a kill cut short is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


class Means:
    """Running sums of loss terms, kept where they are computed until they are asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, terms: dict[str, Tensor]) -> None:
        """Each name is counted by itself: some are known per part of a step, some per step."""
        for name, value in terms.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, Tensor]:
        """The means since the last call."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


class Stopwatch:
    """Seconds by phase. On a GPU, work is only queued when a phase ends: there it waits at every border, for as long
    as `exact` says."""

    def __init__(self, device: torch.device):
        self.device, self.exact = device, True
        self.seconds: dict[str, float] = {}
        self.steps = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - before

    def step_done(self, enough: int = 50) -> None:
        """After `enough` steps, a GPU is left to run ahead again and nothing more is counted."""
        self.steps += self.exact
        if self.device.type == "cuda" and self.steps >= enough:
            self.exact = False

    def per_step(self) -> dict[str, float]:
        return {name: total / max(1, self.steps) for name, total in self.seconds.items()}

    def _now(self) -> float:
        if not self.exact:
            return 0.0
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
