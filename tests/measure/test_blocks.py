"""Time per block, by a clock that ticks once per reading."""

from __future__ import annotations

from itertools import count

import pytest

from asdm_cli.measure import blocks
from asdm_cli.measure.contestants import build
from asdm_cli.unet.flops import OUTSIDE
from tests.measure.entrants import bare, protocol

ADDRESSES = [*(f"down.{i}" for i in range(4)), "mid", *(f"up.{i}" for i in range(4))]


def test_each_block_gets_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(blocks, "_clock", lambda _: lambda: float(next(ticks)))
    seconds = blocks.block_seconds(build(bare(), protocol()), passes=3)
    assert list(seconds) == [*ADDRESSES, OUTSIDE]
    # between start and end lie two readings per block: one tick inside it, and one more in front of it
    assert [seconds[address] for address in ADDRESSES] == [1.0] * 9
    assert seconds[OUTSIDE] == 10.0


def test_real_times_are_positive_and_no_hook_stays() -> None:
    contestant = build(bare(shape="sdxl"), protocol())
    seconds = blocks.block_seconds(contestant, passes=1)
    assert len(seconds) == 8
    assert min(seconds.values()) > 0
    modules = list(contestant.unet.modules())
    assert len(modules) > 100
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
