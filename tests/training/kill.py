"""A training that is killed again and again, in a process of its own: everything slow is built once, then every attempt
is a process forked from there.

Called with FOLDER MOMENTS INSIDE it trains in FOLDER/whole without a disturbance, then in FOLDER/broken with kills at
random MOMENTS and INSIDE the writing of checkpoints; leaves the weights of both as FOLDER/*.pt and prints, after every
kill, the step of the newest checkpoint.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from asdm_cli.console import quiet
from tests.training.students import PLAIN, distillation, like, memory, quick, trained

PLAN = like(PLAIN, steps=14, batch=2, checkpoint=2, every=4, ema=0.9, schedule="cosine", warmup=2)
Pair = tuple[Any, Any]


def attempt(folder: Path, pair: Pair) -> None:
    """Train to the end from what is there; then leave what came out."""
    teacher, student = deepcopy(pair)
    task = distillation({"s": student}, teacher, text_dropout=0.3)
    task.held_out = memory(2)
    training = trained(folder, task, {"s": student}, PLAN)
    with training.students[0].ema_weights() as module:
        torch.save(module.state_dict(), folder.with_suffix(".pt"))


def killed(folder: Path, pair: Pair, seconds: float | None, inside: int | None) -> int:
    """The exit status of an attempt that is killed after `seconds`, or in its `inside`-th call of fsync."""
    child = os.fork()
    if child == 0:
        try:
            if inside is not None:
                _die_in_fsync(inside)
            attempt(folder, pair)
        finally:
            os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _die_in_fsync(at: int) -> None:
    calls = iter(range(at, -1, -1))
    sync = os.fsync

    def fsync(handle: int) -> None:
        if next(calls) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    os.fsync = fsync


def main() -> None:
    home, (moments, inside) = Path(sys.argv[1]), map(int, sys.argv[2:])
    quiet(True)
    pair = quick()
    attempt(home / "whole", pair)  # slower than those that follow: it warms up
    seconds = [time.monotonic()]
    for folder in ("again", "again"):  # a whole run, and nothing but its beginning and end
        attempt(home / folder, pair)
        seconds.append(time.monotonic())
    start, step = seconds[2] - seconds[1], (seconds[1] - seconds[0]) / PLAN.steps
    chance, broken = random.Random(0), home / "broken"
    ways = ["moment"] * moments + ["inside"] * inside
    chance.shuffle(ways)
    while ways:
        if ways[-1] == "inside":
            end = killed(broken, pair, None, chance.randrange(6))
        else:
            end = killed(broken, pair, start + chance.uniform(0, 5) * step, None)
        if end:
            print(ways.pop(), max((int(each.stem.split("-")[1]) for each in broken.glob("step-*")), default=0))
        else:  # it came through: from the beginning, then
            shutil.rmtree(broken)
    attempt(broken, pair)
