"""A picture depends on its prompt, its index and the seed, and on nothing else that a run may vary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from asdm_cli.measure.generate import Layout, layout, pictures, prompt_seed
from asdm_cli.models.load import load_pipeline, set_sampler
from asdm_cli.models.source import find

PROMPTS = [f"a {thing}" for thing in ("cat", "dog", "fox", "hen", "owl", "pig", "ram", "yak", "ant")]


@pytest.fixture(scope="module")
def pipe(tiny_pipeline: Path) -> DiffusionPipeline:
    return load_pipeline(find(str(tiny_pipeline)), torch.device("cpu"), torch.float32)


def drawn(pipe: DiffusionPipeline, indices: list[int], batch: int = 4, seed: int = 5) -> dict[int, bytes]:
    each = pictures(pipe, PROMPTS, indices, steps=2, guidance=3.0, size=32, seed=seed, batch=batch)
    return {index: picture.tobytes() for index, picture in each}


@pytest.fixture(scope="module")
def whole(pipe: DiffusionPipeline) -> dict[int, bytes]:
    return drawn(pipe, list(range(len(PROMPTS))))


def test_prompt_seeds_are_the_same_for_ever() -> None:
    golden = {
        (0, 0): 7896617691693857887,
        (0, 1): 2918264622725855778,
        (1, 0): 3717377837946358015,
        (1099511627776, 999999): 6473374541476089996,
    }
    assert {pair: prompt_seed(*pair) for pair in golden} == golden


def test_prompt_seeds_differ_and_fit_a_generator() -> None:
    seeds = {prompt_seed(seed, index) for seed in range(20) for index in range(50)}
    assert len(seeds) == 20 * 50
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_every_picture_is_another(whole: dict[int, bytes]) -> None:
    assert list(whole) == list(range(len(PROMPTS)))
    assert len(set(whole.values())) == len(PROMPTS)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batch_changes_no_bit(pipe: DiffusionPipeline, whole: dict[int, bytes], batch: int) -> None:
    assert drawn(pipe, list(range(len(PROMPTS))), batch) == whole


def test_two_halves_are_the_whole(pipe: DiffusionPipeline, whole: dict[int, bytes]) -> None:
    """The cut goes through a UNet call, as an interruption may."""
    assert drawn(pipe, list(range(6))) | drawn(pipe, list(range(6, len(PROMPTS)))) == whole


@pytest.mark.parametrize("indices", [[7], [7, 6], [0, 7, 8]])
def test_other_wanted_pictures_do_not_matter(
    pipe: DiffusionPipeline, whole: dict[int, bytes], indices: list[int]
) -> None:
    some = drawn(pipe, indices)
    assert list(some) == sorted(indices)
    assert some == {index: whole[index] for index in some}


@pytest.mark.parametrize("sampler", ["pndm", "dpm++2m"])
def test_calls_side_by_side_do_not_share_a_scheduler(
    tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    """Samplers that remember earlier steps would mix pictures up."""
    pipe = load_pipeline(find(str(tiny_pipeline)), torch.device("cpu"), torch.float32)
    set_sampler(pipe, sampler)
    alone = drawn(pipe, list(range(len(PROMPTS))))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert layout(pipe, len(PROMPTS), 12).workers == 3
    assert drawn(pipe, list(range(len(PROMPTS))), batch=12) == alone


def test_the_seed_changes_pictures(pipe: DiffusionPipeline, whole: dict[int, bytes]) -> None:
    assert drawn(pipe, [0], seed=6)[0] != whole[0]


def test_nothing_wanted_nothing_drawn(pipe: DiffusionPipeline) -> None:
    assert drawn(pipe, []) == {}


def test_rows_of_a_filled_call_are_fixed() -> None:
    filled = Layout(rows=4, filled=True, workers=1, threads=1)
    assert filled.calls([9, 1, 2, 2]) == [[1, 2], [9]]
    assert filled.seats([1, 2]) == [1, 1, 2, 1]
    assert filled.seats([9]) == [9, 9, 9, 9]
    assert Layout(rows=4, filled=False, workers=1, threads=1).seats([9]) == [9]
