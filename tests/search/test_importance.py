"""What is chosen where errors do not add up: every neighbour of the first set is measured."""

from __future__ import annotations

from collections.abc import Sequence

from asdm_cli.search.importance import choose, paper_costs
from asdm_cli.unet.blocks import preset
from asdm_cli.unet.removals import NOTHING, Removals, Unit


def test_the_one_part_that_errs_more_beside_the_others_is_found_among_many() -> None:
    removals = Removals.of(preset("sdxl"))
    costs = paper_costs(removals, "macs", None, 77)
    errors = {unit: 1e-4 if ".attn." in unit[0] else 1.0 for unit in removals.units}
    whole = sum(costs[NOTHING].values())
    ((_, first), *_) = removals.best(errors, costs, 0.7 * whole)
    assert len(first) > 24
    for bad in (first[0], first[-1]):

        def errs(units: Sequence[Unit], bad: Unit = bad) -> float:
            return sum(errors[unit] for unit in units) + (bad in units)

        found = choose(removals, errors, costs, 0.7 * whole, errs)
        assert bad not in found.units
        assert found.error < 1
