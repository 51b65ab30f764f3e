"""Trainings that end before their time: killed, told to stop, out of disk, out of numbers."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from asdm_cli.errors import RunError
from asdm_cli.training import checkpoints
from asdm_cli.training.loop import LOG, Task, read_log, train
from asdm_cli.training.sampling_order import Noise
from asdm_cli.training.student import TrainingConfig
from tests.forking import ours

PLAN = TrainingConfig(
    steps=20, batch=5, lr=0.05, warmup=3, save_every=4, validate_every=100, device="cpu", precision="float32"
)
KILLS, INSIDE = 10, 4
ROOT = Path(__file__).parents[2]


class Line(Task):
    """y = 2x + 1. `at[step]` happens while that step is read."""

    size = 23

    def __init__(self, **at: object):
        self.at, self.step = at, -1

    @override
    def read(self, rows: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        self.step += 1
        if (act := self.at.get(f"step{self.step}")) is not None:
            act()  # type: ignore[operator]
        return rows[:, None].float() / 10, 0.1 * noise.normal(1)

    @override
    def losses(
        self, name: str, module: nn.Module, batch: tuple[Tensor, Tensor], step: int
    ) -> dict[str, tuple[float, Tensor]]:
        x, noise = batch
        value = (module(x) - (2 * x + 1 + noise)).square().mean()
        return {"task": (1.0, value * float("nan") if step == self.at.get("nan") else value)}


def go(folder: Path, task: Line, plan: TrainingConfig = PLAN) -> list[Tensor]:
    torch.manual_seed(0)
    module = nn.Linear(1, 1)
    train(task, {"line": module}, plan, folder)
    return [weight.detach().clone() for weight in module.parameters()]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_killed_at_ten_moments_and_while_saving_it_ends_bit_equal(tmp_path: Path) -> None:
    """A distillation with held-out losses, a running mean and a schedule; see kill.py."""
    (told,) = ours("from tests.training.kill import main; main()", tmp_path, KILLS, INSIDE, cwd=ROOT)
    assert told.code == 0, told.err[-2000:]
    ways = [line.split() for line in told.out.splitlines()]
    assert sorted(way for way, _ in ways) == ["inside"] * INSIDE + ["moment"] * KILLS
    assert len({step for _, step in ways}) > 1, "they went on in between"
    whole, broken = (torch.load(tmp_path / f"{name}.pt") for name in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    assert len(whole) > 100
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())
    lines = [read_log(tmp_path / name / LOG) for name in ("whole", "broken")]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0] if "validation" in line] == [4, 8, 12, 14]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_saves_and_goes_on_bit_equal(
    tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = go(tmp_path / "whole", Line())
    before = signal.getsignal(number)
    task = Line(step6=lambda: os.kill(os.getpid(), number))
    with pytest.raises(RunError if number == signal.SIGTERM else KeyboardInterrupt) as caught:
        go(tmp_path / "broken", task)
    assert signal.getsignal(number) is before
    checkpoint = tmp_path / "broken" / "step-00000007.pt"
    assert f"stopped after step 7, saved as {checkpoint}" in capsys.readouterr().err.replace("\n", "")
    assert checkpoint.is_file()
    if number == signal.SIGTERM:
        assert str(caught.value) == "stopped by signal SIGTERM after step 7; the same command goes on there"
    assert same(go(tmp_path / "broken", Line()), whole)
    lines = [read_log(tmp_path / name / LOG) for name in ("whole", "broken")]
    assert [line for line in lines[1] if line["step"] not in (7, 8)] == [line for line in lines[0] if line["step"] != 8]


def test_a_second_signal_acts_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, Line(step5=twice))
    assert checkpoints.latest(tmp_path)["step"] == 4


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nmore"),
    ],
)
def test_a_full_disk_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    whole = go(tmp_path / "whole", Line())
    save, calls = torch.save, []

    def full(state: object, file: Path) -> None:
        calls.append(1)
        if len(calls) == 3:
            file.write_bytes(b"a part")
            raise error
        save(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(RunError) as caught:
            go(tmp_path / "broken", Line())
    text = str(caught.value)
    assert "step-00000012.pt: cannot be written (" in text
    assert f"make room, then go on from {tmp_path / 'broken' / 'step-00000008.pt'}" in text
    assert "\n" not in text
    assert {each.name for each in (tmp_path / "broken").iterdir()} == {"step-00000004.pt", "step-00000008.pt", LOG}
    assert same(go(tmp_path / "broken", Line()), whole)


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        go(tmp_path, Line(nan=9))
    assert str(caught.value) == (
        "line: task, loss, gradient_norm is not finite between the steps 8 and 10; a lower learning rate may help; "
        f"the last good state is {tmp_path / 'step-00000008.pt'}"
    )
    assert checkpoints.latest(tmp_path)["step"] == 8
    assert all(line["step"] <= 8 for line in read_log(tmp_path / LOG))


def test_a_state_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    """The step of a checkpoint itself is looked at, also between two lines of the log."""
    with pytest.raises(RunError, match=r"between the steps 4 and 7; .*step-00000004"):
        go(tmp_path, Line(nan=6), replace(PLAN, save_every=4, steps=7))
    with pytest.raises(RunError, match=r"between the steps 4 and 8; .*step-00000004"):
        go(tmp_path, Line(nan=7))


def test_checkpoints_hold_no_code(tmp_path: Path) -> None:
    """They are read with weights_only, so what comes from elsewhere cannot run."""
    go(tmp_path, Line())
    newest = sorted(tmp_path.glob("step-*"))[-1]
    state = torch.load(newest, weights_only=True)
    assert state.keys() == {"step", "students"}
