"""Interleaved timing and the figures made of the times; no clock is read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import pytest
import torch

from asdm_cli.errors import RunError
from asdm_cli.models.load import random_unet
from asdm_cli.profiling import latency
from asdm_cli.profiling.latency import (
    block_seconds,
    clocked,
    quartiles,
    round_robin,
    speedup,
    stopwatch,
    time_interleaved,
)
from asdm_cli.unet import flops
from tests import tiny

CPU = torch.device("cpu")


def test_every_round_has_everyone_once_and_starts_one_further() -> None:
    assert "".join(round_robin("abc", 4)) == "abcbcacababc"


def test_rounds_are_timed_and_warmups_forgotten() -> None:
    log: list[str] = []
    clock = iter(range(100))

    def seconds(work: Callable[[], object]) -> float:
        work()
        return float(next(clock))

    works = {name: (lambda name=name: log.append(name)) for name in "ab"}
    times = time_interleaved(works, warmups=1, rounds=2, seconds=seconds, doing="testing")
    assert log == ["a", "b", "b", "a", "a", "b"]
    # the warm-up took the clock's 0 and 1; of the rest a was third and first, b first and second
    assert times == {"a": [3.0, 4.0], "b": [2.0, 5.0]}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no such kernel\nand a long story"), r"bad: timing calls failed \(ValueError: no such kernel\)"),
        (MemoryError(), r"bad: out of memory while timing calls; use a smaller `batch`"),
    ],
)
def test_who_fails_is_named(error: Exception, told: str) -> None:
    def fail() -> None:
        raise error

    works: dict[str, Callable[[], object]] = {"good": lambda: None, "bad": fail}
    with pytest.raises(RunError, match=told):
        time_interleaved(works, warmups=0, rounds=1, seconds=stopwatch(CPU), doing="timing calls")


def test_speedup_is_the_median_of_paired_ratios() -> None:
    random = np.random.default_rng(1)
    first, this = random.gamma(9.0, size=15), random.gamma(6.0, size=15)
    found = speedup(list(first), list(this))
    assert found.value == pytest.approx(np.median(first / this))
    assert found.low < found.value < found.high
    assert found.value != pytest.approx(np.median(first) / np.median(this))


def test_each_block_gets_its_own_time_by_a_clock_that_ticks_once_per_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(latency, "_now", lambda _: float(next(ticks)))
    config = tiny.shape("sd15")
    unet = random_unet(config, CPU, torch.float32)
    inputs = flops.inputs(config, 1, 8, tiny.TOKENS, CPU)
    seconds = block_seconds(unet, config, lambda: unet(**inputs), CPU, passes=3)
    blocks = [*(f"down.{i}" for i in range(4)), "mid", *(f"up.{i}" for i in range(4))]
    assert list(seconds) == [*blocks, flops.OUTSIDE]
    # between start and end lie two readings per block: one tick inside it, and one more in front of it
    assert [seconds[address] for address in blocks] == [1.0] * 9
    assert seconds[flops.OUTSIDE] == 10.0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def test_calls_are_clocked_one_by_one() -> None:
    module = torch.nn.Linear(2, 2)
    with clocked({"unet": module}, CPU) as seconds:
        assert seconds() == {"unet": []}
        for _ in range(3):
            module(torch.zeros(1, 2))
    assert len(seconds()["unet"]) == 3
    assert min(seconds()["unet"]) > 0


def test_of_one_round_there_is_no_interval() -> None:
    assert quartiles([0.25], 1000.0) == (250.0, None, None, "")
    assert speedup([3.0], [2.0]) == (1.5, None, None, "")
