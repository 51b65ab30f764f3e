"""What an accelerator is asked, and in what order; of one that is only played."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest
import torch

from asdm_cli.profiling import accelerators
from asdm_cli.profiling.accelerators import Accelerator
from asdm_cli.profiling.latency import clocked, stopwatch
from asdm_cli.profiling.memory import HOW, growth

PLAYED = torch.device("meta")


@dataclass
class Clock:
    """An event that is recorded at the next whole second."""

    seconds: Iterator[int]
    at: int = -1
    waited: bool = False

    def record(self) -> None:
        self.at = next(self.seconds)

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, end: Clock) -> float:
        assert end.waited
        return 1000.0 * (end.at - self.at)


@dataclass
class Played:
    said: list[str] = field(default_factory=list)
    seconds: Iterator[int] = field(default_factory=count)
    held: int = 7

    def ask(self, word: str, answer: int = 0) -> int:
        self.said.append(word)
        return answer


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    made = Played()
    asked = Accelerator(
        lambda: Clock(made.seconds),
        lambda _: made.ask("forget"),
        lambda _: made.ask("held", made.held),
        lambda _: made.ask("peak", made.held + 100),
        "by playing",
        lambda _: made.ask("idle"),
    )
    monkeypatch.setitem(accelerators.ACCELERATORS, PLAYED.type, asked)
    return made


def test_time_is_taken_from_idle_to_idle(played: Played) -> None:
    assert stopwatch(PLAYED)(lambda: played.ask("work")) > 0
    assert played.said == ["idle", "work", "idle"]


def test_calls_are_clocked_by_events_and_nobody_waits(played: Played) -> None:
    module = torch.nn.Linear(2, 2, device=PLAYED)
    with clocked({"unet": module}, PLAYED) as seconds:
        for _ in range(2):
            module(torch.zeros(1, 2, device=PLAYED))
        assert played.said == []
        assert seconds() == {"unet": [1.0, 1.0]}


def test_growth_is_that_of_the_peak_since_it_was_forgotten(played: Played) -> None:
    assert growth(lambda: played.ask("work"), PLAYED) == 100
    assert played.said == ["idle", "forget", "held", "work", "idle", "peak"]


def test_every_place_that_costs_are_measured_on_says_how() -> None:
    assert HOW.keys() == {"cpu", "cuda", "mps"}
    assert torch.mps.event.Event.elapsed_time
    assert callable(torch.mps.driver_allocated_memory)
