"""What UNet calls cost: golden counts at the real size; the records of set-ups side by side, and of plans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from asdm_cli.compare import costs, run
from asdm_cli.compare.costs import FULL, Pattern, Rounds, on_paper, pattern_macs, patterns
from asdm_cli.compare.run import Measures, Place, costs_of
from asdm_cli.compare.setup import Session, Setup
from asdm_cli.patches.cache_plan import ResolvedPlan, resolve
from asdm_cli.patches.guidance import HALVES, PROMPT
from asdm_cli.profiling.memory import FEW_STEPS
from asdm_cli.recipe.patches import GuidanceScheduleSpec, read_plan, read_switching
from asdm_cli.records import Record
from asdm_cli.unet.blocks import preset
from asdm_cli.unet.flops import Macs, macs, parameters
from tests import tiny
from tests.carrying import every
from tests.compare.setups import CPU, bare, value, values, whole
from tests.turns import switching

SD15, TINY = preset("sd15"), tiny.shape("sd15")
SHALLOW = tiny.shape("sd15", **tiny.SHALLOW["sd15"])
TOGETHER = ["deepcache.0", "deepcache.1", "deepcache.2", "deepcache.3", "*.self", "*.cross", "*.ff", "mid"]
"""Node sets of SD 1.x that have no node in common, so that one UNet can be counted for all of them."""
ALONE = {"encoder": "output", "*.attn": "residual"}
"""Node sets that share nodes with those, and what they carry."""


def resolved(plan: dict[str, Any], config: dict[str, Any] = TINY) -> ResolvedPlan:
    return resolve(read_plan(plan), config)


def reused_in_turn(sets: Sequence[str], cache: str = "output") -> dict[str, Any]:
    """A rule each; all compute at call 0, then one after the other is reused for a call."""
    calls = range(1, len(sets) + 1)
    keys = [[0, *(call for call in calls if call != mine)] for mine in calls]
    rules = [
        {"nodes": each, "cache": cache, "schedule": {"mode": "explicit", "steps": steps}}
        for each, steps in zip(sets, keys, strict=True)
    ]
    return {"rules": rules, "cache_text": False}


@cache
def _counted(sets: tuple[str, ...], cache: str) -> dict[frozenset[int], Macs]:
    return pattern_macs(SD15, resolved(reused_in_turn(sets, cache), SD15), len(sets) + 1)


def sd15(name: str) -> tuple[Macs, Macs]:
    """A full call of SD 1.5, and one at which this node set is reused."""
    sets, cache = ([name], ALONE[name]) if name in ALONE else (TOGETHER, "output")
    by_pattern = _counted(tuple(sets), cache)
    return by_pattern[FULL], by_pattern[frozenset({sets.index(name)})]


@pytest.mark.parametrize(("branch", "macs_g"), [(0, 20.7), (1, 57.3), (2, 98.0), (3, 132.6)])
def test_golden_counts_of_sd_1x_under_deepcache(branch: int, macs_g: float) -> None:
    full, inherited = sd15(f"deepcache.{branch}")
    assert full.plain / 1e9 == pytest.approx(338.61, abs=0.01)
    assert inherited.plain / 1e9 == pytest.approx(macs_g, abs=0.4)


@pytest.mark.parametrize(
    ("name", "share", "plain_share", "within"),
    [
        ("encoder", 32.5, 31.2, 0.2),
        ("*.self", 21.6, 7.6, 0.2),
        ("*.cross", 4.0, 4.2, 0.2),
        ("*.ff", 19.1, 22.7, 0.2),
        ("*.attn", 47.9, 38.2, 0.2),
        ("mid", 1.5, 1.8, 0.2),
    ],
)
def test_golden_counts_of_sd_1x_that_node_sets_save(name: str, share: float, plain_share: float, within: float) -> None:
    full, inherited = sd15(name)
    saved = 100 - 100 * inherited.total / full.total, 100 - 100 * inherited.plain / full.plain
    assert saved == pytest.approx((share, plain_share), abs=within)


def test_patterns_count_every_call_once() -> None:
    two = resolved({"rules": [*every(2)["rules"], *every(3, "*.cross")["rules"]]})
    counts = {FULL: 2, frozenset({0}): 1, frozenset({1}): 2, frozenset({0, 1}): 2}
    assert patterns(two, 7) == {Pattern(frozenset(each)): count for each, count in counts.items()}


def test_rows_that_come_late_are_computed_in_full_once() -> None:
    groups = [(PROMPT,)] * 2 + [HALVES] * 3 + [(PROMPT,)] * 2
    of_halves = {(FULL, HALVES): 2, (frozenset({0}), HALVES): 1}
    of_one = {(FULL, (PROMPT,)): 2, (frozenset({0}), (PROMPT,)): 2}
    assert patterns(resolved(every(2)), 7, groups) == {Pattern(*key): n for key, n in (of_halves | of_one).items()}


def test_a_full_call_costs_what_a_plain_one_does() -> None:
    """But for the keys and values of the text, where they are computed once a generation."""
    plain, shape = macs(TINY, tokens=tiny.TOKENS), {"tokens": tiny.TOKENS}
    again = pattern_macs(TINY, resolved(every(2)), 4, **shape)
    once = pattern_macs(TINY, resolved({**every(2), "cache_text": True}), 4, **shape)
    assert again[FULL] == plain
    # two projections of the text to the width of each of the 16 transformers
    widths = [8] * 5 + [16] * 5 + [32] * 6
    assert plain.total - once[FULL].total == sum(2 * tiny.TOKENS * tiny.WIDTH * width for width in widths)


def test_of_unets_that_take_turns_those_count_that_do(tiny_pipeline: Path, tiny_small: Path, tmp_path: Path) -> None:
    turns = whole(switching(tiny_pipeline, tiny_small, tmp_path / "turns"))
    large, small = "large", "small v1.5"
    counts = {name: sum(parameters(config).values()) / 1e6 for name, config in turns.configs.items()}
    for first, then, serving in ((large, "reuse", {large}), (large, small, {large, small}), (small, small, {small})):
        rules = read_switching({"by": "step", "parts": [{"unet": first, "until": 2}, {"unet": then}]}, "test")
        records = on_paper(turns.scheduled("it", rules), 32)
        assert value(records, "it", "params_m") == pytest.approx(sum(counts[name] for name in serving))
        assert {each.of for each in records if each.of} == {f"unet/{name}" for name in serving}


@pytest.mark.parametrize("interval", [1, 2])
def test_counts_without_a_device_are_those_of_an_image(shallow_pipeline: Path, interval: int) -> None:
    plan = {**every(interval, "up.1"), "cache_text": False}
    setup, session = whole(shallow_pipeline, "it", plan, steps=5), Session(CPU, torch.float32)
    image, _ = run._count(session, setup, Place(CPU, torch.float32, 32))
    by_pattern, counts = (
        pattern_macs(SHALLOW, resolved(plan, SHALLOW), 5, tokens=tiny.TOKENS),
        patterns(resolved(plan, SHALLOW), 5),
    )
    assert sum(counts.values()) == image.calls == 5
    counted = sum(count * by_pattern[each.reused].total for each, count in counts.items())
    assert image.components["unet"].total == 2 * counted
    plain = 2 * 5 * macs(SHALLOW, tokens=tiny.TOKENS).total
    assert (image.components["unet"].total == plain) == (interval == 1)
    assert image.components["unet"].total <= plain


# Set-ups side by side -------------------------------------------------------------------------------------------------

PLANS: dict[str, dict[str, Any]] = {
    "one": every(2, "up.1"),
    "two": {"rules": [*every(2, "up.1")["rules"], *every(3, "*.cross")["rules"]]},
    "adaptive": {"rules": [{"nodes": "mid", "schedule": {"mode": "threshold", "threshold": 0.1}}]},
}
INTERVALS = {"late": {"start": 700}, "middle": {"start": 700, "until": 300}}
STEPS = {"one": 7, "two": 7, "fast image": 4, "late": 7, "middle": 7}
"""Of those of which it is known beforehand which call computes what."""
TOLD = " and ".join(HALVES)


def inside(folder: Path, name: str) -> Setup:
    """A plan beside guidance in an interval."""
    specs = [GuidanceScheduleSpec.model_validate({"kind": "guidance-schedule", **INTERVALS[name]})]
    return whole(folder, name, PLANS["one"], steps=7, draws=False).with_patches(specs)


@pytest.fixture(scope="module")
def records(shallow_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """A pipeline that draws in several ways, a UNet of another shape, and one under plans."""
    setups = [whole(shallow_pipeline, steps=7), whole(shallow_pipeline, "short", steps=2), bare("bare", "sdxl")]
    setups += [whole(shallow_pipeline, name, plan, steps=7, draws=False) for name, plan in PLANS.items()]
    setups.append(whole(shallow_pipeline, "fast image", every(2, "up.1")))
    setups += [inside(shallow_pipeline, name) for name in INTERVALS]
    with pytest.MonkeyPatch.context() as patch:
        # test_memory has the real one; here processes would only cost time
        patch.setattr(costs, "in_fresh_process", lambda *_: (1_000_000, 3_000_000))
        measures = Measures(rounds=Rounds(2, 1, (2,)), unet=True)
        place, session = Place(CPU, torch.float32, None), Session(CPU, torch.float32)
        found, _ = costs_of(session, setups, measures, place, tmp_path_factory.mktemp("run"))
        return found


def of(records: Sequence[Record], metric: str, part: str = "") -> dict[str, float]:
    return {each.setup: each.value for each in records if each.metric == metric and each.of == part}


EVERYBODY = ["whole", "short", "bare", "one", "two", "adaptive", "fast image", *INTERVALS]
DRAWING = ["whole", "short", "fast image"]


def test_everybody_is_counted_and_timed_whatever_the_batches(records: list[Record]) -> None:
    for metric in ("params_m", "macs_g", "plain_macs_g", "weights_mb", "peak_memory_mb"):
        assert list(of(records, metric)) == EVERYBODY, metric
    assert set(of(records, "peak_memory_mb").values()) == {3.0}
    for part in ("", "batch/2"):
        assert list(of(records, "unet_ms", part)) == EVERYBODY
        assert list(of(records, "image_ms", part)) == list(of(records, "denoising_ms", part)) == DRAWING
        assert list(of(records, "image_speedup", part)) == DRAWING[1:]
        assert list(of(records, "unet_speedup", part)) == EVERYBODY[1:]
    timed = [each for each in records if each.metric in ("unet_ms", "image_ms") and each.interval]
    assert {each.n for each in timed} == {2}
    assert all(0 < each.low <= each.value <= each.high for each in timed)  # type: ignore[operator]
    ratios = [each for each in records if each.metric.endswith("_speedup") and each.interval]
    assert {each.against for each in ratios} == {"whole"}


def test_blocks_sum_to_the_call(records: list[Record]) -> None:
    for name, blocks in {"whole": 6, "bare": 8}.items():
        for metric in ("params_m", "macs_g"):
            parts = values(records, name, metric, "block")
            assert len(parts) == blocks
            assert sum(parts.values()) == pytest.approx(value(records, name, metric))
        assert set(values(records, name, "unet_ms", "block")) == set(values(records, name, "macs_g", "block"))


def test_every_pattern_of_every_plan_is_timed_beside_the_first(records: list[Record]) -> None:
    of_two = ["nothing", "rules[0]", "rules[0], rules[1]", "rules[1]"]
    wanted = {"two": of_two} | {name: ["nothing", "rules[0]"] for name in ("one", "adaptive", "fast image")}
    for name, reused in wanted.items():
        shares = values(records, name, "macs_share", "inherited")
        assert sorted(shares) == sorted(values(records, name, "unet_ms", "inherited")) == reused
        assert all(0 < share <= 1 and (share == 1) == (each == "nothing") for each, share in shares.items())
    counted = {each.setup for each in records if each.metric == "calls" and each.of.startswith("inherited/")}
    assert counted == set(STEPS), "how many calls an adaptive plan computes is not known"
    for name, steps in STEPS.items():
        assert sum(values(records, name, "calls", "inherited").values()) == steps
    for name in INTERVALS:
        shares = values(records, name, "macs_share", "inherited")
        words = [f"{reused}; {rows} rows" for reused in ("nothing", "rules[0]") for rows in (PROMPT, TOLD)]
        assert sorted(shares) == sorted(words)
        for reused in ("nothing", "rules[0]"):
            assert shares[f"{reused}; {PROMPT} rows"] == pytest.approx(shares[f"{reused}; {TOLD} rows"] / 2)
    timed = [each for each in records if each.metric == "unet_ms" and each.of.startswith("inherited/")]
    assert len(timed) == 2 + 4 + 2 + 2 + 4 * len(INTERVALS)
    assert {each.n for each in timed} == {2}


@pytest.mark.parametrize("name", INTERVALS)
def test_a_plan_beside_guidance_in_an_interval_costs_what_its_image_does(
    name: str, records: list[Record], shallow_pipeline: Path
) -> None:
    session, place = Session(CPU, torch.float32), Place(CPU, torch.float32, None)
    setup, plain = inside(shallow_pipeline, name), whole(shallow_pipeline, steps=7)
    images = [run._count(session, each, place)[0].components["unet"].total for each in (setup, plain)]
    assert value(records, name, "macs_share", "generation/UNet calls") == pytest.approx(images[0] / images[1])
    counts = values(records, name, "calls", "inherited")
    assert sum(counts[key] for key in counts if TOLD in key) == sum(len(each) > 1 for each in setup.computed)
    assert value(records, name, "cache_mb", "generation/UNet calls") > 0


def test_plans_are_timed_beside_a_first_that_leaves_guidance_out(shallow_pipeline: Path) -> None:
    first = replace(inside(shallow_pipeline, "late"), patches=inside(shallow_pipeline, "late").patches[1:])
    assert first.cache is None
    other = whole(shallow_pipeline, "one", PLANS["one"], draws=False)
    found = costs.plan_calls(Session(CPU, torch.float32), [first, other], Rounds(1, 0, size=32))
    assert set(values(found, "one", "time_share", "inherited")) == {"nothing", "rules[0]"}


def test_calls_of_other_rows_are_timed_apart_and_images_of_other_lengths_are_compared_whole(
    shallow_pipeline: Path,
) -> None:
    """A call without guidance has half of the rows, an image of half of the steps half of the calls."""
    first, rounds = whole(shallow_pipeline, steps=6, draws=False), Rounds(1, 0, size=32)
    alone = replace(first, name="alone", guidance=1.0)
    session, timed = Session(CPU, torch.float32), set[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "_call", lambda _session, setup, *_: timed.add(setup.name) or (lambda: None))
        costs.unet_calls(session, [first, replace(first, name="twin"), alone], rounds)
    assert timed == {"whole", "alone"}
    plan = replace(whole(shallow_pipeline, "one", PLANS["one"], steps=6, draws=False), name="as long")
    half = replace(plan, name="half", steps=3)
    setups = [first, plan, half, replace(plan, name="no guidance", guidance=1.0)]
    share = partial(value, metric="macs_share", of="generation/UNet calls")
    found = costs.plan_calls(session, setups, rounds)
    among_its_like = costs.plan_calls(session, [replace(first, steps=3), half], rounds)
    assert share(found, "half") == pytest.approx(share(among_its_like, "half") / 2)
    assert share(found, "no guidance") == pytest.approx(share(found, "as long") / 2)


def test_the_memory_of_what_makes_calls_unlike_is_that_of_all_steps(
    shallow_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(costs, "image_call", lambda _, setup, __: lambda: drawn.append(setup.steps))
    plain = whole(shallow_pipeline, "it", steps=7)
    guided = replace(plain, patches=inside(shallow_pipeline, "late").patches[1:])
    for setup in (plain, whole(shallow_pipeline, "it", PLANS["one"], steps=7), guided):
        costs._measured(setup, CPU, torch.float32, 32)
    assert drawn == [FEW_STEPS, 7, 7]


def test_where_not_all_have_room_one_unet_is_present_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    session, here, most = Session(CPU, torch.float32), set[int](), list[int]()

    @contextmanager
    def present(network: torch.nn.Module) -> Iterator[torch.nn.Module]:
        here.add(id(network))
        most.append(len(here))
        yield network
        here.remove(id(network))

    monkeypatch.setattr(session, "present", present)
    costs.unet_calls(session, [bare("one"), bare("two", "sd21")], Rounds(1, 0, (1, 2), 32))
    assert most == [1] * 4
    assert not here


def test_guidance_that_comes_at_no_call_is_counted_as_it_is(shallow_pipeline: Path) -> None:
    nowhere = GuidanceScheduleSpec.model_validate({"kind": "guidance-schedule", "by": "step", "start": 100})
    first = whole(shallow_pipeline, steps=4, draws=False)
    setup = whole(shallow_pipeline, "plan", PLANS["one"], steps=4, draws=False).with_patches([nowhere])
    session, place = Session(CPU, torch.float32), Place(CPU, torch.float32, None)
    images = [run._count(session, each, place)[0].components["unet"].total for each in (setup, first)]
    found = costs.plan_calls(session, [first, setup], Rounds(1, 0))
    assert value(found, "plan", "macs_share", "generation/UNet calls") == pytest.approx(images[0] / images[1])


def test_without_guidance_nothing_is_left_out(shallow_pipeline: Path) -> None:
    unguided = replace(inside(shallow_pipeline, "middle"), guidance=1.0)
    assert set(unguided.computed) == {()}
    assert set(whole(shallow_pipeline).computed) == {HALVES}


def test_a_generation_is_the_sum_of_its_calls(records: list[Record]) -> None:
    for name in STEPS:
        counts = values(records, name, "calls", "inherited")
        whole_image = partial(value, records, name, of="generation/UNet calls")
        for metric in ("macs_share", "time_share"):
            each = values(records, name, metric, "inherited")
            assert whole_image(metric) == pytest.approx(sum(counts[key] * each[key] for key in counts) / 7)
        assert whole_image("denoising_speedup") == pytest.approx(1 / whole_image("time_share"))
        bound = (1 - whole_image("time_share")) / (1 - whole_image("macs_share"))
        assert whole_image("bound_share") == pytest.approx(bound)
        assert whole_image("cache_mb") > 0
