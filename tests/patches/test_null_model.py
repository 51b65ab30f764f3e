"""The null model: a call for which no UNet runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from asdm_cli.patches.base import live_on
from asdm_cli.patches.unet_schedule import switch as attach
from asdm_cli.recipe.patches import Switching, read_plan
from tests.patches.conftest import Get
from tests.patches.parts import rules, scheduled, small, timesteps_of, twin
from tests.patches.pipes import draw
from tests.patches.test_stretches import call


def answers(switch: Switching, calls: int, rows: Sequence[int] = (), plans: Any = None) -> tuple[Any, list[Tensor]]:
    """Of a generation of noises that differ from call to call, with so many rows each."""
    unet = scheduled({"a": twin(), "b": small()}, switch, plans or {})
    rows = rows or [1] * calls
    with torch.no_grad(), unet.generation(calls):
        found = [call(unet, index, count) for index, count in enumerate(rows)]
    return unet, found


def plain(unet: Any, index: int, rows: int = 1) -> Tensor:
    with torch.no_grad():
        return call(unet, index, rows)


def test_reuse_is_the_last_prediction_again() -> None:
    unet, found = answers(rules("step", "a 2", "reuse 4", "b 5", "reuse"), 7)
    assert unet.stats().served == ("a", "a", "reuse", "reuse", "b", "reuse", "reuse")
    for index, name in enumerate("aa"):
        assert torch.equal(found[index], plain(unet.unets[name], index))
    assert torch.equal(found[4], plain(unet.unets["b"], 4))
    assert [torch.equal(found[index], found[1]) for index in (2, 3)] == [True, True]
    assert [torch.equal(found[index], found[4]) for index in (5, 6)] == [True, True]


def test_extrapolate_is_the_line_through_the_last_two_real_predictions() -> None:
    unet, found = answers(rules("step", "a 1", "extrapolate 2", "a 4", "extrapolate 6", "b 7", "extrapolate"), 9)
    assert unet.stats().served[4:] == ("extrapolate", "extrapolate", "b", "extrapolate", "extrapolate")
    assert torch.equal(found[1], found[0]), "one prediction has no direction"
    for index, (newer, older) in {4: (3, 2), 5: (3, 2), 7: (6, 3), 8: (6, 3)}.items():
        slope = (found[newer] - found[older]) / (newer - older)
        assert torch.allclose(found[index], found[newer] + (index - newer) * slope, atol=1e-6)
        assert not torch.allclose(found[index], found[newer], atol=1e-4)
    assert torch.equal(found[6], plain(unet.unets["b"], 6))


def test_both_null_models_look_at_real_predictions_only() -> None:
    _, found = answers(rules("step", "a 2", "extrapolate 3", "reuse 4", "extrapolate"), 5)
    assert torch.equal(found[3], found[1])
    assert torch.allclose(found[4], found[1] + 3 * (found[1] - found[0]), atol=1e-6)


@pytest.mark.parametrize("null", ["reuse", "extrapolate"])
def test_whoever_writes_into_an_answer_does_no_damage(null: str) -> None:
    switch = rules("step", "a 2", null)
    _, expected = answers(switch, 5)
    unet, found = scheduled({"a": twin(), "b": small()}, switch), []
    with torch.no_grad(), unet.generation(5):
        for index in range(5):
            answer = call(unet, index)
            found.append(answer.clone())
            answer.fill_(torch.nan)
    assert [torch.equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * 5


def test_answers_are_as_they_are_asked_for() -> None:
    unet, noise = scheduled({"a": twin()}, rules("step", "a 1", "reuse")), torch.ones(1, 4, 8, 8)
    text = torch.ones(1, 16, 16)
    for as_dict in (True, False):
        with torch.no_grad(), unet.generation(2):
            found = [unet(noise, 5, text, return_dict=as_dict) for _ in range(2)]
        for answer in found:
            assert type(answer) is (UNet2DConditionOutput if as_dict else tuple)
        assert torch.equal(found[0][0], found[1][0])


def test_of_another_shape_there_is_nothing_to_reuse() -> None:
    """Guidance that is switched off in the middle: the next UNet serves, then its prediction is reused."""
    unet, found = answers(rules("step", "a 1", "reuse 4", "b 5", "reuse"), 6, [2, 2, 1, 1, 1, 2])
    assert unet.stats().served == ("a", "reuse", "b", "reuse", "b", "b")
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], plain(unet.unets["b"], 2))
    assert torch.equal(found[3], found[2])
    assert torch.equal(found[5], plain(unet.unets["b"], 5, 2)), "where none follows, the last one serves"


def test_null_calls_do_not_end_a_stretch_and_are_not_counted() -> None:
    """The engine sees the real calls, as if they were all; the one at the other shape begins anew."""
    plan = read_plan({"rules": [{"nodes": "up.3", "schedule": {"mode": "uniform", "interval": 3}}]})
    unet, _ = answers(rules("step", "a 2", "reuse 3", "a 5", "extrapolate 6", "b"), 8, plans={"a": plan, "b": plan})
    assert [len(each) for each in unet.stats().reused["a"]] == [0, 1, 1, 0]
    assert [len(each) for each in unet.stats().reused["b"]] == [0, 1]
    shapes = [1, 1, 2, 2, 2, 2, 2, 2]
    unet, _ = answers(rules("step", "a 2", "reuse 3", "a"), 8, shapes, {"a": plan})
    assert unet.stats().served == ("a",) * 8
    assert [len(each) for each in unet.stats().reused["a"]] == [0, 1, 0, 1, 1, 0, 1, 1]


def test_forecasts_in_an_engine_know_where_the_real_calls_lie(get: Get) -> None:
    """Its coordinates are those of its own calls among all: a skipped one leaves a gap."""
    scheduler, places = get().scheduler, []
    rule = {"nodes": "up.3", "order": 1, "axis": "log-snr", "schedule": {"mode": "uniform", "interval": 2}}
    unet = scheduled({"a": twin()}, rules("step", "a 2", "reuse 4", "a"), {"a": read_plan({"rules": [rule]})})
    scheduler.set_timesteps(6)
    with torch.no_grad(), unet.generation(6, scheduler):
        for index, time in enumerate(scheduler.timesteps):
            call(unet, index, time=time)
            generation = live_on(unet.unets["a"])[0].thread.handed
            places.append(list(generation.places["log-snr"]))
    from asdm_cli.patches.noise import coordinates

    whole = coordinates(scheduler, "log-snr", 6, float(scheduler.timesteps[0]))
    assert places[-1] == [whole[index] for index in (0, 1, 4, 5)]


def test_image_to_image_that_begins_inside_a_null_part(get: Get) -> None:
    pipe = get("image")
    switch = rules("timestep", "a 800", "reuse 300", "b")
    own, other = pipe.unet, small()
    with timesteps_of(own, other) as (first, second), attach(pipe, {"a": own, "b": other}, switch) as handle:
        draw(pipe, 10, strength=0.5)
    assert not first
    assert handle.unet.stats().served == ("b", "reuse", "b", "b", "b")
    assert len(second) == 4


def test_no_unet_runs_at_a_null_call(get: Get) -> None:
    pipe = get()
    own = pipe.unet
    with timesteps_of(own) as (times,), attach(pipe, {"a": own}, rules("fraction", "a 0.4", "reuse")) as handle:
        picture = draw(pipe, 5)
    assert len(times) == 2
    assert handle.unet.stats().served == ("a", "a", "reuse", "reuse", "reuse")
    assert picture.isfinite().all()


def test_nothing_is_kept_where_no_null_call_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    from asdm_cli.patches.feature_cache.state import FeatureHistory

    kept: list[int] = []
    keep = FeatureHistory.store
    monkeypatch.setattr(FeatureHistory, "store", lambda self, value: (kept.append(1), keep(self, value)))
    answers(rules("step", "a 2", "b"), 4)
    assert not kept
    answers(rules("step", "a 2", "reuse 3", "b"), 5)
    assert len(kept) == 2
