"""A picture depends on its prompt, its index and the seed: not on batch, threads, neighbours or processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from asdm_cli.measure import generate
from asdm_cli.measure.generate import Layout, layout, pictures, prompt_seed
from asdm_cli.models.directory import find
from asdm_cli.models.load import load_pipeline
from asdm_cli.models.schedulers import set_sampler

GOLDEN = [7896617691693857887, 2918264622725855778, 8460147692890830636]
"""Seeds of (seed, index) (0, 0), (0, 1), (7, 0): pictures of earlier runs stand or fall with them."""
PROMPTS = ["fox", "owl", "cup", "sun", "bee", "hat", "key"]


@pytest.fixture(scope="module")
def pipe(tiny_pipeline: Path) -> Any:
    return load_pipeline(find(str(tiny_pipeline)), torch.device("cpu"), torch.float32)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(pipe: Any, indices: Iterable[int] = range(7), batch: int = 4, **changes: Any) -> dict[int, bytes]:
    settings = {"steps": 3, "guidance": 3.0, "size": None, "seed": 0, **changes}
    return {index: each.tobytes() for index, each in pictures(pipe, PROMPTS, indices, batch=batch, **settings)}


def test_seeds_are_those_of_numpys_sequence() -> None:
    assert [prompt_seed(0, 0), prompt_seed(0, 1), prompt_seed(7, 0)] == GOLDEN
    seeds = {prompt_seed(seed, index) for seed in range(20) for index in range(500)}
    assert len(seeds) == 20 * 500
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("sampler", ["own", "pndm", "dpm++2m"])
def test_pictures_are_equal_at_any_batch_and_number_of_threads(pipe: Any, sampler: str) -> None:
    pipe = type(pipe)(**pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    set_sampler(pipe, sampler)
    torch.set_num_threads(1)
    whole = drawn(pipe, batch=16)
    assert sorted(whole) == list(range(7))
    assert len(set(whole.values())) == 7, "seven different pictures"
    for batch, count in ((1, 1), (3, 2), (16, 3)):
        torch.set_num_threads(count)
        assert drawn(pipe, batch=batch) == whole


def test_pictures_do_not_depend_on_their_neighbours(pipe: Any) -> None:
    whole = drawn(pipe)
    parts = drawn(pipe, [5]) | drawn(pipe, [0, 6]) | drawn(pipe, [1, 2, 3, 4])
    assert parts == whole


def test_other_seed_other_pictures_same_seed_same_pictures(pipe: Any) -> None:
    assert drawn(pipe, [0, 1]) == drawn(pipe, [0, 1])
    other = drawn(pipe, [0, 1], seed=1)
    assert all(other[index] != drawn(pipe, [0, 1])[index] for index in (0, 1))


def test_the_pipelines_scheduler_is_left_alone(pipe: Any) -> None:
    before = pipe.scheduler
    assert before.num_inference_steps is None
    drawn(pipe, [0])
    assert pipe.scheduler is before
    assert before.num_inference_steps is None


def test_calls_go_by_index_and_keep_their_rows() -> None:
    four = Layout(rows=4, filled=True, workers=1, threads=1)
    assert four.calls([9, 0, 3, 4, 3]) == [[0, 3], [4], [9]]
    assert four.seats([0, 3]) == [0, 0, 0, 3]
    assert four.seats([9]) == [9, 9, 9, 9]
    assert Layout(rows=4, filled=False, workers=1, threads=1).seats([9]) == [9]


@pytest.mark.usefixtures("threads")
def test_layout_of_devices_and_sizes() -> None:
    def fake(kind: str, parameters: int) -> Any:
        weight = SimpleNamespace(numel=lambda: parameters)
        return SimpleNamespace(device=torch.device(kind), unet=SimpleNamespace(parameters=lambda: [weight]))

    torch.set_num_threads(2)
    assert layout(fake("cuda", 10), 100, batch=16) == Layout(rows=16, filled=False, workers=1, threads=2)
    assert layout(fake("cpu", 10), 100, batch=16) == Layout(rows=4, filled=True, workers=2, threads=1)
    assert layout(fake("cpu", 10), 100, batch=1) == Layout(rows=4, filled=True, workers=1, threads=1)
    assert layout(fake("cpu", 10**9), 100, batch=16) == Layout(rows=1, filled=True, workers=2, threads=1)
    assert layout(fake("cpu", 10**9), 1, batch=16) == Layout(rows=1, filled=True, workers=1, threads=2)


def test_who_stops_early_stops_the_drawing(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def slow(_pipe: Any, prompts: list[str], *_: Any) -> list[Image.Image]:
        begun.append(prompts)
        time.sleep(0.05)
        return [Image.new("RGB", (8, 8))] * len(prompts)

    monkeypatch.setattr(generate, "_draw", slow)
    before = threading.active_count()
    drawing = pictures(pipe, ["x"] * 80, range(80), steps=1, guidance=1.0, size=None, seed=0, batch=4)
    assert next(iter(drawing))[0] == 0
    drawing.close()  # type: ignore[attr-defined]
    assert 1 <= len(begun) < 10, "of 20 calls"
    assert threading.active_count() == before


@pytest.mark.usefixtures("threads")
def test_ctrl_c_stops_at_the_next_unet_call(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Not when every picture under way is finished, which may take minutes."""
    steps, calls = 300, []

    def press(*_: Any) -> None:
        calls.append(threading.get_ident())
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    torch.set_num_threads(2)
    hook = pipe.unet.register_forward_pre_hook(press)
    try:
        with pytest.raises(KeyboardInterrupt):
            drawn(pipe, batch=8, steps=steps)
    finally:
        hook.remove()
    assert 3 <= len(calls) < steps, "of two times as many"
    assert "stopping at the next UNet call" in capsys.readouterr().err
    assert not pipe.unet._forward_pre_hooks
    assert len(drawn(pipe, range(1), steps=1)) == 1


@pytest.mark.parametrize(("sampler", "calls"), [("own", 3), ("heun", 5)])
def test_the_bar_counts_unet_calls(sampler: str, calls: int, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture can take minutes: a bar of pictures would stand still."""
    shown: list[tuple[str, int]] = []
    told: list[int] = []

    @contextmanager
    def watched(what: str, total: int) -> Iterator[Any]:
        shown.append((what, total))
        yield lambda: told.append(1)

    monkeypatch.setattr(generate, "bar", watched)
    pipe = type(pipe)(**pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    set_sampler(pipe, sampler)
    assert len(drawn(pipe, what="drawing with a")) == 7
    assert shown == [("drawing with a", 2 * calls)], "two batches of four rows"
    assert len(told) == 2 * calls
