"""The loop on a task of a few numbers: resuming is exact, checkpoints are whole, every sample is seen; and what becomes
of trainings that end before their time: killed, told to stop, out of disk, out of numbers."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from asdm_cli.errors import RunError
from asdm_cli.recipe.verbs import DistillRecipe
from asdm_cli.training import loop
from asdm_cli.training.loop import (
    LOG,
    Noise,
    Part,
    Stopwatch,
    Task,
    Training,
    latest_checkpoint,
    read_log,
    sampling_order,
    save_checkpoint,
    train,
)
from asdm_cli.training.student import StudentTrainer
from tests.forking import ours
from tests.hardening.kinds import NO_FILES
from tests.training.students import PLAIN, like

CONFIG = like(PLAIN, steps=20, batch=5, lr=0.05, schedule="cosine", warmup=3, checkpoint=4, every=10, ema=0.999)
KILLS, INSIDE = 10, 4
ROOT = Path(__file__).parents[2]


class Line(Task):
    """y = 2x + 1, with the loop's noise. `at[step]` happens while that step is read; at `nan` the loss is none."""

    size = 23

    def __init__(self, at: dict[int, Callable[[], object]] | None = None, nan: int = -1):
        self.at, self.nan, self.step = at or {}, nan, -1

    @override
    def read(self, rows: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        self.step += 1
        self.at.get(self.step, lambda: None)()
        return rows[:, None].float() / 10, 0.1 * noise.normal(1)

    @override
    def losses(self, name: str, module: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Any]:
        x, noise = batch
        value = (module(x) - (2 * x + 1 + noise)).square().mean()
        return {"task": (1.0, value * float("nan") if step == self.nan else value)}

    @override
    def validate(self, name: str, module: nn.Module, step: int) -> dict[str, float]:
        return {"slope": float(module.weight)}


def go(folder: Path, task: Task | None = None, recipe: DistillRecipe = CONFIG) -> list[Tensor]:
    """What was learnt: weights, and their running mean."""
    torch.manual_seed(0)
    student: StudentTrainer = train(task or Line(), {"line": nn.Linear(1, 1)}, recipe, folder).students[0]
    return [each.detach().clone() for each in (*student.module.parameters(), *student.ema.shadow_params)]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def stop(number: int = signal.SIGINT, times: int = 1) -> Callable[[], None]:
    return lambda: [os.kill(os.getpid(), number) for _ in range(times)] and None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tensor]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, go(folder)


def test_an_interrupted_run_ends_bit_equal_with_the_same_log(tmp_path: Path, whole: tuple[Path, list[Tensor]]) -> None:
    for moment in (2, 9, 6):
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, Line({moment: stop(times=2)}))  # the second signal acts at once
    assert latest_checkpoint(tmp_path)["step"] == 12
    assert same(go(tmp_path), whole[1])
    assert read_log(tmp_path / LOG) == (lines := read_log(whole[0] / LOG))
    assert [line["step"] for line in lines if "task" in line] == [4, 8, 10, 12, 16, 20]
    assert sum("validation" in line for line in lines) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_saves_and_goes_on_bit_equal(
    tmp_path: Path, number: int, whole: tuple[Path, list[Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(RunError if number == signal.SIGTERM else KeyboardInterrupt) as caught:
        go(tmp_path, Line({6: stop(number)}))
    assert signal.getsignal(number) is before
    checkpoint = tmp_path / "step-00000007.pt"
    assert f"stopped after step 7, saved as {checkpoint}" in capsys.readouterr().err.replace("\n", "")
    assert checkpoint.is_file()
    if number == signal.SIGTERM:
        assert str(caught.value) == "stopped by signal SIGTERM after step 7; the same command goes on there"
    assert same(go(tmp_path), whole[1])


def test_killed_at_ten_moments_and_while_saving_it_ends_bit_equal(tmp_path: Path) -> None:
    """A distillation with held-out losses, a running mean and a schedule; see kill.py."""
    (told,) = ours("from tests.training.kill import main; main()", tmp_path, KILLS, INSIDE, cwd=ROOT)
    assert told.code == 0, told.err[-2000:]
    ways = [line.split() for line in told.out.splitlines()]
    assert sorted(way for way, _ in ways) == ["inside"] * INSIDE + ["moment"] * KILLS
    assert len({step for _, step in ways}) > 1, "they went on in between"
    undisturbed, broken = (torch.load(tmp_path / f"{name}.pt") for name in ("whole", "broken"))
    assert len(undisturbed) > 100
    assert undisturbed.keys() == broken.keys()
    assert all(torch.equal(value, broken[name]) for name, value in undisturbed.items())
    lines = [read_log(tmp_path / name / LOG) for name in ("whole", "broken")]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0] if "validation" in line] == [4, 8, 12, 14]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
TORN = RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nmore")


@pytest.mark.parametrize("error", [FULL, TORN])
def test_a_full_disk_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, whole: tuple[Path, list[Tensor]]
) -> None:
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
            go(tmp_path)
    text = str(caught.value)
    assert "step-00000012.pt: cannot be written (" in text
    assert f"make room, then go on from {tmp_path / 'step-00000008.pt'}" in text
    assert "\n" not in text
    assert {each.name for each in tmp_path.iterdir()} == {"step-00000004.pt", "step-00000008.pt", LOG}
    assert same(go(tmp_path), whole[1])


@pytest.mark.parametrize(
    ("nan", "steps", "between", "last"),
    [(9, 20, "8 and 10", 8), (6, 7, "4 and 7", 4), (7, 20, "4 and 8", 4), (0, 20, "0 and 4", None)],
)
def test_what_is_not_finite_is_never_saved(tmp_path: Path, nan: int, steps: int, between: str, last: int) -> None:
    """The step of a checkpoint itself is looked at, also between two lines of the log."""
    with pytest.raises(RunError) as caught:
        go(tmp_path, Line(nan=nan), like(CONFIG, steps=steps))
    good = tmp_path / f"step-{last:08}.pt" if last else "the start: there is no checkpoint yet"
    assert str(caught.value) == (
        f"line: task, loss, gradient_norm is not finite between the steps {between}; a lower learning rate may help "
        f"(from the start, with another `out`); the last good state is {good}"
    )
    assert all(line["step"] <= (last or 0) for line in read_log(tmp_path / LOG))


def test_processes_that_see_different_checkpoints_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on machines that do not share the run's folder: weights of different steps would be averaged."""
    monkeypatch.setattr(loop, "gather_object", lambda own: [*own, 20])
    with pytest.raises(RunError, match=r"checkpoints of different steps there \(0, 20\).* the machines share"):
        go(tmp_path)


def test_what_is_written_after_a_damaged_checkpoint_does_not_crowd_out_the_good_one(tmp_path: Path) -> None:
    for step in (1000, 2000):
        save_checkpoint(tmp_path, step, {"step": step}, keep=2)
    (tmp_path / "step-00002000.pt").write_bytes(b"rubbish")
    assert latest_checkpoint(tmp_path) == {"step": 1000}
    save_checkpoint(tmp_path, 1200, {"step": 1200}, keep=1)
    assert [file.name for file in tmp_path.iterdir()] == ["step-00001200.pt"]
    assert latest_checkpoint(tmp_path) == {"step": 1200}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(116, "Stale file handle"), "cannot be read now"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "is more than the memory",
        ),
        (MemoryError(), "is more than the memory that is free"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_now_ends_the_run_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    for step in (1000, 2000):
        save_checkpoint(tmp_path, step, {"step": step}, keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", Mock(side_effect=error))
        with pytest.raises(RunError, match=rf"step-00002000.pt: {told}"):
            latest_checkpoint(tmp_path)
    assert latest_checkpoint(tmp_path) == {"step": 2000}


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By whatever damage; where no older one is whole, that is said. The newest few are kept."""
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, {"step": step}, keep=2)
    oldest, newest = sorted(tmp_path.iterdir())
    assert [file.name for file in (oldest, newest)] == ["step-00000004.pt", "step-00000005.pt"]
    assert latest_checkpoint(tmp_path) == {"step": 5}
    whole = newest.read_bytes()
    cuts = [whole[:size] for size in range(1, len(whole), 97)]
    assert len(cuts) > 5
    for raw in (b"", b"rubbish", whole[:-100], bytes(len(whole)), *cuts):
        newest.write_bytes(raw)
        assert latest_checkpoint(tmp_path) == {"step": 4}
        assert f"{newest}: cannot be read" in " ".join(capsys.readouterr().err.split())
    for make in NO_FILES.values():
        newest.rmdir() if newest.is_dir() else newest.unlink()
        make(newest)
        assert latest_checkpoint(tmp_path) == {"step": 4}
    oldest.write_bytes(whole[:-100])
    with pytest.raises(RunError, match="none of its 2 checkpoints can be read"):
        latest_checkpoint(tmp_path)


def test_checkpoints_hold_no_code(whole: tuple[Path, list[Tensor]]) -> None:
    """They are read with weights_only, so what comes from elsewhere cannot run."""
    newest = sorted(whole[0].glob("step-*"))[-1]
    assert torch.load(newest, weights_only=True).keys() == {"step", "students"}


def test_every_sample_is_seen_once_per_epoch() -> None:
    epochs = torch.cat([sampling_order(23, 0, step, Part(5)) for step in range(23)]).reshape(5, 23)
    assert all(sorted(epoch.tolist()) == list(range(23)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("count", [2, 4])
def test_parts_of_a_step_are_its_samples_and_its_noise(count: int) -> None:
    for step in range(9):  # across the borders of epochs
        parts = [Part(8, index, count) for index in range(count)]
        order = torch.cat([sampling_order(23, 3, step, part) for part in parts])
        assert torch.equal(order, sampling_order(23, 3, step, Part(8)))
        whole, apart = Noise(3, step, Part(8)), [Noise(3, step, part) for part in parts]
        once = Noise(3, step, Part(8))
        for pieces in (apart, [once.of(part) for part in parts]):
            again = whole.of(Part(8))
            for draw in (lambda n: n.normal(2, 3), lambda n: n.uniform(), lambda n: n.integers(1000)):
                assert torch.equal(torch.cat([draw(piece) for piece in pieces]), draw(again))


def test_what_is_random_is_drawn_once_for_all_parts_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    for name in ("randperm", "randn"):
        plain = getattr(torch, name)
        told = lambda *args, plain=plain, name=name, **named: (drawn.append(name), plain(*args, **named))[1]  # noqa: E731
        monkeypatch.setattr(torch, name, told)
    noise = Noise(3, 0, Part(8))
    for index in range(4):
        sampling_order(1_000_003, 3, 0, part := Part(8, index, 4))
        noise.of(part).normal(2)
    assert drawn == ["randperm", "randn"]


@pytest.mark.parametrize(("seconds", "asked"), [(0.01, [10]), (2.0, [10, 11, 12])])
def test_other_processes_are_asked_at_every_step_where_steps_are_long(seconds: float, asked: list[int]) -> None:
    step, found = 10, []
    lead = SimpleNamespace(num_processes=2, device="cpu", reduce=lambda taken, _: taken, set_trigger=lambda: None)
    lead.check_trigger = lambda: found.append(step)
    training = Training.__new__(Training)
    training.__dict__.update(lead=lead, recipe=SimpleNamespace(steps=100), step_seconds=0.0)
    training.asked = time.monotonic() - seconds * loop.EVERY
    for step in (10, 11, 12):
        training.agreed([], step)
    assert found == asked


def test_any_seed_of_63_bits_gives_numbers_of_its_own() -> None:
    seeds = (0, 1, 2**62, 2**63 - 1)
    orders = {tuple(sampling_order(100, seed, 0, Part(100)).tolist()) for seed in seeds}
    assert len(orders) == len({float(Noise(seed, 5, Part(1)).normal(1)) for seed in seeds}) == len(seeds)


def test_the_first_steps_are_no_part_of_what_a_step_takes() -> None:
    watch = Stopwatch(torch.device("cpu"), warmup=2)
    watch.seconds["update"] = 10.0
    watch.step_done()
    assert watch.per_step() == {"update": 10.0}, "of one step alone that is all there is"
    for _ in range(3):
        watch.seconds["update"] += 1.0
        watch.step_done()
    assert watch.per_step() == {"update": 1.0}
