"""Units that a stock config can lack, and the knapsack over them against all combinations there are."""

from __future__ import annotations

import random
from itertools import chain, combinations
from typing import Any

import pytest

from asdm_cli.errors import ModelError
from asdm_cli.unet.blocks import Config, preset
from asdm_cli.unet.removals import NOTHING, Removals, Unit, modules, split
from asdm_cli.unet.shapes import tensor_shapes
from tests import tiny


def shallow(**changes: Any) -> Config:
    """Two levels, so that all combinations can be tried."""
    two = {
        "block_out_channels": [8, 8],
        "attention_head_dim": 2,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": [1, 1],
    }
    return tiny.shape("sd15", **{**two, **changes})


SMALL = {
    "pairs of both levels": shallow(layers_per_block=2, mid_block_type=None, transformer_layers_per_block=[0, 0]),
    "depths below plain blocks": shallow(transformer_layers_per_block=[2, 1]),
    "a mid block tied to a depth": shallow(
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        transformer_layers_per_block=[1, 2],
    ),
}


def costs(removals: Removals) -> dict[Unit, dict[str, float]]:
    """Parameters, by dropped levels: module of the whole -> those in what is left."""
    found = {}
    for drop in removals.drops:
        surgery = removals.surgery([drop] if drop else [])
        shapes = tensor_shapes(surgery.config)
        own = {module: float(count(shapes, f"{module}.")) for module in modules(surgery.left.result)}
        own = split(own)
        found[drop] = {surgery.sources.get(name, name): cost for name, cost in own.items()}
        found[drop][""] = count(shapes) - sum(own.values())
    return found


def count(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> int:
    total = 0
    for name, shape in shapes.items():
        if name.startswith(prefix):
            size = 1
            for side in shape:
                size *= side
            total += size
    return total


def pattern_of(removals: Removals, units: tuple[Unit, ...]) -> bool:
    """Whether no unit lies in another one, which would count an error twice."""
    inside = [frozenset().union(*(removals.anatomy.inside(address) for address in unit)) for unit in units]
    return all(not (one & other) for one, other in combinations(inside, 2))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_the_knapsack_finds_what_trying_everything_finds(name: str, share: float) -> None:
    removals = Removals.of(SMALL[name])
    chance = random.Random(f"{name} {share}")
    errors = {unit: chance.uniform(0.1, 1.0) for unit in removals.units}
    whole = count(tensor_shapes(SMALL[name]))
    least = float("inf")
    for units in chain.from_iterable(combinations(removals.units, size) for size in range(5)):
        if not pattern_of(removals, units) or sum(errors[unit] for unit in units) >= least:
            continue
        try:
            left = count(tensor_shapes(removals.surgery(units).config))
        except ModelError:
            continue
        if left <= share * whole:
            least = sum(errors[unit] for unit in units)
    found = removals.best(errors, costs(removals), share * whole)
    if least == float("inf"):  # of four units
        assert not found or len(found[0][1]) > 4
        return
    point, units = found[0]
    assert point.error == pytest.approx(sum(errors[unit] for unit in units))
    left = count(tensor_shapes(removals.surgery(units).config))
    assert left == pytest.approx(min(left, share * whole))
    assert point.saved == pytest.approx(whole - left) or units[0] in removals.drops
    assert point.error <= least + 1e-9
    if len(units) < 5:
        assert point.error == pytest.approx(least)


@pytest.mark.parametrize("model", ["sd15", "sd21", "sdxl"])
def test_units_cover_every_part_and_are_what_stock_can_lack(model: str) -> None:
    removals = Removals.of(preset(model))
    assert len(removals.units) == len(set(removals.units)) > 30
    for unit in removals.alone:
        assert removals.surgery([unit]).config != removals.config
    tied = {unit for unit in removals.units if unit not in removals.alone}
    assert all(unit[0].startswith(("mid.0.attn.", "down.2.0.attn.")) for unit in tied)
    assert bool(tied) is (model == "sdxl")
    everything = removals.best(
        dict.fromkeys(removals.units, 0.0), costs(removals), 0.3 * count(tensor_shapes(removals.config))
    )
    assert everything
    assert removals.name([NOTHING]) == "nothing"


def test_nothing_within_the_budget_gives_nothing() -> None:
    removals = Removals.of(SMALL["depths below plain blocks"])
    assert removals.best(dict.fromkeys(removals.units, 1.0), costs(removals), 10.0) == []
    assert removals.best({}, costs(removals), float("inf"))[0][1] == []
