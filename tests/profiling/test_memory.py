"""Peak memory, with amounts so large that nothing else can be taken for them, and processes of their own."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from asdm_cli.errors import RunError
from asdm_cli.profiling.memory import growth, in_fresh_process, measure_memory

CPU = torch.device("cpu")
MB = 1_000_000


class Bomb:
    """Ends the process that unpickles it."""

    def __init__(self, code: int, words: str = ""):
        self.code, self.words = code, words

    def __reduce__(self) -> tuple[object, tuple[int, str]]:
        return end, (self.code, self.words)


def end(code: int, words: str) -> None:
    """By this exit code, or by this signal where it is below 0; these words are said as a library in C says them."""
    os.write(2, words.encode())
    os.kill(os.getpid(), -code) if code < 0 else os._exit(code)


def double(number: int) -> int:
    if number < 0:
        raise ValueError("below nothing")
    return 2 * number


def test_growth_sees_200_mb_that_are_gone_again_at_the_end() -> None:
    assert 195 * MB < growth(lambda: torch.ones(50 * MB).sum(), CPU) < 260 * MB


def test_growth_does_not_see_an_earlier_peak() -> None:
    torch.ones(50 * MB).sum()
    assert growth(lambda: None, CPU) < 20 * MB


def test_weights_are_those_of_every_network_and_the_peak_is_on_top() -> None:
    networks = [torch.nn.Linear(1000, 500), torch.nn.BatchNorm1d(10).half()]
    found = measure_memory(networks, lambda: torch.ones(50 * MB).sum(), CPU)
    assert found.weights == 4 * 1001 * 500 + 2 * 4 * 10 + 8
    assert 195 * MB < found.peak - found.weights < 260 * MB


@pytest.mark.parametrize(
    ("code", "words", "told"),
    [
        (9, "", "^huge: the process that measured it ended with exit code 9$"),
        (-signal.SIGTERM, "", "was killed by SIGTERM$"),
        (-signal.SIGABRT, "loading\nstd::bad_alloc\n", "was killed by SIGABRT; its last words: std::bad_alloc$"),
        (-signal.SIGKILL, "", "was killed by SIGKILL, most likely because memory ran out; use a smaller `size`"),
    ],
)
def test_what_a_process_died_of_is_told(code: int, words: str, told: str) -> None:
    with pytest.raises(RunError, match=told) as caught:
        in_fresh_process("huge", double, Bomb(code, words))
    assert ("memory ran out" in str(caught.value)) == (code == -signal.SIGKILL)


def test_a_process_of_its_own_returns_and_raises_as_a_call_does() -> None:
    assert in_fresh_process("small", double, 21) == 42
    assert in_fresh_process("small", os.getpid) != os.getpid()
    with pytest.raises(ValueError, match="below nothing"):
        in_fresh_process("small", double, -1)
