"""Set-ups in turn on the device: whatever one leaves on the CPU, the next one finds where it works."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from asdm_cli.compare.costs import Rounds, plan_calls
from asdm_cli.compare.setup import CPU, Session
from asdm_cli.models.directory import find
from tests.carrying import every
from tests.compare.setups import whole
from tests.turns import patches


@pytest.mark.parametrize("crowded", [False, True])
def test_set_ups_draw_the_same_after_others_moved_their_unets(
    crowded: bool, tiny_pipeline: Path, tiny_small: Path, device: torch.device
) -> None:
    session = Session(device, torch.float32)
    session.crowded, session._home = crowded, CPU if crowded else device
    plain, small = whole(tiny_pipeline, "plain"), whole(tiny_small, "small")
    others = {"small v1.5": find(str(tiny_small))}
    turns = {
        offload: replace(plain, name=f"turns {offload}", patches=tuple(patches(offload=offload)), unets=others)
        for offload in (True, False)
    }
    drawn: dict[str, np.ndarray] = {}
    for setup in (plain, small, turns[True], small, turns[False], plain, turns[True], small, turns[False]):
        with session.stage(setup) as (pipe, _):
            dice = torch.Generator().manual_seed(0)
            images = pipe("a fox", num_inference_steps=4, generator=dice, output_type="np").images
        assert np.array_equal(images, drawn.setdefault(setup.name, images))
    assert np.array_equal(drawn["turns True"], drawn["turns False"])
    records = plan_calls(session, [small, whole(tiny_pipeline, "plan", every(2), draws=False)], Rounds(1, 0, size=32))
    assert {each.setup for each in records} == {"plan"}
