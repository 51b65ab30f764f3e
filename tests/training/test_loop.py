"""The loop on a task of a few numbers: resuming is exact, checkpoints are whole, every sample is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from typing_extensions import override

from asdm_cli.errors import RunError
from asdm_cli.training import checkpoints, loop
from asdm_cli.training.loop import Task, read_log, train
from asdm_cli.training.sampling_order import Noise, Part, sampling_order
from asdm_cli.training.student import TrainingConfig
from tests.forking import ours
from tests.hardening.kinds import NO_FILES


class Line(Task):
    """y = 2x + 1, with the loop's noise so that order and noise both matter."""

    size = 23

    def __init__(self, break_at: int | None = None):
        self.calls, self.break_at, self.seen = 0, break_at, []

    def read(self, rows, noise):
        self.calls += 1
        self.seen += rows.tolist()
        if self.calls == self.break_at:
            raise KeyboardInterrupt
        return rows[:, None].float() / 10, 0.1 * noise.normal(1)

    @override
    def losses(self, name, module, batch, step):
        x, noise = batch
        return {"task": (1.0, (module(x) - (2 * x + 1 + noise)).square().mean())}

    @override
    def validate(self, name, module, step):
        return {"slope": float(module.weight)}


PLAN = TrainingConfig(
    steps=30, batch=5, lr=0.05, warmup=3, save_every=7, validate_every=10, device="cpu", precision="float32"
)


def trained(folder: Path, task: Line, plan: TrainingConfig = PLAN):
    torch.manual_seed(0)
    module = nn.Linear(1, 1)
    trainee = train(task, {"line": module}, plan, folder).students[0]
    return module, trainee.ema


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


def test_a_resumed_log_is_the_undisturbed_one(tmp_path):
    trained(tmp_path / "whole", Line())
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", Line(break_at=18))
    trained(tmp_path / "broken", Line())
    whole, broken = (read_log(tmp_path / name / "log.jsonl") for name in ("whole", "broken"))
    assert broken == whole
    assert [row["step"] for row in whole if "task" in row] == [7, 10, 14, 20, 21, 28, 30]
    assert sum("validation" in row for row in whole) == 3


def test_every_sample_is_seen_once_per_epoch():
    drawn = torch.cat([sampling_order(23, 0, step, Part(5)) for step in range(23)])
    epochs = drawn.reshape(5, 23)
    assert all(sorted(epoch.tolist()) == list(range(23)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("count", [2, 4])
def test_parts_of_a_step_are_its_samples_and_its_noise(count):
    for step in range(9):  # across the borders of epochs
        parts = [Part(8, index, count) for index in range(count)]
        assert torch.equal(
            torch.cat([sampling_order(23, 3, step, part) for part in parts]), sampling_order(23, 3, step, Part(8))
        )
        whole, pieces = Noise(3, step, Part(8)), [Noise(3, step, part) for part in parts]
        for draw in (lambda n: n.normal(2, 3), lambda n: n.uniform(), lambda n: n.integers(1000)):
            assert torch.equal(torch.cat([draw(piece) for piece in pieces]), draw(whole))


def test_processes_that_see_different_checkpoints_are_told(tmp_path, monkeypatch):
    """As on machines that do not share the run's folder: weights of different steps would be averaged."""
    monkeypatch.setattr(loop, "gather_object", lambda own: [*own, 20])
    with pytest.raises(RunError, match=r"checkpoints of different steps there \(0, 20\).* the machines share"):
        trained(tmp_path, Line())


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    class Broken(Line):
        @override
        def losses(self, name, module, batch, step):
            return {"task": (1.0, super().losses(name, module, batch, step)["task"][1] * float("nan"))}

    with pytest.raises(RunError, match=r"line: task, loss, gradient_norm is not finite .* the start"):
        trained(tmp_path, Broken())
    assert checkpoints.latest(tmp_path) is None


def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys):
    """By whatever damage; where no older one is whole, that is said."""
    for step in (1, 2):
        checkpoints.save(tmp_path, step, {"step": step})
    newest, oldest = (tmp_path / f"step-{step:08d}.pt" for step in (2, 1))
    whole = newest.read_bytes()
    for raw in (b"", b"rubbish", whole[:-100], whole[: len(whole) // 2], bytes(len(whole))):
        newest.write_bytes(raw)
        assert checkpoints.latest(tmp_path) == {"step": 1}
        assert f"{newest}: cannot be read" in " ".join(capsys.readouterr().err.split())
    for make in NO_FILES.values():
        newest.rmdir() if newest.is_dir() else newest.unlink()
        make(newest)
        assert checkpoints.latest(tmp_path) == {"step": 1}
    oldest.write_bytes(whole[:-100])
    with pytest.raises(RunError, match="none of its 2 checkpoints can be read"):
        checkpoints.latest(tmp_path)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in range(1, 6):
        checkpoints.save(tmp_path, step, {"step": step}, keep=2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000004.pt", "step-00000005.pt"]
    assert checkpoints.latest(tmp_path) == {"step": 5}


def test_a_kill_while_saving_leaves_the_previous_checkpoint(tmp_path):
    checkpoints.save(tmp_path, 1, {"step": 1})
    script = (
        "import os, signal, torch\n"
        "from pathlib import Path\n"
        "from asdm_cli.training import checkpoints\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"checkpoints.save(Path({str(tmp_path)!r}), 2, {{'step': 2}})\n"
    )
    (told,) = ours(script, cwd=tmp_path)
    assert told.code == -9
    assert checkpoints.latest(tmp_path) == {"step": 1}
    checkpoints.save(tmp_path, 3, {"step": 3})
    assert checkpoints.latest(tmp_path) == {"step": 3}


def test_any_seed_of_63_bits_gives_numbers_of_its_own():
    seeds = (0, 1, 2**62, 2**63 - 1)
    orders = {tuple(sampling_order(100, seed, 0, Part(100)).tolist()) for seed in seeds}
    noises = {float(Noise(seed, 5, Part(1)).normal(1)) for seed in seeds}
    assert len(orders) == len(noises) == len(seeds)
