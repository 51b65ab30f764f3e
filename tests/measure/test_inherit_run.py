"""What `asdm inherit` measures of every player: counts by hand, times in turn, shares of the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from asdm_cli.errors import RunError
from asdm_cli.inheritance.course import Nodes
from asdm_cli.measure import inherit_run
from asdm_cli.measure.drawing import Share, Style
from asdm_cli.measure.generate import ROWS
from asdm_cli.measure.inherit_run import cost, draw_share, take_turns
from asdm_cli.measure.pictures import PictureSet
from asdm_cli.measure.players import ASDM, FEWER, PLAIN, Player
from asdm_cli.recipe.patches import read_plan
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.cost import macs
from tests import tiny
from tests.carrying import every
from tests.inheritance import pipes

STEPS = 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return pipes.pipe()


def style(**changes: Any) -> Style:
    usual = {"steps": STEPS, "guidance": 3.0, "size": 32, "seed": 0, "sampler": "own", "batch": 16}
    return Style(**{**usual, "device": CPU, "dtype": torch.float32, **changes})


def player(plan: dict[str, Any] | None = None, name: str = "it", steps: int = STEPS, sampler: str = "own") -> Player:
    nodes = Nodes(read_plan(plan), Anatomy.of(tiny.SHAPES["sd15"])) if plan else None
    return Player(name, ASDM if plan else PLAIN, steps, sampler, nodes=nodes)


def unet_macs(pipe: Any, who: Player) -> int:
    return cost(pipe, who, style()).trajectory.components["unet"].total


def test_counts_of_an_image(pipe: Any) -> None:
    call = 2 * macs(tiny.SHAPES["sd15"], tokens=tiny.TOKENS).total
    assert unet_macs(pipe, player()) == STEPS * call
    assert unet_macs(pipe, player(sampler="heun")) == (2 * STEPS - 1) * call
    assert unet_macs(pipe, player(every(1))) == STEPS * call
    once, inherited = (unet_macs(pipe, player({**every(number), "text_once": True})) for number in (1, 2))
    assert STEPS * call > once > inherited > STEPS / 2 * call / 2


def test_cost_says_what_rested_and_what_was_kept(pipe: Any) -> None:
    plain, plan = cost(pipe, player(), style()), cost(pipe, player({**every(3), "text_once": True}), style())
    assert (plain.steps, plain.cache_bytes) == ((), None)
    rests = frozenset({0})
    assert plan.steps == (frozenset(), rests, rests, frozenset())
    kept = 2 * 8 * 8 * 8 * 4  # both halves of guidance, 8 channels of 8 x 8, four bytes each
    widths = [8] * 5 + [16] * 5 + [32] * 6
    texts = sum(2 * 2 * tiny.TOKENS * width * 4 for width in widths)
    assert plan.cache_bytes == kept + texts


def test_everybody_is_timed_in_every_round(pipe: Any) -> None:
    everybody = [
        player(),
        player(every(2), "plan"),
        Player("few", FEWER, 1, "own"),
        player(name="heun", sampler="heun"),
    ]
    times = take_turns(pipe, everybody, style(), warmups=1, rounds=3)
    assert list(times) == ["it", "plan", "few", "heun"]
    for each in times.values():
        assert len(each.image) == len(each.unet) == 3
        assert all(0 < unet < image for unet, image in zip(each.unet, each.image, strict=True))
    assert max(times["few"].unet) < min(times["it"].unet)
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"


def test_who_breaks_is_named(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(inherit_run, "image_call", broken)
    with pytest.raises(RunError, match=r"'it': timing images failed \(RuntimeError: no kernel\)"):
        take_turns(pipe, [player()], style(), 1, 1)
    monkeypatch.setattr(inherit_run, "on_stage", broken)
    with pytest.raises(RunError, match=r"'it': drawing failed \(RuntimeError: no kernel\)"):
        draw_share(pipe, player(), ["a fox"], style(), PictureSet(tmp_path, 1), Share(0, 1))


@pytest.mark.parametrize("plan", [None, every(2, order=1)], ids=["plain", "plan"])
def test_shares_of_two_processes_are_the_pictures_of_one(pipe: Any, plan: Any, tmp_path: Path) -> None:
    prompts = [f"a fox {index}" for index in range(ROWS + 2)]
    who = player(plan)
    sets = {name: PictureSet(tmp_path / name, len(prompts)) for name in ("one", "two")}
    draw_share(pipe, who, prompts, style(), sets["one"], Share(0, 1))
    for rank in (1, 0):
        draw_share(pipe, who, prompts, style(batch=ROWS), sets["two"], Share(rank, 2))
    assert [target.missing(range(len(prompts))) for target in sets.values()] == [[], []]
    assert sets["one"].digest() == sets["two"].digest()


def test_only_missing_pictures_are_drawn(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = PictureSet(tmp_path, 3)
    arguments = (pipe, player(every(2)), ["a", "b", "c"], style(), target, Share(0, 1))
    draw_share(*arguments)
    before = target.digest()
    target.path(1).unlink()
    draw_share(*arguments)
    assert target.digest() == before
    monkeypatch.setattr(inherit_run, "on_stage", lambda *_: pytest.fail("there is nothing to draw"))
    draw_share(*arguments)
