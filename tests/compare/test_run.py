"""The one comparison: counts by hand, times in turn, images in shares; what an interrupted run left is gone on from."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from asdm_cli.compare import costs, run
from asdm_cli.compare.costs import Rounds
from asdm_cli.compare.run import Place, draw_all, keep, kept
from asdm_cli.compare.setup import Session, Setup
from asdm_cli.errors import RunError
from asdm_cli.models.directory import find
from asdm_cli.recipe.patches import DeepCacheSpec
from asdm_cli.sampling.generate import ROWS
from asdm_cli.sampling.prompts import PromptList, read_prompts
from tests.carrying import every
from tests.compare.setups import CPU, PLACE, bare, whole
from tests.turns import patches

STEPS = 4


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(CPU, torch.float32)


@pytest.fixture
def prompts(tmp_path: Path) -> PromptList:
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"a fox {index}\n" for index in range(ROWS + 2)))
    return read_prompts(str(file))


@pytest.fixture(scope="module")
def turns(tiny_pipeline: Path, tiny_small: Path) -> Setup:
    parts = [{"unet": "small v1.5", "until": 1}, {"unet": "large"}]
    specs = tuple(patches({"kind": "feature-cache", "unet": "large", **every(2)}, by="step", parts=parts))
    return replace(whole(tiny_pipeline, "turns"), patches=specs, unets={"small v1.5": find(str(tiny_small))})


def process(rank: int = 0, count: int = 1) -> Any:
    """A process that finds that the others have done their part."""
    return SimpleNamespace(
        is_main_process=rank == 0, process_index=rank, num_processes=count, wait_for_everyone=lambda: None
    )


# Costs ----------------------------------------------------------------------------------------------------------------


def test_finished_times_are_kept_for_what_they_depend_on(
    session: Session, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed after it timed single images does not time them again."""
    setups = [whole(tiny_pipeline, "it"), whole(tiny_pipeline, "few", steps=2)]
    asked: list[int] = []

    def timed(_session: Session, who: Any, rounds: Rounds, _place: Place, batch: int) -> Any:
        if batch == 2 and not asked.count(2):
            asked.append(batch)
            raise KeyboardInterrupt
        asked.append(batch)
        return {each.name: {"image": [0.5] * rounds.repeats, "unet": [0.25] * rounds.repeats} for each in who}

    monkeypatch.setattr(run, "image_times", timed)
    rounds = Rounds(3, 1, (2,))
    with pytest.raises(KeyboardInterrupt):
        run._image_times(session, setups, rounds, PLACE, tmp_path)
    assert asked == [1, 2]
    first = run._image_times(session, setups, rounds, PLACE, tmp_path)
    assert asked == [1, 2, 2]
    assert run._image_times(session, setups, rounds, PLACE, tmp_path) == first
    assert len(asked) == 3
    less = [replace(setups[0], guidance=1.0), setups[1]]
    others = (less, rounds, PLACE), (setups, Rounds(4, 1, (2,)), PLACE), (setups, rounds, replace(PLACE, size=64))
    for who, how, where in others:
        run._image_times(session, setups, rounds, PLACE, tmp_path)
        before = len(asked)
        run._image_times(session, who, how, where, tmp_path)
        assert len(asked) == before + 2


def test_kept_is_what_was_found_and_survives_damage(tmp_path: Path) -> None:
    made: list[int] = []
    file = tmp_path / "deep/kept.json"

    def found() -> dict[str, Any]:
        made.append(1)
        return {"a": (1, None)}

    for origin, times in (({"x": (1, 2)}, 1), ({"x": (1, 2)}, 1), ({"x": (1, 3)}, 2), ({"x": (1, 2)}, 3)):
        assert kept(file, origin, found) == {"a": [1, None]}, "as it is read back"
        assert len(made) == times
    for damaged in (b"", file.read_bytes()[:-9], b"[]", b"{}"):
        file.write_bytes(damaged)
        assert kept(file, {"x": 1}, found) == {"a": [1, None]}
    assert len(made) == 3 + 4
    assert [each.name for each in file.parent.iterdir()] == ["kept.json"]


def test_two_runs_may_keep_one_file_at_a_moment(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"

    def often() -> None:
        for number in range(60):
            keep(file, {}, {"a": number})

    others = [multiprocessing.get_context("fork").Process(target=often) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert [other.exitcode for other in others] == [0, 0]
    assert [each.name for each in tmp_path.iterdir()] == ["kept.json"]


# Images ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The index of every image that is drawn from now on."""
    indices: list[int] = []
    real = run.draw

    def counted(*args: Any, **settings: Any) -> Iterator[tuple[int, Image.Image]]:
        for index, image in real(*args, **settings):
            indices.append(index)
            yield index, image

    monkeypatch.setattr(run, "draw", counted)
    return indices


def test_only_missing_and_damaged_images_are_drawn_and_others_of_the_same_origin_kept(
    session: Session, tiny_pipeline: Path, prompts: PromptList, tmp_path: Path, drawn: list[int]
) -> None:
    setup = whole(tiny_pipeline, "it", every(2))

    def again(setup: Setup, expected: list[int], place: Place = PLACE) -> str:
        drawn.clear()
        digest = draw_all(session, [setup], prompts, place, tmp_path, process())["it"].digest()
        assert drawn == expected
        return digest

    everything = list(range(ROWS + 2))
    before = again(setup, everything)
    (tmp_path / "it/000001.png").unlink()
    (tmp_path / "it/000005.png").write_bytes((tmp_path / "it/000005.png").read_bytes()[:-20])
    assert again(setup, [1, 5]) == before
    assert again(replace(setup, series="another"), []) == before
    assert again(setup, [], replace(PLACE, batch=1)) == before, "on the CPU the batch changes no image"
    for change in ({"steps": 3}, {"guidance": 1.0}, {"patches": ()}, {"sampler": "dpm++2m"}):
        assert again(replace(setup, **change), everything) != before  # type: ignore[arg-type]
    assert again(setup, everything, replace(PLACE, seed=1)) != before


def test_costs_that_were_measured_before_a_kill_are_not_measured_again(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setups, measures = [bare("one"), bare("two", "sd21", every(2))], run.Measures(rounds=Rounds(1, 0), unet=True)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(costs, "in_fresh_process", lambda *_: (1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(run, "plan_calls", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.costs_of(session, setups, measures, PLACE, tmp_path)
    for name in ("memory", "unet_calls", "by_block"):
        monkeypatch.setattr(run, name, lambda *_: pytest.fail("this is known"))
    found, _ = run.costs_of(session, setups, measures, PLACE, tmp_path)
    assert {"peak_memory_mb", "unet_ms", "unet_speedup", "time_share"} <= {each.metric for each in found}
    assert {each.of.partition("/")[0] for each in found} >= {"", "block", "inherited", "generation"}
    with pytest.raises(pytest.fail.Exception):  # of another UNet nothing is known
        run.costs_of(session, [setups[0], bare("two", "sdxl", every(2))], measures, PLACE, tmp_path)


def test_what_was_counted_is_not_counted_again(
    session: Session, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setups = [whole(tiny_pipeline, "plain"), whole(tiny_pipeline, "plan", every(2))]
    found, timelines = run.costs_of(session, setups, run.Measures(), PLACE, tmp_path)
    assert {"calls", "image_macs_g", "macs_share", "full_calls"} <= {each.metric for each in found}
    assert len(timelines) == 1
    monkeypatch.setattr(run, "_count", lambda *_: pytest.fail("this is known"))
    assert run.costs_of(session, setups, run.Measures(), PLACE, tmp_path) == (found, timelines)
    with pytest.raises(pytest.fail.Exception):
        run.costs_of(session, [setups[0], replace(setups[1], steps=3)], run.Measures(), PLACE, tmp_path)


@pytest.mark.skipif(find_spec("DeepCache") is None, reason="the extra `peers` is not installed")
def test_what_is_not_reentrant_is_drawn_one_call_at_a_time(
    session: Session, tiny_pipeline: Path, prompts: PromptList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The DeepCache package keeps what it remembers of an image in the UNet."""
    package = (DeepCacheSpec(interval=3, branch=1, steps=STEPS),)
    setups = [whole(tiny_pipeline, "plan", every(2)), replace(whole(tiny_pipeline, "package"), patches=package)]
    told: dict[str, bool] = {}
    real = run.draw

    def noted(*args: Any, reentrant: bool, what: str, **more: Any) -> Iterator[tuple[int, Image.Image]]:
        told[what] = reentrant
        return real(*args, reentrant=reentrant, what=what, **more)

    monkeypatch.setattr(run, "draw", noted)
    draw_all(session, setups, prompts, PLACE, tmp_path, process())
    assert told == {"drawing with plan": True, "drawing with package": False}


def test_who_breaks_is_named(
    session: Session, tiny_pipeline: Path, prompts: PromptList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("no kernel")

    setup = whole(tiny_pipeline, "it")
    monkeypatch.setattr(run, "image_call", lambda *_: broken)
    with pytest.raises(RunError, match=r"it: timing images, batch 1 failed \(RuntimeError: no kernel\)"):
        run.image_times(session, [setup], Rounds(1, 1), PLACE, 1)
    with pytest.raises(RunError, match=r"it: drawing an image to count its operations failed \(Runt"):
        run._count(session, setup, PLACE)
    monkeypatch.setattr(run, "draw", broken)
    with pytest.raises(RunError, match=r"it: drawing failed \(RuntimeError: no kernel\)"):
        draw_all(session, [setup], prompts, PLACE, tmp_path, process())
