"""The null model: a call for which no UNet runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from asdm_cli.recipe.patches import Switching, read_plan
from tests.patches.parts import rules, scheduled, small, twin
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
