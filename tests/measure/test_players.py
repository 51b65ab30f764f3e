"""Whoever is on the stage draws so, and leaves the pipeline as it was."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from PIL import Image

from asdm_cli import inherit
from asdm_cli.errors import ModelError
from asdm_cli.inheritance.course import Nodes
from asdm_cli.measure import generate, players
from asdm_cli.measure.players import ASDM, DEEPCACHE, PLAIN, Player, on_stage, require_package
from asdm_cli.recipe.patches import read_plan
from asdm_cli.unet.anatomy import Anatomy
from tests.carrying import every
from tests.inheritance import pipes

STEPS = 5
needs_package = pytest.mark.skipif(find_spec("DeepCache") is None, reason="the extra `peers` is not installed")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return pipes.pipe()


def plan(pipe: Any, given: dict[str, Any]) -> Nodes:
    return Nodes(read_plan(given), Anatomy.of(dict(pipe.unet.config)))


def cast(pipe: Any) -> dict[str, Player]:
    return {
        "plain": Player("plain", PLAIN, STEPS, "own"),
        "sampler": Player("sampler", PLAIN, STEPS, "dpm++2m"),
        "plan": Player("plan", ASDM, STEPS, "own", nodes=plan(pipe, every(2))),
        "package": Player("package", DEEPCACHE, STEPS, "ddim", package=(3, 1)),
    }


def state(pipe: Any) -> tuple[Any, ...]:
    """Class, scheduler, and every module that is not as its class made it."""
    changed = [
        name
        for name, each in pipe.unet.named_modules()
        if getattr(each.forward, "__func__", None) is not type(each).forward
        or hasattr(each, "_diffusers_hook")
        or each._forward_hooks
        or each._forward_pre_hooks
    ]
    return type(pipe), pipe.scheduler, changed


@pytest.mark.parametrize("fails", [False, True], ids=["ends", "fails"])
@pytest.mark.parametrize("name", ["plain", "sampler", "plan", pytest.param("package", marks=needs_package)])
def test_afterwards_the_pipeline_is_what_it_was(pipe: Any, name: str, fails: bool) -> None:
    player, before, picture = cast(pipe)[name], state(pipe), pipes.draw(pipe, STEPS)
    assert before[2] == []
    expected: AbstractContextManager[Any] = pytest.raises(ZeroDivisionError) if fails else nullcontext()
    with expected, on_stage(pipe, player):
        drawn = pipes.draw(pipe, STEPS)
        assert torch.equal(drawn, picture) == (name == "plain")
        assert (state(pipe) == before) == (name == "plain")
        if fails:
            raise ZeroDivisionError
    assert state(pipe) == before
    assert torch.equal(pipes.draw(pipe, STEPS), picture)


def test_a_plan_on_the_stage_is_the_plan(pipe: Any) -> None:
    with inherit(pipe, every(2)):
        wanted = pipes.draw(pipe, STEPS)
    with on_stage(pipe, cast(pipe)["plan"]):
        assert torch.equal(pipes.draw(pipe, STEPS), wanted)


@needs_package
@pytest.mark.parametrize(("interval", "branch"), [(2, 0), (3, 1), (2, 4)])
def test_the_package_draws_what_our_preset_draws(pipe: Any, interval: int, branch: int) -> None:
    preset = plan(pipe, {"preset": "deepcache", "interval": interval, "branch": branch})
    ways = (
        Player("theirs", DEEPCACHE, STEPS, "ddim", package=(interval, branch)),
        Player("ours", ASDM, STEPS, "ddim", nodes=preset),
        Player("plain", PLAIN, STEPS, "ddim"),
    )
    pictures = []
    for player in ways:
        with on_stage(pipe, player):
            pictures.append([pipes.draw(pipe, STEPS, seed=seed) for seed in (0, 1)])
    theirs, ours, plain = pictures
    assert all(torch.equal(one, other) for one, other in zip(theirs, ours, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(ours, plain, strict=True))


def test_without_the_package_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(players, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"DeepCache package is not installed; pip install 'asdm-cli\[peers\]'"):
        require_package()
    monkeypatch.setattr(players, "find_spec", lambda name: name)
    require_package()


@pytest.mark.parametrize(("alone", "together"), [(False, 2), (True, 1)])
def test_alone_draws_one_call_at_a_time(pipe: Any, alone: bool, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package keeps what it remembers in the UNet: two pictures under way would mix."""
    under_way, most, both = 0, 0, threading.Event()

    def draw(_: Any, prompts: list[str], *_rest: Any) -> list[Image.Image]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if under_way == 2:
            both.set()
        both.wait(0.2)
        under_way -= 1
        return [Image.new("RGB", (8, 8))] * len(prompts)

    monkeypatch.setattr(generate, "_draw", draw)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    settings = {"steps": 1, "guidance": 1.0, "size": None, "seed": 0, "batch": 16}
    drawn = generate.pictures(pipe, ["a fox"] * 8, range(8), alone=alone, **settings)
    assert [index for index, _ in drawn] == list(range(8))
    assert most == together
