"""The training of the bundled model: to the bit after a kill, by time, in two processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from asdm_cli.errors import RunError
from asdm_cli.training.loop import Noise
from pocket import loop
from pocket.loop import Plan, newest, train

PLAN = Plan(steps=8, batch=4, lr=1e-2, warmup=2, emas=(0.5, 0.9))


class Line:
    """Learns y = 2 x from noisy x; `stops_at` kills it in the middle of that call."""

    def __init__(self, stops_at: int | None = None, spoilt_at: int | None = None):
        torch.manual_seed(0)
        self.module: nn.Module = nn.Linear(3, 1)
        self.size, self.calls, self.stops_at, self.spoilt_at = 10, 0, stops_at, spoilt_at
        self.data = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))

    def losses(self, module: nn.Module, rows: Tensor, noise: Noise) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == self.stops_at:
            raise KeyboardInterrupt
        wrong = float("nan") if self.calls == self.spoilt_at else 1.0
        data = self.data[rows] + 0.1 * noise.normal(3)
        return {"square": wrong * (module(data) - 2 * data.sum(1, keepdim=True)).square().mean()}

    def figures(self) -> dict[str, float]:
        return {}


@pytest.fixture(autouse=True)
def _saves_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(loop, "native_bf16", lambda: False)


def weights(folder: Path) -> dict[str, Tensor]:
    state = newest(folder)
    assert state is not None
    return state["module"] | {f"ema {i}": ema["shadow_params"][0] for i, ema in enumerate(state["emas"])}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_killed_stretch_goes_on_to_the_bit(tmp_path: Path) -> None:
    train(Line(), PLAN, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(Line(stops_at=6), PLAN, tmp_path / "killed")
    state = newest(tmp_path / "killed")
    assert state is not None
    assert state["step"] == 5
    train(Line(), PLAN, tmp_path / "killed")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_a_torn_checkpoint_gives_way_to_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(Line(), PLAN, tmp_path)
    whole = weights(tmp_path)
    (tmp_path / loop.LATEST).write_bytes(b"torn")
    train(Line(), PLAN, tmp_path)
    assert "the one before it is taken" in capsys.readouterr().out
    assert same(whole, weights(tmp_path))


def test_a_loss_that_is_not_finite_is_told_before_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    with pytest.raises(RunError, match=r"square.* not finite at step 4; the last checkpoint is good"):
        train(Line(spoilt_at=4), PLAN, tmp_path)
    assert all(torch.isfinite(each).all() for each in weights(tmp_path).values())


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    """Also between two lines of the log, and at the end; a line that a kill cut off is no hindrance."""
    with pytest.raises(RunError, match="weights are not finite at step 4; the last checkpoint is good"):
        train(Line(spoilt_at=4), PLAN, tmp_path)
    assert all(torch.isfinite(each).all() for each in weights(tmp_path).values())
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "sq')
    train(Line(), PLAN, tmp_path)
    assert all(json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines())


def _one_of_two(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    loop.native_bf16 = lambda: False
    train(Line(), PLAN, folder)


def test_two_processes_learn_the_same(tmp_path: Path) -> None:
    train(Line(), PLAN, tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    company = [context.Process(target=_one_of_two, args=(rank, port, tmp_path / "two")) for rank in range(2)]
    for each in company:
        each.start()
    for each in company:
        each.join(60)
    assert [each.exitcode for each in company] == [0, 0]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6)
