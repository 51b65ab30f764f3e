"""The UNet's whole output as a node: nothing of the UNet runs, and forecasts are what they say, in whatever space."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asdm_cli import inherit
from asdm_cli.errors import ModelError, RecipeError
from asdm_cli.patches.base import check_patches, patch_of
from asdm_cli.patches.feature_cache.forecast import NEWEST, ChebyshevRidge, Fitted, Polynomial
from asdm_cli.patches.noise import PREDICTIONS, in_space
from asdm_cli.profiling.macs import count
from asdm_cli.recipe.patches import Chebyshev, FeatureCacheSpec, Fit, read_plan
from tests.patches import pipes
from tests.patches.conftest import Get
from tests.patches.pipes import draw

KEYS = [0, 1, 3, 6]
STEPS = 8


def plan(**rule: Any) -> dict[str, Any]:
    return {"rules": [{"nodes": "out", "schedule": {"mode": "explicit", "steps": KEYS}, **rule}]}


class Recorded:
    """What a pipeline's UNet was given and answered at each call, by the plan that is in force."""

    def __init__(self, pipe: Any):
        self.samples: list[Tensor] = []
        self.outputs: list[Tensor] = []

        def note(_: Any, arguments: tuple[Any, ...], answer: Any) -> None:
            self.samples.append(arguments[0].clone())
            self.outputs.append(answer[0].clone())

        pipe.unet.register_forward_hook(note)


@pytest.mark.parametrize("kind", ["text", "image", "xl", "control"])
def test_at_every_call_is_the_plain_model_bit_by_bit(kind: str, get: Get) -> None:
    pipe = get(kind)
    wanted = draw(pipe, STEPS)
    with inherit(pipe, {"rules": [{"nodes": "out", "schedule": {"mode": "uniform", "interval": 1}, "order": 1}]}):
        assert torch.equal(draw(pipe, STEPS), wanted)


def test_nothing_of_the_unet_runs_at_a_reused_call(get: Get) -> None:
    pipe = get()
    whole = count("plain", {"unet": pipe.unet}, lambda: draw(pipe, STEPS)).components["unet"].total
    with inherit(pipe, plan()) as handle:
        counted = count("plan", {"unet": pipe.unet}, lambda: draw(pipe, STEPS)).components["unet"].total
        assert handle.stats().full_calls == len(KEYS)
    assert counted * STEPS == whole * len(KEYS)


def by_hand(recorded: Recorded, call: int, order: int, mixes: list[tuple[float, float]]) -> Tensor:
    """Lagrange's polynomial through a x + b y of the last key steps, turned back."""
    keys = [key for key in reversed(KEYS) if key < call][: order + 1]
    value = torch.zeros_like(recorded.outputs[0])
    for key in keys:
        others = [other for other in keys if other != key]
        weight = np.prod([(call - other) / (key - other) for other in others])
        of_input, of_output = mixes[key]
        value += weight * (of_input * recorded.samples[key] + of_output * recorded.outputs[key])
    of_input, of_output = mixes[call]
    return (value - of_input * recorded.samples[call]) / of_output


@pytest.mark.parametrize("space", ["model", "x0", "eps", "v"])
@pytest.mark.parametrize(("word", "order"), [("reuse", 0), ("linear", 1), ("quadratic", 2)])
def test_forecasts_are_polynomials_in_that_space(space: str, word: str, order: int) -> None:
    pipe = pipes.pipe(sampler="ddim")
    pipe.scheduler.set_timesteps(STEPS)
    signal = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps].double()
    mixes = [(0.0, 1.0)] * STEPS if space == "model" else [in_space("epsilon", space, float(each)) for each in signal]
    recorded = Recorded(pipe)
    with inherit(pipe, plan(extrapolate=word, space=space)):
        draw(pipe, STEPS)
    for call in set(range(STEPS)) - set(KEYS):
        assert torch.allclose(recorded.outputs[call], by_hand(recorded, call, order, mixes), atol=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_spaces_are_what_the_noise_says(prediction: str) -> None:
    clean, noise, signal = 0.7, -1.3, 0.6
    alpha, sigma = signal**0.5, (1 - signal) ** 0.5
    truth = {"x0": clean, "eps": noise, "v": alpha * noise - sigma * clean}
    sample = alpha * clean + sigma * noise
    output = truth[{"sample": "x0", "epsilon": "eps", "v_prediction": "v"}[prediction]]
    for space, value in truth.items():
        of_input, of_output = in_space(prediction, space, signal)
        assert of_input * sample + of_output * output == pytest.approx(value)


def test_a_straight_line_through_the_output_is_what_a_unet_schedule_extrapolates(get: Get) -> None:
    from asdm_cli import switch

    pipe = get()
    with inherit(pipe, plan(order=1)):
        wanted = draw(pipe, STEPS)
    parts = [("a", 2), ("extrapolate", 3), ("a", 4), ("extrapolate", 6), ("a", 7), ("extrapolate", None)]
    served = [{"unet": name, **({} if until is None else {"until": until})} for name, until in parts]
    with switch(pipe, {"a": pipe.unet}, served, by="step"):
        assert torch.allclose(draw(pipe, STEPS), wanted, atol=1e-5)


def test_written_into_answers_do_no_damage() -> None:
    """Of the kept value itself nobody gets more than a copy."""
    pipe = pipes.pipe()
    with inherit(pipe, plan()):
        wanted = draw(pipe, STEPS)

        def careless(_: Any, __: Any, answer: Any) -> Any:
            copied = answer[0].clone()
            answer[0].fill_(torch.nan)
            return (copied,)

        pipe.unet.register_forward_hook(careless)
        assert torch.equal(draw(pipe, STEPS), wanted)


# Fitted ---------------------------------------------------------------------------------------------------------------


def fit(pipe: Any, weights: list[list[float]], **changed: Any) -> dict[str, Any]:
    pipe.scheduler.set_timesteps(STEPS)
    times = [float(time) for time in pipe.scheduler.timesteps]
    own = {"sampler": type(pipe.scheduler).__name__, "timesteps": times, "keys": KEYS, "weights": weights}
    return {**own, **changed}


WEIGHTS = [[] if call in KEYS else [0.25, 2.0, -1.0] for call in range(STEPS)]


def test_fitted_forecasts_are_the_written_combination_of_input_and_key_values() -> None:
    """At key step 3 one is handed on that is not the value, which the forecasts after it look at."""
    pipe = pipes.pipe(sampler="ddim")
    corrected = [*WEIGHTS[:3], [0.5, 1.5, -0.5], *WEIGHTS[4:]]
    recorded = Recorded(pipe)
    with inherit(pipe, plan(extrapolate="fitted", fit=fit(pipe, corrected))):
        draw(pipe, STEPS)
    out, samples = recorded.outputs, recorded.samples
    own = (out[3] - 0.5 * samples[3] + 0.5 * out[1]) / 1.5
    values = {0: out[0], 1: out[1], 3: own, 6: out[6]}
    for call in set(range(STEPS)) - set(KEYS):
        newest, older = [key for key in reversed(KEYS) if key < call][:2]
        assert torch.allclose(out[call], 0.25 * samples[call] + 2 * values[newest] - values[older], atol=1e-4)
    with torch.no_grad():
        told = {"encoder_hidden_states": pipe.encode_prompt("a red fox", "cpu", 1, True)[0]}
        text = torch.cat([pipe.encode_prompt("a red fox", "cpu", 1, True)[1], told["encoder_hidden_states"]])
        truth = pipe.unet(samples[3], pipe.scheduler.timesteps[3], text)[0]
    assert torch.allclose(own, truth, atol=1e-4)


@pytest.mark.parametrize(
    ("steps", "sampler", "changed", "told"),
    [
        (STEPS - 1, "ddim", {}, "7 UNet calls of DDIMScheduler came"),
        (STEPS, "euler", {}, "8 UNet calls of EulerDiscreteScheduler came"),
        (STEPS, "ddim", {"timesteps": [float(each) for each in range(STEPS)]}, "other timesteps came"),
    ],
)
def test_a_calibration_is_not_used_for_other_calls(
    steps: int, sampler: str, changed: dict[str, Any], told: str, get: Get
) -> None:
    written = fit(get(), WEIGHTS, **changed)
    pipe = get(sampler=sampler)
    with inherit(pipe, plan(extrapolate="fitted", fit=written)), pytest.raises(ModelError, match=told):
        draw(pipe, steps)


@pytest.mark.parametrize("rule", [{"extrapolate": "fitted"}, {"schedule": {"mode": "calibrated", "calls": 3}}])
def test_what_was_not_calibrated_is_not_drawn_with(rule: dict[str, Any], get: Get) -> None:
    pipe = get()
    with inherit(pipe, plan(**rule)), pytest.raises(ModelError, match="was not calibrated"):
        draw(pipe, STEPS)


def test_fitted_forecasts_fall_back_to_a_line_where_other_values_are_known() -> None:
    weights = [[], [0.2, 3.0], [0.1, 5.0, 6.0], [0.1, 7.0, 8.0]]
    fitted = Fitted(Fit(sampler="s", timesteps=[3.0, 2.0, 1.0, 0.0], keys=[0, 1], weights=weights))
    assert fitted.weights([1.0, 0.0], 2.0, 2) == ((5.0, 6.0), 0.1)
    assert fitted.weights([2.0, 0.0], 3.0, 3) == Polynomial(1).weights([2.0, 0.0], 3.0, 3)
    assert fitted.correction([1.0, 0.0], 1) == ((3.0,), 0.2)
    assert fitted.correction([2.0, 1.0], 2) == NEWEST


# Chebyshev ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_without_a_penalty_chebyshev_polynomials_of_the_degree_are_exact(degree: int) -> None:
    factors = np.linspace(1, -2, degree + 1)
    known, place = [17.0, 12.0, 8.0, 5.0, 3.0, 1.0, 0.0], 20.0
    forecast = ChebyshevRidge(Chebyshev(form="chebyshev", degree=degree, ridge=0.0), range(50))
    values, latent = forecast.weights(known, place, 20)
    assert latent == 0
    assert np.dot(values, np.polyval(factors, known)) == pytest.approx(np.polyval(factors, place))


def test_the_penalty_is_ridge_regressions() -> None:
    known, place, ridge = [9.0, 6.0, 4.0, 0.0], 12.0, 0.3
    forecast = ChebyshevRidge(Chebyshev(form="chebyshev", degree=2, ridge=ridge), range(21))
    scaled = np.array(known) / 10 - 1
    basis = np.stack([np.ones(4), scaled, 2 * scaled**2 - 1], 1)
    here = np.array([1, place / 10 - 1, 2 * (place / 10 - 1) ** 2 - 1])
    truth = np.array([1.0, -2.0, 3.0, 0.5])
    wanted = here @ np.linalg.inv(basis.T @ basis + ridge * np.eye(3)) @ basis.T @ truth
    assert np.dot(forecast.weights(known, place, 12).values, truth) == pytest.approx(wanted)


# Presets --------------------------------------------------------------------------------------------------------------


def drawn_as(steps: int, preset: str) -> str:
    (rule,) = read_plan(preset).rules
    keys = rule.schedule.key_steps(steps) or ()
    return "".join("F" if call in keys else "." for call in range(steps))


def test_schedules_are_the_published_ones() -> None:
    assert drawn_as(50, "zeus") == "FFFFFFFFFFF.F" + "..F" * 11 + "FFFF"
    assert drawn_as(25, "zeus").count("F") == 14
    assert drawn_as(50, "spectrum") == "FFFFF.F.F..F...F....F....F.....F......F.......F..."
    assert drawn_as(25, "t-gate") == "F" * 10 + "." * 15


def test_zeus_predicts_by_hand() -> None:
    pipe = pipes.pipe(sampler="ddim")
    recorded = Recorded(pipe)
    with inherit(pipe, plan(extrapolate="interleaved")):
        draw(pipe, STEPS)
    out = recorded.outputs
    for call, wanted in {2: 2 * out[1] - out[0], 4: 2 * out[3] - out[1], 5: out[3], 7: 2 * out[6] - out[3]}.items():
        assert torch.allclose(out[call], wanted, atol=1e-5)


@pytest.mark.parametrize("preset", ["zeus", "spectrum", "sada", "t-gate"])
def test_presets_draw(preset: str, get: Get) -> None:
    pipe = get()
    plain = draw(pipe, 10)
    with inherit(pipe, preset) as handle:
        drawn = draw(pipe, 10)
        assert (handle.stats().full_calls or 0) < 10
    assert torch.isfinite(drawn).all()
    assert not torch.equal(drawn, plain)


@pytest.mark.parametrize("preset", ["zeus", "sada"])
def test_an_order_takes_the_place_of_a_presets_own_forecast(preset: str) -> None:
    (rule,) = read_plan({"preset": preset, "order": 2}).rules
    assert (rule.order, rule.extrapolate) == (2, None)


# Recipes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"extrapolate": "linear", "order": 1}, "order: either 'extrapolate' or 'order'"),
        ({"cache": "residual"}, "cache: 'out' adds nothing"),
        ({"nodes": ["out", "mid"]}, "nodes: 'out' is the whole output"),
        ({"nodes": "mid", "extrapolate": "multistep"}, "extrapolate: multistep goes with 'nodes: out'"),
        ({"extrapolate": "fitted", "schedule": {"mode": "stability"}}, "schedule: key steps of a"),
        ({"schedule": {"mode": "stability", "within": "9-5"}}, "schedule.within: the range ends before it starts"),
        ({"nodes": "mid", "space": "x0"}, "space: goes with 'nodes: out'"),
        ({"extrapolate": "fitted", "axis": "log-snr"}, "axis: goes with other forecasts"),
        (
            {"extrapolate": "interleaved", "axis": "angle"},
            "axis: goes with other forecasts; interleaved ones count calls",
        ),
        ({"extrapolate": "fitted", "schedule": {"mode": "threshold", "threshold": 0.1}}, "schedule: key steps of a"),
        ({"order": 1, "fit": {"sampler": "s", "timesteps": [1.0], "keys": [0], "weights": [[]]}}, "fit: goes with"),
    ],
)
def test_rules_that_cannot_be_are_refused(rule: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        read_plan(plan(**rule))


def test_a_preset_that_counts_calls_counts_nothing_else() -> None:
    with pytest.raises(RecipeError, match="axis: goes with other forecasts"):
        read_plan({"preset": "zeus", "axis": "log-snr"})
    assert read_plan({"preset": "zeus", "axis": "log-snr", "order": 1}).rules[0].axis == "log-snr"


@pytest.mark.parametrize(
    ("rule", "key"),
    [({"extrapolate": "fitted"}, "fit"), ({"schedule": {"mode": "calibrated", "calls": 3}, "order": 1}, "schedule")],
)
def test_what_was_not_calibrated_is_told_before_anything_is_drawn(rule: dict[str, Any], key: str, get: Get) -> None:
    spec = FeatureCacheSpec(rules=read_plan(plan(**rule)).rules)
    (fault,) = check_patches([patch_of(spec)], {"unet": dict(get().unet.config)})
    assert fault.startswith(f"rules[0].{key}: only a calibration can say")
