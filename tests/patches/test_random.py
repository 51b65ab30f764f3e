"""Any plan on any UNet: it runs, hands on what it says and only what this generation computed, and saves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from asdm_cli.errors import ModelError
from asdm_cli.patches.cache_plan import ENCODER, ResolvedPlan
from asdm_cli.patches.feature_cache import FeatureCache
from asdm_cli.profiling.macs import MacCounter
from asdm_cli.recipe.patches import read_plan
from asdm_cli.unet.addresses import Anatomy
from tests.patches.shapes import SHAPES, unet

FEW = settings(max_examples=25, deadline=None)
Plan = dict[str, Any]


@cache
def anatomy(shape: str) -> Anatomy:
    return Anatomy.of(SHAPES[shape])


def call(shape: str, number: int, factor: float = 1.0) -> Tensor:
    """The number-th call of a generation, of latents that are `factor` times those it should have."""
    draw = torch.Generator().manual_seed(number)
    extra = {"text_embeds": torch.ones(1, 8), "time_ids": torch.ones(1, 6)} if shape == "deep" else {}
    latents, text = torch.randn(1, 4, 4, 4, generator=draw) * factor, torch.linspace(-1, 1, 64).reshape(1, 4, 16)
    with torch.no_grad():
        return unet(shape)(latents, 900 - 100 * number, text, added_cond_kwargs=extra).sample


@contextmanager
def engine(shape: str, plan: Plan) -> Iterator[FeatureCache]:
    made = FeatureCache(unet(shape), read_plan(plan))
    try:
        yield made
    finally:
        made.remove()


def generate(on: FeatureCache, shape: str, calls: int, factor: float = 1.0) -> list[Tensor]:
    with on.generation(calls):
        return [call(shape, number, factor) for number in range(calls)]


def fits(shape: str, plan: Plan) -> bool:
    """Whether every rule owns something."""
    try:
        ResolvedPlan(read_plan(plan), anatomy(shape))
    except ModelError:
        return False
    return True


def names(shape: str) -> st.SearchStrategy[list[str]]:
    wild = ["*.self", "*.cross", "*.ff", "*.attn", "*.resnet", "*.sampler", "up.*.*", "down.*.0", "level.0"]
    known = [*anatomy(shape).addresses, *wild, "base", "small", ENCODER, "deepcache.0", "deepcache.1"]

    def is_there(name: str) -> bool:
        return fits(shape, plan_of([name], "output", 0, {"mode": "uniform", "interval": 2}))

    there = [name for name in known if is_there(name)]
    assert len(there) > 15
    return st.lists(st.sampled_from(there), min_size=1, max_size=3, unique=True)


def explicit(calls: int) -> st.SearchStrategy[Plan]:
    steps = st.sets(st.integers(0, calls - 1), min_size=1).map(sorted)
    return steps.map(lambda found: {"mode": "explicit", "steps": found})


def schedules(calls: int) -> st.SearchStrategy[Plan]:
    counted = st.builds(
        lambda mode, interval, first: {"mode": mode, "interval": interval, "first": first},
        st.sampled_from(["uniform", "early", "late", "center", "quadratic", "random"]),
        st.integers(1, 4),
        st.integers(0, 2),
    )
    adaptive = st.builds(
        lambda threshold, longest: {"mode": "threshold", "threshold": threshold, "longest": longest},
        st.sampled_from([1e-6, 0.1, 0.5, 2.0, 1e6]),
        st.integers(1, 4),
    )
    return counted | adaptive | explicit(calls)


def plan_of(nodes: list[str], cache: str, order: int, schedule: Plan, cache_text: bool = True) -> Plan:
    rule = {"nodes": nodes, "cache": cache, "order": order, "schedule": schedule}
    return {"rules": [rule], "cache_text": cache_text}


carries, orders = st.sampled_from(["output", "residual"]), st.integers(0, 2)


@st.composite
def plans(draw: Callable[..., Any], most: int = 3) -> tuple[str, int, Plan]:
    """A shape, how many calls, and a plan of up to so many rules that fits."""
    shape, calls = draw(st.sampled_from(sorted(SHAPES))), draw(st.integers(2, 7))
    rules = [
        plan_of(draw(names(shape)), draw(carries), draw(orders), draw(schedules(calls)))["rules"][0]
        for _ in range(draw(st.integers(1, most)))
    ]
    plan = {"rules": rules, "cache_text": draw(st.booleans())}
    assume(fits(shape, plan))
    return shape, calls, plan


@FEW
@given(plans())
def test_a_generation_reads_nothing_of_the_one_before(drawn: tuple[str, int, Plan]) -> None:
    """The one before is of nan: whatever of it is read shows."""
    shape, calls, plan = drawn
    with engine(shape, plan) as on:
        poison = generate(on, shape, calls, factor=float("nan"))
        outputs = generate(on, shape, calls)
        steps = on.stats().reused["unet"]
    with engine(shape, plan) as on:
        fresh = generate(on, shape, calls)
        assert on.stats().reused["unet"] == steps
    assert all(each.isnan().all() for each in poison)
    assert all(torch.equal(*pair) for pair in zip(outputs, fresh, strict=True))
    assert len(outputs) == len(steps) == calls
    assert steps[0] == frozenset()
    assert torch.equal(outputs[0], call(shape, 0))


@FEW
@given(plans(most=1))
def test_one_rule_is_the_plain_unet_with_forecasts_put_in_by_hand(drawn: tuple[str, int, Plan]) -> None:
    """By hand nothing is left out: whoever reads a value that the engine took for dead shows."""
    shape, calls, plan = drawn
    with engine(shape, plan) as on:
        outputs = generate(on, shape, calls)
        keys = [not resting for resting in on.stats().reused["unet"]]
        outlets = {outlet.module: outlet.tupled for group in on.resolved.outlets.values() for outlet in group}
    rule = read_plan(plan).rules[0]
    expected = rule.schedule.key_steps(calls)
    assert expected is None or keys == [number in expected for number in range(calls)]
    kept: dict[str, list[tuple[int, Tensor]]] = {}
    number = 0

    def put(name: str, tupled: bool) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:  # noqa: ARG001
            if keys[number]:
                kept.setdefault(name, []).insert(0, (number, output[0] if tupled else output))
                return output
            value = lagrange(kept[name][: (rule.order or 0) + 1], number)
            return (value,) if tupled else value

        return hook

    with ExitStack() as hooks:
        for name, tupled in outlets.items():
            hooks.callback(unet(shape).get_submodule(name).register_forward_hook(put(name, tupled)).remove)
        for number, output in enumerate(outputs):
            by_hand = call(shape, number)
            close = torch.equal if not rule.order else _close
            assert close(output, by_hand)
    assert kept.keys() == outlets.keys()


def lagrange(points: list[tuple[int, Tensor]], place: int) -> Tensor:
    """The polynomial through the points."""
    total = torch.zeros_like(points[0][1])
    for at, value in points:
        weight = 1.0
        for other, _ in points:
            weight *= (place - other) / (at - other) if other != at else 1.0
        total = total + weight * value
    return total


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@settings(FEW, max_examples=6)  # counting is slow
@given(st.data(), st.sampled_from(sorted(SHAPES)), st.integers(3, 4), carries, orders)
def test_more_nodes_and_fewer_key_steps_never_cost_more(
    data: st.DataObject, shape: str, calls: int, cache: str, order: int
) -> None:
    nodes, more = data.draw(names(shape)), data.draw(names(shape))
    schedule = data.draw(explicit(calls))
    dropped = data.draw(st.sampled_from(schedule["steps"]))
    fewer = {"mode": "explicit", "steps": [0, *(step for step in schedule["steps"] if step not in (0, dropped))]}
    some = plan_of(nodes, cache, order, schedule)
    assume(fits(shape, some))
    cost = macs(shape, calls, some)
    wider = macs(shape, calls, plan_of(sorted({*nodes, *more}), cache, order, schedule))
    rarer = macs(shape, calls, plan_of(nodes, cache, order, fewer))
    assert 0 < wider <= cost
    assert 0 < rarer <= cost
    full = len({0, *schedule["steps"]}) == calls
    assert (cost == macs(shape, calls, {"rules": []})) is full


def macs(shape: str, calls: int, plan: Plan) -> int:
    with engine(shape, plan) as on, MacCounter() as counter:
        generate(on, shape, calls)
    return counter.tally().total


def test_a_block_of_a_depth_and_what_it_lies_in_may_both_be_named() -> None:
    every = {"mode": "uniform", "interval": 1}
    rules = [{"nodes": ["down.0.0.attn.0"], "schedule": every}]
    rules += [{"nodes": ["down.0"], "cache": "residual", "schedule": every}]
    with engine("no mid", {"rules": rules}) as on:
        drawn = generate(on, "no mid", 3)
    assert all(torch.equal(each, call("no mid", number)) for number, each in enumerate(drawn))
