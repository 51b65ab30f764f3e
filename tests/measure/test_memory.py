"""Peak memory, with amounts so large that nothing else can be taken for them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from asdm_cli.errors import RunError
from asdm_cli.measure.contestants import build
from asdm_cli.measure.memory import growth, measure, measure_in_fresh_process, weight_bytes
from tests.measure.entrants import bare, drawing, protocol

CPU = torch.device("cpu")
MB = 1_000_000


class Bomb:
    """Ends the process that unpickles it, as the system does when memory runs out."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (9,)


def test_growth_sees_200_mb_that_are_gone_again_at_the_end() -> None:
    assert 195 * MB < growth(lambda: torch.ones(50 * MB).sum(), CPU) < 260 * MB


def test_growth_does_not_see_an_earlier_peak() -> None:
    torch.ones(50 * MB).sum()
    assert growth(lambda: None, CPU) < 20 * MB


def test_weights_are_those_of_every_network_that_is_loaded(tiny_pipeline: Path) -> None:
    unet = build(bare(), protocol())
    whole = build(drawing(tiny_pipeline), protocol())
    assert weight_bytes(unet) == 4 * sum(unet.entrant.parameters.values())
    assert weight_bytes(whole) > weight_bytes(unet)
    assert weight_bytes(build(bare(), protocol(dtype=torch.bfloat16))) * 2 == weight_bytes(unet)


def test_peak_holds_weights_and_work(tiny_pipeline: Path) -> None:
    for entrant in (bare(), drawing(tiny_pipeline)):
        found = measure(build(entrant, protocol()))
        assert found.peak >= found.weights > 2 * MB


def test_fresh_process_measures_the_same_weights(tiny_pipeline: Path) -> None:
    entrant = drawing(tiny_pipeline)
    found = measure_in_fresh_process(entrant, protocol())
    assert found.weights == weight_bytes(build(entrant, protocol()))
    assert found.weights < found.peak < found.weights + 400 * MB


def test_a_killed_process_is_explained() -> None:
    doomed = replace(bare("huge"), config={"bomb": Bomb()})
    with pytest.raises(RunError, match=r"contestant 'huge': its process was killed .* memory ran out"):
        measure_in_fresh_process(doomed, protocol())
