"""Whoever is on the stage draws so, and leaves the pipeline as it was; what waits shares its tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from asdm_cli.compare.setup import Session, Setup, networks, twin, weight_bytes
from asdm_cli.models.directory import find
from asdm_cli.patches.feature_cache import FeatureCache, cache_on
from asdm_cli.recipe.patches import DeepCacheSpec, read_plan
from tests import tiny
from tests.carrying import every
from tests.compare.setups import CPU, bare, whole
from tests.patches import pipes
from tests.turns import patches

STEPS = 5
needs_package = pytest.mark.skipif(find_spec("DeepCache") is None, reason="the extra `peers` is not installed")


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(CPU, torch.float32)


@pytest.fixture(scope="module")
def cast(tiny_pipeline: Path, tiny_small: Path) -> dict[str, Setup]:
    """Everything that can be in force, on one model."""
    plain = whole(tiny_pipeline, "plain", steps=STEPS)
    turns = tuple(patches({"kind": "feature-cache", "unet": "small v1.5", **every(2)}))
    return {
        "plain": plain,
        "sampler": replace(plain, sampler="dpm++2m"),
        "plan": whole(tiny_pipeline, "plan", every(2), steps=STEPS),
        "package": replace(plain, patches=(DeepCacheSpec(interval=3, branch=1, steps=STEPS),)),
        "turns": replace(plain, patches=turns, unets={"small v1.5": find(str(tiny_small))}),
        "made": replace(plain, make=lambda read: twin_of(read(plain.model)), made_of={"by": "a test"}),
    }


def test_on_a_gpu_that_does_not_hold_all_of_them_models_wait_and_one_alone_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is put together from the UNet of one alone finds it on the device."""
    one, cuda = bare("one"), torch.device("cuda")
    taken = weight_bytes(one, 4, cuda)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(1.1 * taken), 2 * taken))
    assert not Session(cuda, torch.float32, [one]).crowded
    assert not Session(cuda, torch.float32, [one, replace(one, name="again")]).crowded, "of one body"
    assert Session(cuda, torch.float32, [one, bare("other", "sd21")]).crowded


class Moved(torch.nn.Module):
    """Says where it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def to(self, place: Any) -> Any:
        self.sent.append(torch.device(place).type)
        return self


@pytest.mark.parametrize(
    ("device", "crowded", "sent"),
    [("cpu", False, []), ("cuda", False, ["cuda"]), ("cuda", True, ["cuda", "cpu"])],
)
def test_networks_are_where_they_work_and_do_not_stay_where_room_is_short(
    device: str, crowded: bool, sent: list[str]
) -> None:
    session, network = Session(torch.device(device), torch.float32), Moved()
    session.crowded = crowded
    with session.present(network):
        assert network.sent == sent[:1]
    assert network.sent == sent


@pytest.mark.parametrize("offload", [False, True])
def test_all_that_draws_is_present_but_for_unets_whose_turn_brings_them(
    offload: bool, session: Session, cast: dict[str, Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    present, turns = list[Any](), cast["turns"]
    assert turns.model is not None
    turns = replace(turns, patches=tuple(patches(offload=offload)))
    keep = Session.present
    monkeypatch.setattr(Session, "present", lambda self, each: present.append(each) or keep(self, each))
    with session.stage(turns) as (pipe, _):
        whole = [*networks(session.pipeline(turns.model)).values()]
        first, second = pipe.unet.members
        expected = [each for each in whole if each is not pipe.unet] + [first, *([] if offload else [second])]
        assert sorted(map(id, present)) == sorted(map(id, expected))


def twin_of(unet: Any) -> Any:
    """A UNet that answers otherwise, made from another in memory."""
    made = twin(unet)
    made.conv_out.bias = torch.nn.Parameter(made.conv_out.bias + 0.1)
    return made


def state(pipe: Any) -> tuple[Any, ...]:
    """Class, scheduler, UNet, and every module that is not as its class made it."""
    changed = [
        name
        for name, each in pipe.unet.named_modules()
        if getattr(each.forward, "__func__", None) is not type(each).forward
        or hasattr(each, "_diffusers_hook")
        or each._forward_hooks
        or each._forward_pre_hooks
    ]
    return type(pipe), pipe.scheduler, pipe.unet, changed


@pytest.mark.parametrize("fails", [False, True], ids=["ends", "fails"])
@pytest.mark.parametrize(
    "name", ["plain", "sampler", "plan", "turns", "made", pytest.param("package", marks=needs_package)]
)
def test_afterwards_the_pipeline_is_what_it_was(
    session: Session, cast: dict[str, Setup], name: str, fails: bool
) -> None:
    setup = cast[name]
    assert setup.model is not None
    pipe = session.pipeline(setup.model)
    before, image = state(pipe), pipes.draw(pipe, STEPS)
    assert before[-1] == []
    expected: AbstractContextManager[Any] = pytest.raises(ZeroDivisionError) if fails else nullcontext()
    with expected, session.stage(setup) as (staged, _):
        assert staged is pipe
        drawn = pipes.draw(pipe, STEPS)
        assert torch.equal(drawn, image) == (name == "plain")
        assert (state(pipe) == before) == (name == "plain")
        if fails:
            raise ZeroDivisionError
    assert state(pipe) == before
    assert torch.equal(pipes.draw(pipe, STEPS), image)


def test_bodies_that_are_one_share_tensors_and_hooks_are_on_nobodys_modules_but_their_own() -> None:
    session = Session(CPU, torch.float32)
    plain, one, other = bare("plain"), bare("one", plan=every(2)), bare("other", "sd21")
    assert session.bare(plain) is session.bare(one)
    assert session.bare(other) is not session.bare(plain)
    unet = session.bare(plain)
    mine = twin(unet)
    held = {name: tensor.data_ptr() for name, tensor in unet.state_dict().items()}
    assert len(held) > 300
    assert {name: tensor.data_ptr() for name, tensor in mine.state_dict().items()} == held
    assert not {id(each) for each in unet.modules()} & {id(each) for each in mine.modules()}
    cache = FeatureCache(mine, read_plan(every(2)))
    assert (cache_on(mine), cache_on(unet)) == (cache, None)
    sample, text = torch.randn(1, 4, 8, 8), torch.randn(1, tiny.TOKENS, tiny.WIDTH)
    with torch.no_grad(), cache.generation(1):
        first, second = (each(sample, 500, text).sample for each in (unet, mine))
    assert torch.equal(first, second)
