"""What the calls of a plan cost: golden counts at the real size, and the tables of a benchmark with plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from asdm_cli.inheritance.course import Nodes
from asdm_cli.measure import bench, bench_report
from asdm_cli.measure.bench import Measurement
from asdm_cli.measure.contestants import Contestant, Entrant, build, build_all
from asdm_cli.measure.memory import Memory
from asdm_cli.measure.plan_times import FULL, pattern_macs, patterns
from asdm_cli.measure.trajectory import count_image
from asdm_cli.models.source import find
from asdm_cli.recipe.patches import read_plan
from asdm_cli.report.document import Interval, Report, Table
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.cost import Macs
from asdm_cli.unet.presets import preset
from tests import tiny
from tests.carrying import every
from tests.measure.entrants import bare, protocol

SD15 = preset("sd15")
TINY = tiny.shape("sd15")
TOGETHER = ["deepcache.0", "deepcache.1", "deepcache.2", "deepcache.3", "*.self", "*.cross", "*.ff", "mid"]
"""Node sets of SD 1.x that have no node in common, so that one UNet can be counted for all of them."""
ALONE = {"encoder": "output", "*.attn": "residual", "base": "residual"}
"""Node sets that share nodes with those, and what they carry."""


@cache
def _call() -> Entrant:
    return bare()


def call(**changes: Any) -> Entrant:
    """A tiny UNet alone; its cost is counted only once."""
    made = replace(_call(), **changes)
    return replace(made, calls=made.steps)


def picture(folder: Path, **changes: Any) -> Entrant:
    """The tiny pipeline."""
    return call(directory=find(str(folder)), draws=True, **changes)


def nodes(plan: dict[str, Any], config: dict[str, Any] = TINY) -> Nodes:
    return Nodes(read_plan(plan), Anatomy.of(config))


def resting_in_turn(sets: Sequence[str], carry: str = "output") -> dict[str, Any]:
    """A rule each; all compute at call 0, then one after the other rests for a call."""
    calls = range(1, len(sets) + 1)
    keys = [[0, *(call for call in calls if call != mine)] for mine in calls]
    rules = [
        {"nodes": each, "carry": carry, "schedule": {"mode": "explicit", "steps": steps}}
        for each, steps in zip(sets, keys, strict=True)
    ]
    return {"rules": rules, "text_once": False}


@cache
def sd15(name: str) -> tuple[Macs, Macs]:
    """A full call of SD 1.5, and one at which this node set rests."""
    sets, carry = ([name], ALONE[name]) if name in ALONE else (TOGETHER, "output")
    by_pattern = _counted(tuple(sets), carry)
    return by_pattern[FULL], by_pattern[frozenset({sets.index(name)})]


@cache
def _counted(sets: tuple[str, ...], carry: str) -> dict[frozenset[int], Macs]:
    return pattern_macs(SD15, nodes(resting_in_turn(sets, carry), SD15), len(sets) + 1)


def saved(name: str) -> tuple[float, float]:
    """Per cent of a full call, with attention matmuls and without."""
    full, resting = sd15(name)
    return 100 - 100 * resting.total / full.total, 100 - 100 * resting.plain / full.plain


@pytest.mark.parametrize(("branch", "macs_g"), [(0, 20.7), (1, 57.3), (2, 98.0), (3, 132.6)])
def test_golden_counts_of_sd_1x_under_deepcache(branch: int, macs_g: float) -> None:
    full, resting = sd15(f"deepcache.{branch}")
    assert full.plain / 1e9 == pytest.approx(338.61, abs=0.01)
    assert resting.plain / 1e9 == pytest.approx(macs_g, abs=0.4)


@pytest.mark.parametrize(
    ("name", "share", "plain_share"),
    [
        ("encoder", 32.5, 31.2),
        ("*.self", 21.6, 7.6),
        ("*.cross", 4.0, 4.2),
        ("*.ff", 19.1, 22.7),
        ("*.attn", 47.9, 38.2),
        ("mid", 1.5, 1.8),
    ],
)
def test_golden_counts_of_sd_1x_that_node_sets_save(name: str, share: float, plain_share: float) -> None:
    assert saved(name) == pytest.approx((share, plain_share), abs=0.2)


def test_golden_counts_of_sd_1x_under_the_base_mask() -> None:
    """All of its layers are 34.9 % and 33.9 %, of which their shortcuts still run."""
    share, plain_share = saved("base")
    assert 33.5 <= share <= 34.9
    assert 32.5 <= plain_share <= 33.9


def test_patterns_count_every_call_once() -> None:
    two = nodes({"rules": [*every(2)["rules"], *every(3, "*.cross")["rules"]]})
    assert patterns(two, 7) == {FULL: 2, frozenset({0}): 1, frozenset({1}): 2, frozenset({0, 1}): 2}


def test_patterns_that_are_decided_on_the_way_are_not_counted_but_costed() -> None:
    schedule = {"mode": "threshold", "threshold": 0.1}
    adaptive = nodes({"rules": [{"nodes": "up.3", "schedule": schedule}]})
    assert not patterns(adaptive, 7)
    assert set(pattern_macs(TINY, adaptive, 7, tokens=tiny.TOKENS)) == {FULL, frozenset({0})}


def test_a_full_call_costs_what_a_plain_one_does() -> None:
    """But for the keys and values of the text, where they are computed once a generation."""
    plain = call().macs
    shape = {"tokens": tiny.TOKENS}
    again = pattern_macs(TINY, nodes(every(2)), 4, **shape)
    once = pattern_macs(TINY, nodes({**every(2), "text_once": True}), 4, **shape)
    assert again[FULL] == plain
    # two projections of the text to the width of each of the 16 transformers
    widths = [8] * 5 + [16] * 5 + [32] * 6
    assert plain.total - once[FULL].total == sum(2 * tiny.TOKENS * tiny.WIDTH * width for width in widths)


@pytest.mark.parametrize("interval", [1, 2])
def test_counts_without_a_device_are_those_of_an_image(tiny_pipeline: Path, interval: int) -> None:
    found = nodes({**every(interval), "text_once": False})
    image = count_image(build(picture(tiny_pipeline, steps=5, nodes=found), protocol()))
    macs, counts = pattern_macs(TINY, found, 5, tokens=tiny.TOKENS), patterns(found, 5)
    assert sum(counts.values()) == image.calls == 5
    assert image.components["unet"].total == 2 * sum(count * macs[each].total for each, count in counts.items())
    plain = 2 * 5 * call().macs.total
    assert (image.components["unet"].total == plain) == (interval == 1)
    assert image.components["unet"].total <= plain


PLANS = {
    "one": every(2),
    "two": {"rules": [*every(2, "up.3")["rules"], *every(3, "*.cross")["rules"]]},
    "adaptive": {"rules": [{"nodes": "mid", "schedule": {"mode": "threshold", "threshold": 0.1}}]},
}
STEPS = 7


def no_seconds(contestant: Contestant) -> dict[str, float]:
    return dict.fromkeys(contestant.entrant.parameters, 1e-3)


@pytest.fixture(scope="module")
def measured(tiny_pipeline: Path) -> Measurement:
    inheriting = [call(name=name, steps=STEPS, nodes=nodes(plan)) for name, plan in PLANS.items()]
    entrants = [call(name="plain", steps=STEPS), *inheriting, picture(tiny_pipeline, name="image")]
    entrants.append(picture(tiny_pipeline, name="fast image", nodes=nodes(every(2))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.memory, "measure_in_fresh_process", lambda *_: Memory(weights=1, peak=1))
        patch.setattr(bench, "block_seconds", no_seconds)
        return bench.measure(entrants, protocol(batches=(1,), repeats=2))


@pytest.fixture(scope="module")
def report(measured: Measurement) -> Report:
    return bench_report.report(measured)


def rows(report: Report, title: str) -> list[dict[str, Any]]:
    (table,) = [part for part in report.parts if isinstance(part, Table) and part.title == title]
    assert table.card in report.cards
    assert table.rows
    assert all({column.key for column in table.columns} == set(row) for row in table.rows)
    return table.rows


def test_every_pattern_of_every_plan_has_a_row(report: Report) -> None:
    found = rows(report, "UNet calls of the plans")
    of_two = ["nothing", "rules[0]", "rules[0], rules[1]", "rules[1]"]
    wanted = {"one": ["nothing", "rules[0]"], "two": of_two, "adaptive": ["nothing", "rules[0]"]}
    wanted["fast image"] = ["nothing", "rules[0]"]
    for name, rests in wanted.items():
        assert sorted(row["rests"] for row in found if row["name"] == name) == rests
    assert len(found) == 2 + 4 + 2 + 2
    for name, steps in {"one": STEPS, "two": STEPS, "fast image": 4}.items():
        assert sum(row["calls"] for row in found if row["name"] == name) == steps
    assert {row["calls"] for row in found if row["name"] == "adaptive"} == {None}
    assert all(isinstance(row["call_ms"], Interval) and row["call_ms"].value > 0 for row in found)
    assert all(0 < row["macs_share"] <= 1 and (row["macs_share"] == 1) == (row["rests"] == "nothing") for row in found)


def test_a_generation_is_the_sum_of_its_calls(report: Report) -> None:
    calls = rows(report, "UNet calls of the plans")
    found = {row["name"]: row for row in rows(report, "A generation under the plans")}
    assert list(found) == ["one", "two", "fast image"], "how many calls an adaptive plan computes is not known"
    for name, steps in {"one": STEPS, "two": STEPS, "fast image": 4}.items():
        row = found[name]
        mean = partial(_mean, [each for each in calls if each["name"] == name], steps)

        assert row["saved_macs_pct"] == pytest.approx(100 - 100 * mean("macs_share"))
        assert row["saved_plain_macs_pct"] == pytest.approx(100 - 100 * mean("plain_macs_share"))
        assert row["saved_time_pct"] == pytest.approx(100 - 100 * mean("time_share"))
        assert row["speedup"] == pytest.approx(1 / mean("time_share"))
        assert row["achieved"] == pytest.approx(row["saved_time_pct"] / row["saved_macs_pct"])
        assert row["macs_g"] == pytest.approx(2 * steps * mean("macs_g"))
        assert row["cache_mb"] > 0
    assert found["one"]["full_calls"] == "4/7"
    assert found["two"]["full_calls"] == "2/7"


def _mean(calls: list[dict[str, Any]], steps: int, key: str) -> float:
    return sum(each["calls"] * each[key] for each in calls) / steps


def test_an_image_under_a_plan_takes_less(report: Report) -> None:
    cost = {row["name"]: row for row in rows(report, "Cost") if row["image_macs_g"] is not None}
    assert list(cost) == ["image", "fast image"]
    assert cost["fast image"]["image_macs_g"] < cost["image"]["image_macs_g"]
    assert cost["fast image"]["unet_macs_g"] == cost["image"]["unet_macs_g"], "a call without a past"


def test_every_round_of_a_plan_has_a_round_of_the_first_contestant(measured: Measurement) -> None:
    assert set(measured.plan_times) == {"plain", *PLANS, "fast image"}
    taken = [seconds for each in measured.plan_times.values() for seconds in each.by_pattern.values()]
    assert len(taken) == 1 + 10
    assert {len(seconds) for seconds in taken} == {2}


def test_contestants_of_one_random_shape_share_tensors_and_nothing_else() -> None:
    plain, one, other = build_all(
        [call(name="plain"), call(name="one", nodes=nodes(every(2))), bare("other", "sd21")], protocol()
    )
    mine, theirs = (
        {name: tensor.data_ptr() for name, tensor in each.unet.state_dict().items()} for each in (plain, one)
    )
    assert mine == theirs
    assert len(mine) > 300
    assert not {id(each) for each in plain.unet.modules()} & {id(each) for each in one.unet.modules()}
    assert not set(mine.values()) & {tensor.data_ptr() for tensor in other.unet.state_dict().values()}
    assert hooked(one) > 0
    assert hooked(plain) == 0


def test_a_plan_rests_only_while_a_generation_is_under_way() -> None:
    plain, one = build_all([call(name="plain"), call(name="one", nodes=nodes(every(2)))], protocol())
    torch.manual_seed(0)
    sample, text = torch.randn(1, 4, 8, 8), torch.randn(1, tiny.TOKENS, tiny.WIDTH)
    assert one.engine
    with torch.no_grad(), one.engine.plain():
        first, second = (each.unet(sample, 500, text).sample for each in (plain, one))
    assert torch.equal(first, second)


def hooked(contestant: Contestant) -> int:
    return sum(hasattr(each, "_diffusers_hook") for each in contestant.unet.modules())
