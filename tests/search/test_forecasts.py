"""A calibration records what a plain run computes, and the plans that it works out draw nearer than lines do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asdm_cli.compare.run import Place
from asdm_cli.compare.setup import Session, Setup, cache_spec, drawing
from asdm_cli.errors import ModelError
from asdm_cli.models.directory import find
from asdm_cli.models.schedulers import SAMPLERS
from asdm_cli.patches.guidance import HALVES, PROMPT
from asdm_cli.recipe.patches import CachePlan, CacheRule, GuidanceScheduleSpec, read_plan
from asdm_cli.sampling.generate import SamplingSettings, processes
from asdm_cli.sampling.prompts import PromptList, read_prompts
from asdm_cli.search.forecasts import (
    FINALISTS,
    OF_FEATURES,
    OF_OUTPUT,
    Drawings,
    Recorder,
    Recording,
    calibrate,
    candidates,
    copied,
    left_of_gains,
    record,
    recorded,
    sampling,
    without_plan,
)
from tests.patches.pipes import draw, shallow

STEPS, GUIDANCE = 8, 3.0
PLACE = Place(torch.device("cpu"), torch.float32, 32, batch=4)
LINE = {"rules": [{"nodes": "out", "schedule": {"mode": "calibrated", "calls": 5}, "order": 1}]}
FITTED = {"rules": [{"nodes": "out", "schedule": {"mode": "calibrated", "calls": 4}, "extrapolate": "fitted"}]}


@pytest.fixture
def setup(shallow_pipeline: Path) -> Callable[..., Setup]:
    def make(plan: Any = FITTED, *others: Any, sampler: str = "ddim") -> Setup:
        plain = drawing("plan", find(str(shallow_pipeline)), sampler=sampler, steps=STEPS, guidance=GUIDANCE)
        return Setup(**{**vars(plain), "patches": (cache_spec(read_plan(plan)), *others)})

    return make


@pytest.mark.parametrize(("kind", "sampler"), [*(("text", each) for each in SAMPLERS), ("xl", "euler")])
def test_the_drawing_goes_on_as_if_nobody_listened(kind: str, sampler: str) -> None:
    pipe = shallow(kind, sampler)
    plain = draw(pipe, STEPS, guidance_scale=GUIDANCE)
    recorder = Recorder(pipe, STEPS, GUIDANCE)
    with recorder.listening():
        assert torch.equal(draw(pipe, STEPS, guidance_scale=GUIDANCE), plain)
    assert "step" not in vars(pipe.scheduler)
    assert torch.equal(draw(pipe, STEPS, guidance_scale=GUIDANCE), plain)
    calls = len(pipe.scheduler.timesteps)
    assert len(recorder.mixes) == len(recorder.taken) == calls
    for (guided, *_), rows in zip(recorder.taken, recorder.rows, strict=True):
        mixed = (1 - GUIDANCE) * rows[0] + GUIDANCE * rows[1]
        assert torch.allclose(guided.flatten().double(), mixed, atol=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++2m", "unipc", "pndm"])
def test_gains_are_what_a_change_of_an_answer_becomes(sampler: str) -> None:
    """Held against the scheduler itself, stepped by hand with another change."""
    pipe = shallow(sampler=sampler)
    recorder = Recorder(pipe, STEPS, GUIDANCE)
    with recorder.listening():
        draw(pipe, STEPS, guidance_scale=GUIDANCE)
    gains = recorder.gains

    def end(changed: int, by: float) -> torch.Tensor:
        pipe.scheduler.set_timesteps(STEPS)
        sample = recorder.taken[0][2].double()
        for call, (answer, timestep, _, named) in enumerate(recorder.taken):
            held = answer.double() + (by if call == changed else 0)
            sample = pipe.scheduler.step(held, timestep, sample, **copied(named))[0]
        return sample

    for call in (0, 3, len(gains) - 1):
        assert float((end(call, 0.5) - end(call, 0)).mean()) / 0.5 == pytest.approx(gains[call], abs=2e-3)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++2m", "unipc", "pndm"])
@pytest.mark.parametrize("blind", [True, False])
def test_of_gains_is_left_what_later_calls_leave_of_an_error(sampler: str, blind: bool) -> None:
    """All, where the UNet does not see the latents; and nothing is left of the errors in the next drawing."""
    pipe = shallow(sampler=sampler)
    pipe.unet.conv_in.weight.data.mul_(0 if blind else 20)
    recorder = Recorder(pipe, STEPS, GUIDANCE)

    def drawn() -> torch.Tensor:
        return draw(pipe, STEPS, guidance_scale=GUIDANCE)

    with recorder.listening():
        plain = drawn()
    shares = recorder.shares(drawn, plain)
    last = len(recorder.mixes) - 1
    assert shares[last] == 1.0
    assert {1, last - 1} < {*shares}
    assert all(share == pytest.approx(1, rel=1e-3) for share in shares.values()) == blind
    assert torch.equal(drawn(), plain)


def test_shares_are_medians_and_between_them_lie_along_their_logarithms() -> None:
    shares = [{1: 0.25, 3: 0.4, 5: 1.0}, {1: 0.25, 5: 1.0}, {1: 90.0, 3: 0.4, 5: 1.0}]
    assert left_of_gains(shares, 6) == pytest.approx([0.25, 0.25, np.sqrt(0.25 * 0.4), 0.4, np.sqrt(0.4), 1.0])


def test_moments_are_means_of_inner_products(setup: Callable[..., Setup]) -> None:
    session, one = Session(PLACE.device, PLACE.dtype), setup()
    settings = sampling(one, PLACE)
    both = taken(session, one, ["a fox", "an owl"], settings)
    first = taken(session, one, ["a fox"], settings)
    assert np.array(both.outputs).shape == (3 * STEPS,) * 2
    assert not np.allclose(both.outputs, first.outputs)
    assert np.linalg.matrix_rank(np.array(first.outputs), tol=1e-6) > 3
    known = first.moments(0, whole=True)
    assert known.groups == HALVES
    assert first.timesteps == sorted(first.timesteps, reverse=True)


def taken(session: Session, one: Setup, prompts: Sequence[str], settings: SamplingSettings) -> Recording:
    drawings = Drawings(session, one, prompts, settings)
    return record(drawings, drawings.gains())


def listed(folder: Path, *prompts: str) -> Path:
    file = folder / f"{len(prompts)}.txt"
    file.write_text("\n".join(prompts))
    return file


def error(session: Session, one: Setup, plan: CachePlan) -> float:
    """Of latents, to the plain ones."""
    with session.stage(without_plan(one)) as (pipe, _):
        wanted = draw(pipe, STEPS, guidance_scale=GUIDANCE)
    with session.stage(one.with_cache("plan", plan)) as (pipe, stats):
        drawn = draw(pipe, STEPS, guidance_scale=GUIDANCE)
        assert stats().full_calls == 4
    return float((drawn - wanted).square().mean())


@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m"])
def test_a_calibrated_plan_draws_nearer_than_a_line_and_is_kept(
    sampler: str, setup: Callable[..., Setup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, one = Session(PLACE.device, PLACE.dtype), setup(sampler=sampler)
    prompts = read_prompts(str(listed(tmp_path, "a fox", "an owl")))
    worked_out = calibrate(session, one, prompts, PLACE, tmp_path, processes())
    found = worked_out.setup
    assert found.cache is not None
    assert not found.cache.uncalibrated
    line = {"rules": [{"nodes": "out", "schedule": {"mode": "uniform", "interval": 2}, "order": 1}]}
    assert error(session, one, found.cache) < error(session, one, read_plan(line))

    def again(*_: Any) -> None:
        raise AssertionError("kept by the first run")

    monkeypatch.setattr("asdm_cli.search.forecasts.record", again)
    assert calibrate(session, one, prompts, PLACE, tmp_path, processes()) == worked_out
    calibrate(session, setup(LINE, sampler=sampler), prompts, PLACE, tmp_path, processes())  # recorded for all plans
    others = read_prompts(str(listed(tmp_path, "a fox", "an owl", "a cat")))
    with pytest.raises(AssertionError, match="kept by the first run"):
        calibrate(session, one, others, PLACE, tmp_path, processes())


@pytest.mark.parametrize("best", ["with half of what earlier calls missed", "a straight line"])
def test_what_draws_best_on_prompts_that_it_was_not_fitted_to_is_fitted_to_all(
    best: str, setup: Callable[..., Setup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, one = Session(PLACE.device, PLACE.dtype), setup()
    prompts = read_prompts(str(listed(tmp_path, "a fox", "an owl", "a cat", "a dog", "a hen")))
    asked: list[tuple[list[list[CacheRule]], PromptList]] = []

    def judged(*given: Any) -> list[float]:
        setups, listed = given[3], given[4]
        asked.append(([each.cache.rules for each in setups], listed))
        return [float(each.name.endswith(best)) for each in setups]

    monkeypatch.setattr("asdm_cli.search.forecasts.fidelity", judged)
    found = calibrate(session, one, prompts, PLACE, tmp_path, processes())
    first, last = (recorded(session, one, half, PLACE, tmp_path, processes()) for half in prompts.halves())
    assert [listed.prompts for _, listed in asked] == [("a cat", "a dog", "a hen"), ("a fox", "an owl")]
    every = candidates(one, first + last, first + last)
    for (plans, _), half in zip(asked, (first, last), strict=True):
        of_half = [plan.rules for plan in candidates(one, first + last, half).values()]
        assert plans
        assert all(each in of_half for each in plans)
    assert len(asked[1][0]) == FINALISTS
    assert found.setup.cache is not None
    assert next(name for name, plan in every.items() if plan.rules == found.setup.cache.rules).endswith(best)
    assert found.fidelity("psnr", session, one, PLACE, tmp_path, processes()) == 1
    assert [listed.prompts for _, listed in asked[2:]] == [("a cat", "a dog", "a hen"), ("a fox", "an owl")]


def test_whole_outputs_are_fitted_in_several_ways_and_features_in_fewer(setup: Callable[..., Setup]) -> None:
    session = Session(PLACE.device, PLACE.dtype)
    block = {**FITTED["rules"][0], "nodes": "up.0"}
    for plan, ways in ((FITTED, len(OF_OUTPUT)), ({"rules": [block]}, len(OF_FEATURES))):
        one = setup(plan)
        recording = taken(session, one, ["a fox"], sampling(one, PLACE))
        found = candidates(one, recording, recording)
        assert len(found) % ways == 0
        assert len(found) > ways, "and key steps in several"
        assert len({str(each) for each in found.values()}) == len(found)
        for name, each in found.items():
            (rule,) = each.rules
            assert len(rule.schedule.key_steps(STEPS) or ()) == 4
            assert (rule.fit is None) == ("a straight line" in name)
            if rule.fit is not None:
                assert rule.fit.sampler == "DDIMScheduler"
                no_input = all(weights[0] == 0 for weights in rule.fit.weights if weights)
                assert no_input == (ways == len(OF_FEATURES)), "no input beside features"


def test_lines_may_have_calculated_key_steps_too(setup: Callable[..., Setup]) -> None:
    plan = {"rules": [{"nodes": "out", "schedule": {"mode": "calibrated", "calls": 4}, "order": 1}]}
    session, one = Session(PLACE.device, PLACE.dtype), setup(plan)
    recording = taken(session, one, ["a fox"], sampling(one, PLACE))
    found = candidates(one, recording, recording)
    assert set(found) <= {"least left", "evenly"}
    for each in found.values():
        (rule,) = each.rules
        assert rule.fit is None
        assert len(rule.schedule.key_steps(STEPS) or ()) == 4
        assert rule.order == 1


def test_calls_without_guidance_are_forecast_from_the_half_that_they_have(setup: Callable[..., Setup]) -> None:
    interval = GuidanceScheduleSpec(by="step", start=2, until=6)
    session, one = Session(PLACE.device, PLACE.dtype), setup(FITTED, interval)
    recording = taken(session, one, ["a fox"], sampling(one, PLACE))
    assert [len(mix) for mix in recording.mixes] == [1, 1, 2, 2, 2, 2, 1, 1]
    plan = next(iter(candidates(one, recording, recording).values()))
    assert 2 in (plan.rules[0].schedule.key_steps(STEPS) or ()), "nothing is known of the other half before"
    with session.stage(one.with_cache("plan", plan)) as (pipe, stats):
        assert torch.isfinite(draw(pipe, STEPS, guidance_scale=GUIDANCE)).all()
        assert stats().full_calls == 4
    assert PROMPT in dict(recording.moments(0, whole=True).mixes[0])


def test_too_few_key_steps_are_told(setup: Callable[..., Setup]) -> None:
    rule = {**FITTED["rules"][0], "schedule": {"mode": "calibrated", "calls": 1}}
    session, one = (
        Session(PLACE.device, PLACE.dtype),
        setup({"rules": [rule]}, GuidanceScheduleSpec(by="step", start=2)),
    )
    recording = taken(session, one, ["a fox"], sampling(one, PLACE))
    with pytest.raises(ModelError, match="1 key steps leave some call nothing to be forecast from; give 2"):
        next(iter(candidates(one, recording, recording).values()))
