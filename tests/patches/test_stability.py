"""Key steps and forecasts from the way of the latents: against the formulas worked by hand, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler
from torch import Tensor

from asdm_cli import inherit
from asdm_cli.errors import ModelError
from asdm_cli.patches.base import Trajectory, applied, patch_of
from asdm_cli.patches.feature_cache import path
from asdm_cli.patches.feature_cache.path import LatentPath
from asdm_cli.patches.noise import PREDICTIONS
from asdm_cli.recipe.patches import FeatureCacheSpec, GuidanceScheduleSpec, read_plan
from tests.patches import pipes
from tests.patches.conftest import Get
from tests.patches.pipes import draw

STEPS = 14
WITHIN = range(4, 13)
GUIDANCE = 3.0


def plan(threshold: float = 0.0, **changed: Any) -> dict[str, Any]:
    schedule = {"mode": "stability", "within": f"{WITHIN[0]}-{WITHIN[-1]}", "threshold": threshold}
    rule = {"nodes": "out", "schedule": schedule, "extrapolate": "multistep", "space": "eps"}
    return {"rules": [{**rule, **changed}]}


class Seen:
    """In float64 what a pipeline's UNet was given and answered, and at which share of signal."""

    def __init__(self, pipe: Any):
        self.latents: list[Any] = []
        self.outputs: list[Any] = []
        pipe.scheduler.set_timesteps(STEPS)
        signal = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps.long()].double().numpy()
        self.alpha, self.sigma = signal**0.5, (1 - signal) ** 0.5
        self.level = self.sigma / self.alpha

        def note(_: Any, arguments: tuple[Any, ...], answer: Any) -> None:
            self.latents.append(arguments[0].double().numpy().copy())
            self.outputs.append(answer[0].double().numpy().copy())

        pipe.unet.register_forward_hook(note)

    def guided(self, call: int) -> Any:
        """The noise that the solver takes the latents to have."""
        without, prompt = np.split(self.outputs[call], 2)
        return without + GUIDANCE * (prompt - without)

    def expected(self, call: int, noises: list[Any]) -> Any:
        """x from the last call's latents and the noise at the last three, newest first."""
        step = 5 / 6 * noises[0] + 5 / 6 * noises[1] - 2 / 3 * noises[2]
        before = self.latents[call - 1][:1] / self.alpha[call - 1]
        return self.alpha[call] * (before + (self.level[call] - self.level[call - 1]) * step)


@pytest.mark.parametrize(("threshold", "wanted"), [(0.0, {True}), (-0.7, {True, False})])
def test_calls_are_left_out_and_filled_as_by_hand(threshold: float, wanted: set[bool]) -> None:
    """DDIM follows the guided noise itself, so all is said by what the UNet is given and answers, computed or not."""
    pipe = pipes.pipe(sampler="ddim")
    seen = Seen(pipe)
    with inherit(pipe, plan(threshold=threshold)) as handle:
        draw(pipe, STEPS, guidance_scale=GUIDANCE)
        (reused,) = handle.stats().reused.values()
    last, kinds = 0, set()
    for call in range(STEPS):
        rests = False
        if call in WITHIN and call - last < 5:
            noises = [seen.guided(call - back) for back in (1, 2, 3)]
            expected = seen.expected(call, noises)
            beyond, bend = seen.latents[call][:1] - expected, noises[0] - 2 * noises[1] + noises[2]
            rests = float((beyond * bend).mean()) <= threshold * np.sqrt((beyond**2).mean() * (bend**2).mean())
            kinds.add(rests)
        assert bool(reused[call]) == rests
        if not rests:
            last = call
            continue
        clean = (expected - seen.sigma[call] * seen.guided(last)) / seen.alpha[call]
        taken = (seen.latents[call][:1] - seen.sigma[call] * seen.guided(call)) / seen.alpha[call]
        assert np.allclose(taken, clean, atol=1e-3)
    assert kinds == wanted


@pytest.mark.parametrize("space", ["model", "x0", "eps", "v"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_picture_is_what_the_last_value_makes_of_the_expected_latents(
    prediction: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `space: model` the last output itself; with x0 the last picture, whatever was expected."""
    pipe = pipes.pipe(sampler="ddim")
    pipe.scheduler.register_to_config(prediction_type=prediction)
    monkeypatch.setattr(LatentPath, "unexpected", lambda _: torch.full((1, 4, 8, 8), 0.25))
    seen = Seen(pipe)
    with inherit(pipe, plan(space=space, schedule={"mode": "explicit", "steps": [*range(9), "10-"]})):
        draw(pipe, STEPS, guidance_scale=1.0)

    def clean(call: int, latent: Any, value: Any, what: str) -> Any:
        alpha, sigma = seen.alpha[call], seen.sigma[call]
        ways = {"epsilon": (latent - sigma * value) / alpha, "v_prediction": alpha * latent - sigma * value}
        return ways.get(what, value)

    before, latent = clean(8, seen.latents[8], seen.outputs[8], prediction), seen.latents[9] - 0.25
    noise = (seen.latents[8] - seen.alpha[8] * before) / seen.sigma[8]
    velocity = seen.alpha[8] * noise - seen.sigma[8] * before
    values = {"x0": before, "eps": noise, "v": velocity, "model": seen.outputs[8]}
    words = {"x0": "sample", "eps": "epsilon", "v": "v_prediction", "model": prediction}
    wanted = clean(9, latent, values[space], words[space])
    assert np.allclose(clean(9, seen.latents[9], seen.outputs[9], prediction), wanted, atol=1e-4)


def test_a_way_along_which_the_formula_is_exact_surprises_nobody() -> None:
    """A parabola over evenly spaced levels, and whatever came before its last four points."""
    levels = np.array([9.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    signal = 1 / (1 + levels**2)
    way = LatentPath(list(signal))
    for call, (level, share) in enumerate(zip(levels, signal, strict=True)):
        assert way.is_known == (call > 3)
        way.arrive(call, torch.full((1, 4, 2, 2), float(share**0.5 * (0.3 * level - 2)), dtype=torch.float64))
        way.arrive(call, torch.full((1, 4, 2, 2), float(share**0.5 * (0.7 * level - 1)), dtype=torch.float64))
    assert torch.allclose(way.unexpected(), torch.zeros((), dtype=torch.float64), atol=1e-12)
    assert sum(path.FORMULA) == pytest.approx(1)
    assert np.dot(path.FORMULA, [0, -1, -2]) == pytest.approx(0.5), "second order"


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"threshold": 1.0, "longest": 5}, "FFFF....F....F"),
        ({"threshold": 1.0, "longest": 2}, "FFFF.F.F.F.F.F"),
        ({"threshold": 1.0, "within": "50%-/2"}, "FFFFFFF.F.F.F."),
        ({"threshold": 1.0, "within": "0-", "first": 6}, "FFFFFF....F..."),
        ({"threshold": -1.0}, "F" * STEPS),
    ],
)
def test_the_window_and_the_longest_hold(changed: dict[str, Any], wanted: str, get: Get) -> None:
    pipe = get()
    keys = plan()["rules"][0]["schedule"] | changed
    with inherit(pipe, plan(nodes="mid", extrapolate=None, space="model", schedule=keys)) as handle:
        draw(pipe, STEPS)
        (reused,) = handle.stats().reused.values()
    assert "".join("." if each else "F" for each in reused) == wanted


def test_one_value_is_read_for_each_call_that_may_rest(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def ask(self: LatentPath) -> float:
        asked.append(self.call)
        return 1.0

    monkeypatch.setattr(LatentPath, "disagreement", ask)
    pipe = get()
    with inherit(pipe, plan()):
        draw(pipe, STEPS)
    assert asked == [*WITHIN]


def test_halves_that_come_and_go_have_the_same_latents(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    """With guidance in an interval the plan sees half of the rows at some calls."""
    pipe, sizes, arrive = get(), [], LatentPath.arrive

    def note(self: LatentPath, call: int, latent: Tensor) -> None:
        sizes.append(len(latent))
        arrive(self, call, latent)

    monkeypatch.setattr(LatentPath, "arrive", note)
    specs = FeatureCacheSpec(rules=read_plan(plan()).rules), GuidanceScheduleSpec(by="step", start=3, until=8)
    with applied(pipe, [patch_of(spec) for spec in specs], lambda _: pipe.unet) as told:
        assert torch.isfinite(draw(pipe, STEPS, guidance_scale=GUIDANCE)).all()
        assert told().figures == {"guided_calls": 5}
        assert 5 <= (told().full_calls or 0) < STEPS
    assert sizes == [1] * STEPS


def test_where_the_share_of_signal_is_not_known_it_says_what_else_there_is(get: Get) -> None:
    edm = EDMEulerScheduler()
    edm.set_timesteps(STEPS)
    with inherit(get(), plan()) as handle:
        for trajectory in (Trajectory(STEPS), Trajectory.of(edm, STEPS, edm.timesteps[0])):
            with pytest.raises(ModelError, match=r"axis 'signal': .*; use `mode: explicit, extrapolate: linear`"):
                handle.cache.begin(trajectory)


def test_a_generation_of_another_size_starts_from_nothing(get: Get) -> None:
    def drawn(pipe: Any, *sizes: int) -> Tensor:
        with inherit(pipe, plan()):
            return [draw(pipe, STEPS, size) for size in sizes][-1]

    assert torch.equal(drawn(get(), 40, 32), drawn(get(), 32))
