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
    """An event at a whole second."""

    at: int
    waited: bool = False

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
        lambda _: Clock(next(made.seconds)),
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


def test_growth_is_that_of_the_peak_since_it_was_forgotten_of_work_that_was_done_before(played: Played) -> None:
    assert growth(lambda: played.ask("work"), PLAYED) == 100
    assert played.said == ["work", "idle", "forget", "held", "work", "idle", "peak"]


def test_a_mark_stands_in_the_stream_of_the_gpu_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    marked = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str | None = None) -> None:
            marked.append(stream)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    accelerators.ACCELERATORS["cuda"].mark(torch.device("cuda:1"))
    assert marked == ["stream of cuda:1"]


def test_every_place_that_costs_are_measured_on_says_how() -> None:
    assert HOW.keys() == {"cpu", "cuda", "mps"}
    assert torch.mps.event.Event.elapsed_time
    assert callable(torch.mps.driver_allocated_memory)
