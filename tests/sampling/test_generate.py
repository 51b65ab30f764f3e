"""An image depends on its prompt, its index and the seed: not on batch, threads, neighbours or processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import nn

from asdm_cli import inherit
from asdm_cli.models.directory import find
from asdm_cli.models.load import load_pipeline
from asdm_cli.models.schedulers import set_sampler
from asdm_cli.patches.base import ways_to_draw
from asdm_cli.recipe.patches import FeatureCacheSpec
from asdm_cli.sampling import generate
from asdm_cli.sampling.generate import ROWS, Layout, SamplingSettings, Share, draw, layout, prompt_seed
from tests import tiny

GOLDEN = [7896617691693857887, 2918264622725855778, 8460147692890830636]
"""Seeds of (seed, index) (0, 0), (0, 1), (7, 0): images of earlier runs stand or fall with them."""
PROMPTS = ["fox", "owl", "cup", "sun", "bee", "hat", "key"]


@pytest.fixture
def pipe(tiny_pipeline: Path) -> Any:
    return load_pipeline(find(str(tiny_pipeline)), torch.device("cpu"), torch.float32)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(
    pipe: Any, indices: Iterable[int] = range(7), batch: int = 4, steps: int = 3, seed: int = 0
) -> dict[int, bytes]:
    settings = SamplingSettings(steps, 3.0, None, seed, batch=batch)
    return {index: each.tobytes() for index, each in draw(pipe, PROMPTS, indices, settings)}


@pytest.mark.parametrize("batch", [1, 4, 5, 6, 16])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_processes_make_the_unet_calls_of_one_and_as_many_each(batch: int, device: str) -> None:
    """A GPU's calls are of `batch` pictures, a CPU's of ROWS at most."""
    how = Layout(batch if device == "cuda" else ROWS, filled=False, workers=1, threads=1)
    alone = how.calls(range(70))
    shares = [how.calls(Share(rank, 3).of(range(70), batch, torch.device(device))) for rank in range(3)]
    assert sorted(call for share in shares for call in share) == alone
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_seeds_are_those_of_numpys_sequence() -> None:
    assert [prompt_seed(0, 0), prompt_seed(0, 1), prompt_seed(7, 0)] == GOLDEN
    seeds = {prompt_seed(seed, index) for seed in range(20) for index in range(500)}
    assert len(seeds) == 20 * 500
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_what_decides_while_it_runs_decides_for_each_picture(pipe: Any) -> None:
    """Whichever pictures are wanted, as after an interruption."""
    rule = {"nodes": "out", "order": 1, "schedule": {"mode": "threshold", "threshold": 0.5}}
    with inherit(pipe, {"rules": [rule]}):
        how = ways_to_draw([FeatureCacheSpec.model_validate({"rules": [rule]})])
        assert how == {"reentrant": True, "together": False}
        settings = SamplingSettings(8, 3.0, None, 0)
        whole = {index: each.tobytes() for index, each in draw(pipe, PROMPTS, range(4), settings, **how)}
        for some in ([2, 3], [1]):
            assert {index: each.tobytes() for index, each in draw(pipe, PROMPTS, some, settings, **how)} == {
                index: whole[index] for index in some
            }
    plain = {index: each.tobytes() for index, each in draw(pipe, PROMPTS, range(4), settings)}
    assert plain != whole, "the plan does something"


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("sampler", ["own", "pndm", "dpm++2m"])
def test_images_are_equal_at_any_batch_number_of_threads_and_in_parts(pipe: Any, sampler: str) -> None:
    set_sampler(pipe, sampler)
    before = pipe.scheduler
    torch.set_num_threads(1)
    whole = drawn(pipe, batch=16)
    assert list(whole) == list(range(7))
    assert len(set(whole.values())) == 7, "seven different images"
    for batch, count in ((1, 1), (3, 2), (16, 3)):
        torch.set_num_threads(count)
        assert drawn(pipe, batch=batch) == whole
    assert drawn(pipe, [5]) | drawn(pipe, [0, 6]) | drawn(pipe, [1, 2, 3, 4]) == whole
    assert all(drawn(pipe, [index], seed=1)[index] != whole[index] for index in (0, 1))
    assert pipe.scheduler is before
    assert before.num_inference_steps is None, "the pipeline's scheduler is left alone"


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("device", "size", "prompts", "batch", "expected"),
    [
        ("cuda", "small", 100, 16, Layout(rows=16, filled=False, workers=1, threads=2)),
        ("cpu", "small", 100, 16, Layout(rows=4, filled=True, workers=2, threads=1)),
        ("cpu", "small", 100, 2, Layout(rows=4, filled=True, workers=2, threads=1)),
        ("cpu", "small", 100, 1, Layout(rows=4, filled=True, workers=1, threads=1)),
        ("cpu", "big", 100, 16, Layout(rows=1, filled=True, workers=2, threads=1)),
        ("cpu", "big", 1, 16, Layout(rows=1, filled=True, workers=1, threads=2)),
    ],
)
def test_layout_of_devices_and_sizes(
    device: str, size: str, prompts: int, batch: int, expected: Layout, monkeypatch: Any
) -> None:
    torch.set_num_threads(2)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**tiny.shape("sd15"))
    own = sum(weight.numel() for weight in unet.parameters())
    monkeypatch.setattr(generate, "SMALL", own + (size == "small"))
    both = nn.ModuleList([unet, nn.Linear(9, 9)])  # what is around a UNet does not count
    pipe: Any = SimpleNamespace(device=torch.device(device), unet=both)
    assert layout(pipe, prompts, batch) == expected


@pytest.fixture
def under_way(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Calls of a pipeline take a twentieth of a second; how many were under way when each began."""
    seen: list[int] = []
    lock = threading.Semaphore(100)

    def slow(_pipe: Any, _tokenizers: Any, prompts: list[str], *_: Any) -> list[Image.Image]:
        with lock:
            seen.append(100 - lock._value)
            time.sleep(0.05)
        return [Image.new("RGB", (8, 8))] * len(prompts)

    monkeypatch.setattr(generate, "_images", slow)
    return seen


def test_who_stops_early_stops_the_drawing(pipe: Any, under_way: list[int]) -> None:
    before = threading.active_count()
    drawing = draw(pipe, ["x"] * 80, range(80), SamplingSettings(1, 1.0, None, 0, batch=4))
    assert next(iter(drawing))[0] == 0
    drawing.close()  # type: ignore[attr-defined]
    assert 1 <= len(under_way) < 10, "of 20 calls"
    assert threading.active_count() == before


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("reentrant", "most"), [(True, 2), (False, 1)])
def test_only_reentrant_pipelines_are_called_side_by_side(
    reentrant: bool, most: int, pipe: Any, under_way: list[int]
) -> None:
    torch.set_num_threads(2)
    settings = SamplingSettings(1, 1.0, None, 0, batch=8)
    assert len(list(draw(pipe, ["x"] * 16, range(16), settings, reentrant=reentrant))) == 16
    assert max(under_way) == most


@pytest.mark.usefixtures("threads")
def test_ctrl_c_stops_at_the_next_unet_call(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Not when every image under way is finished, which may take minutes."""
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
