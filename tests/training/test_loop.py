"""The loop on a task of a few numbers: resuming is exact, checkpoints are whole, every sample is seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from asdm_cli.errors import RunError
from asdm_cli.training import checkpoints
from asdm_cli.training.loop import Plan, _draw, train


class Line:
    """y = 2x + 1, with noise from the loop's generator so that order and noise both matter."""

    size = 23

    def __init__(self, break_at: int | None = None):
        self.calls, self.break_at, self.seen = 0, break_at, []

    def losses(self, module, rows, noise):
        self.calls += 1
        self.seen += rows.tolist()
        if self.calls == self.break_at:
            raise KeyboardInterrupt
        x = rows[:, None].float() / 10
        error = module(x) - (2 * x + 1 + 0.1 * torch.randn(len(rows), 1, generator=noise))
        return {"task": error.square().mean()}

    def validate(self, module):
        return {"slope": float(module.weight)}


PLAN = Plan(steps=30, batch=5, lr=0.05, warmup=3, save_every=7, validate_every=10)


def trained(folder: Path, task: Line, plan: Plan = PLAN):
    torch.manual_seed(0)
    module = nn.Linear(1, 1)
    ema = train(task, module, plan, folder, say=[].append)
    return module, ema


def test_an_interrupted_run_ends_bit_equal(tmp_path):
    whole, whole_ema = trained(tmp_path / "whole", Line())
    for moment in (3, 9, 12):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "broken", Line(break_at=moment))
    resumed, resumed_ema = trained(tmp_path / "broken", Line())
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole_ema.shadow_params, resumed_ema.shadow_params, strict=True):
        assert torch.equal(a, b)


def test_a_resumed_log_has_every_step_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, Line(break_at=18))
    trained(tmp_path, Line())
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "task" in row]
    assert steps == [10, 20, 30]
    assert sum("validation" in row for row in rows) == 3


def test_every_sample_is_seen_once_per_epoch():
    accelerator, plan = Accelerator(cpu=True), Plan(steps=0, batch=5, lr=1)
    drawn = torch.cat([_draw(23, plan, step, accelerator)[0] for step in range(23)])
    epochs = drawn.reshape(5, 23)
    assert all(sorted(epoch.tolist()) == list(range(23)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    class Broken(Line):
        def losses(self, module, rows, noise):
            return {"task": super().losses(module, rows, noise)["task"] * float("nan")}

    with pytest.raises(RunError, match="task is not finite"):
        trained(tmp_path, Broken())
    assert checkpoints.latest(tmp_path) is None


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in range(1, 6):
        checkpoints.save(tmp_path, step, {"step": step}, keep=2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000004", "step-00000005"]
    assert checkpoints.latest(tmp_path) == {"step": 5}


def test_a_kill_while_saving_leaves_the_previous_checkpoint(tmp_path):
    checkpoints.save(tmp_path, 1, {"step": 1})
    script = (
        "import os, signal, torch\n"
        "from pathlib import Path\n"
        "from asdm_cli.training import checkpoints\n"
        "checkpoints.os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"checkpoints.save(Path({str(tmp_path)!r}), 2, {{'step': 2}})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -9
    assert checkpoints.latest(tmp_path) == {"step": 1}
    checkpoints.save(tmp_path, 3, {"step": 3})
    assert checkpoints.latest(tmp_path) == {"step": 3}
