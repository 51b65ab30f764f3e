"""The one comparison: counts by hand, times in turn, images in shares; what an interrupted run left is gone on from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from asdm_cli.compare import run
from asdm_cli.compare.costs import Rounds
from asdm_cli.compare.run import Place, costs_of, draw_all, kept, picture
from asdm_cli.compare.session import Session
from asdm_cli.compare.setup import Setup
from asdm_cli.errors import RunError
from asdm_cli.models.directory import find
from asdm_cli.patches.feature_cache.hooks import resolve
from asdm_cli.recipe.patches import DeepCacheSpec
from asdm_cli.sampling.generate import ROWS
from asdm_cli.sampling.prompts import PromptList, read_prompts
from asdm_cli.unet.flops import macs
from tests import tiny
from tests.carrying import cache, every
from tests.compare.setups import CPU, PLACE, whole
from tests.turns import patches, pruned

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
def turns(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    small = pruned(tiny_pipeline, tmp_path_factory.mktemp("small") / "run")
    parts = [{"unet": "small v1.5", "until": 1}, {"unet": "large"}]
    specs = tuple(patches({"kind": "feature-cache", "unet": "large", **every(2)}, by="step", parts=parts))
    return replace(whole(tiny_pipeline, "turns"), patches=specs, unets={"small v1.5": find(str(small))})


def process(rank: int = 0, count: int = 1) -> Any:
    """A process that finds that the others have done their part."""
    return SimpleNamespace(
        is_main_process=rank == 0, process_index=rank, num_processes=count, wait_for_everyone=lambda: None
    )


# Costs ----------------------------------------------------------------------------------------------------------------


def test_counts_of_an_image(session: Session, tiny_pipeline: Path, turns: Setup) -> None:
    call = 2 * macs(tiny.SHAPES["sd15"], tokens=tiny.TOKENS).total

    def counted(plan: Any = None, **changes: Any) -> int:
        return run._count(session, whole(tiny_pipeline, "it", plan, **changes), PLACE)[0].components["unet"].total

    assert counted() == counted(every(1)) == STEPS * call
    assert counted(sampler="heun") == (2 * STEPS - 1) * call
    assert counted(guidance=1.0) == STEPS * call / 2
    once, inherited = (counted({**every(number), "cache_text": True}) for number in (1, 2))
    assert STEPS * call > once > inherited > STEPS / 2 * call / 2
    counts, stats = run._count(session, turns, PLACE)
    assert counts.calls == STEPS
    assert stats.served == ("small v1.5", *["large"] * 3)
    assert counts.components["unet"].total < STEPS * call - call / 2, "one call is of the small one, one inherits"


def test_stats_say_what_was_reused_and_what_was_kept(session: Session, tiny_pipeline: Path) -> None:
    plain, plan = whole(tiny_pipeline), whole(tiny_pipeline, "plan", {**every(3), "cache_text": True})
    _, nothing = run._count(session, plain, PLACE)
    assert (nothing.full_calls, nothing.cache_bytes) == (None, None)
    _, stats = run._count(session, plan, PLACE)
    reused = frozenset({0})
    assert stats.reused == {"unet": [frozenset(), reused, reused, frozenset()]}
    held = 2 * 8 * 8 * 8 * 4  # both halves of guidance, 8 channels of 8 x 8, four bytes each
    texts = sum(2 * 2 * tiny.TOKENS * width * 4 for width in [8] * 5 + [16] * 5 + [32] * 6)
    assert stats.cache_bytes == held + texts


def test_everybody_is_timed_in_every_round(session: Session, tiny_pipeline: Path, turns: Setup) -> None:
    few = whole(tiny_pipeline, "few", steps=1)
    setups = [whole(tiny_pipeline, "it"), whole(tiny_pipeline, "plan", every(2)), few, turns]
    setups.append(whole(tiny_pipeline, "heun", sampler="heun"))
    times = run._timed(session, setups, Rounds(3, 1), PLACE, 1)
    assert list(times) == ["it", "plan", "few", "turns", "heun"]
    for each in times.values():
        assert len(each["image"]) == len(each["unet"]) == 3
        assert all(0 < unet < image for unet, image in zip(each["unet"], each["image"], strict=True))
    assert max(times["few"]["unet"]) < min(times["it"]["unet"])


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

    monkeypatch.setattr(run, "_timed", timed)
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


def test_timelines_tell_who_serves_and_what_is_computed(tiny_pipeline: Path, turns: Setup, tmp_path: Path) -> None:
    session, measures = Session(CPU, torch.float32), run.Measures()
    setups = [whole(tiny_pipeline, "plain"), whole(tiny_pipeline, "plan", every(2)), turns]
    found, (who, what) = costs_of(session, setups, measures, PLACE, tmp_path)
    (row,) = [cells for name, cells in who.rows.items() if name == "turns"]
    assert [who.letters[letter] for letter in row] == ["small v1.5", *["large"] * 3]
    assert all(len(cells) == STEPS for cells in what.rows.values())
    assert "2 of 4 calls are computed in full" in what.note
    assert what == picture(resolve(cache(every(2)), tiny.SHAPES["sd15"]), [frozenset(), frozenset({0})] * 2, "plan")
    assert len({each.setup for each in found if each.metric == "macs_share"}) == 3


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


def test_shares_of_two_processes_are_the_images_of_one(
    session: Session, tiny_pipeline: Path, turns: Setup, prompts: PromptList, tmp_path: Path
) -> None:
    setups = [whole(tiny_pipeline, "plain"), whole(tiny_pipeline, "plan", every(2, order=1)), turns]
    one = draw_all(session, setups, prompts, PLACE, tmp_path / "one", process())
    place = replace(PLACE, batch=ROWS)
    with pytest.raises(RunError, match="'plain': 2 of 6 pictures are missing; run the same command again"):
        draw_all(session, setups, prompts, place, tmp_path / "two", process(0, 2))
    two = draw_all(session, setups, prompts, place, tmp_path / "two", process(1, 2))
    assert len({one[name].digest() for name in one}) == 3
    for name in one:
        assert two[name].digest() == one[name].digest()


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


def test_a_killed_run_goes_on_and_ends_with_the_same_images(
    session: Session, tiny_pipeline: Path, prompts: PromptList, tmp_path: Path, drawn: list[int]
) -> None:
    setups = [whole(tiny_pipeline, "one"), whole(tiny_pipeline, "two", steps=2)]
    whole_run = draw_all(session, setups, prompts, PLACE, tmp_path / "whole", process())
    counted = run.draw

    def killed(*args: Any, **settings: Any) -> Iterator[tuple[int, Image.Image]]:
        for index, image in counted(*args, **settings):
            if index == 3:
                raise KeyboardInterrupt
            yield index, image

    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(run, "draw", killed)
        with pytest.raises(KeyboardInterrupt):
            draw_all(session, setups, prompts, PLACE, tmp_path / "killed", process())
    assert sorted(file.name for file in (tmp_path / "killed/one").glob("*.png")) == [f"00000{n}.png" for n in range(3)]
    drawn.clear()
    gone_on = draw_all(session, setups, prompts, PLACE, tmp_path / "killed", process())
    assert drawn == [3, 4, 5, *range(6)]
    for name, images in whole_run.items():
        assert gone_on[name].digest() == images.digest()


@pytest.mark.skipif(find_spec("DeepCache") is None, reason="the extra `peers` is not installed")
def test_what_is_not_reentrant_is_drawn_one_call_at_a_time(
    session: Session, tiny_pipeline: Path, prompts: PromptList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The DeepCache package keeps what it remembers of an image in the UNet."""
    package = (DeepCacheSpec(interval=3, branch=1, steps=STEPS),)
    setups = [whole(tiny_pipeline, "plan", every(2)), replace(whole(tiny_pipeline, "package"), patches=package)]
    told: dict[str, bool] = {}
    real = run.draw

    def noted(*args: Any, reentrant: bool, what: str) -> Iterator[tuple[int, Image.Image]]:
        told[what] = reentrant
        return real(*args, reentrant=reentrant, what=what)

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
    with pytest.raises(RunError, match=r"'it': timing images, batch 1 failed \(RuntimeError: no kernel\)"):
        run._timed(session, [setup], Rounds(1, 1), PLACE, 1)
    with pytest.raises(RunError, match=r"'it': drawing an image to count its operations failed \(Runt"):
        run._count(session, setup, PLACE)
    monkeypatch.setattr(run, "draw", broken)
    with pytest.raises(RunError, match=r"'it': drawing failed \(RuntimeError: no kernel\)"):
        draw_all(session, [setup], prompts, PLACE, tmp_path, process())
