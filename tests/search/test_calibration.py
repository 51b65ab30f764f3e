"""What each choice errs and costs at each call, held against sums by hand; the drawing itself is not disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asdm_cli.errors import RunError
from asdm_cli.models.schedulers import SAMPLERS
from asdm_cli.patches.feature_cache import cache_on
from asdm_cli.patches.unet_schedule import UNetSchedule, alone, schedule_on, switch
from asdm_cli.recipe.patches import read_plan
from asdm_cli.sampling.generate import SamplingSettings
from asdm_cli.search.calibration import Calibration, Panel, calibrate
from asdm_cli.search.dynamic_programme import FARTHEST, GAPS, GRID
from tests.carrying import every
from tests.patches import pipes
from tests.patches.parts import small, twin
from tests.patches.pipes import draw

STEPS, GUIDANCE = 6, 3.0
SETTINGS = SamplingSettings(STEPS, GUIDANCE, 32, 0, batch=4)


@contextmanager
def three(sampler: str = "ddim", kind: str = "text", plans: dict[str, Any] | None = None) -> Iterator[Any]:
    """A pipeline in which a UNet, its equal, and a small one may take turns; the first serves."""
    pipe = pipes.pipe(kind, sampler)
    unets = {"large": pipe.unet, "equal": twin(kind), "small": small(kind)}
    held = {name: read_plan(plan) for name, plan in (plans or {}).items()}
    with switch(pipe, unets, alone("large"), held):
        yield pipe


def switched(pipe: Any) -> UNetSchedule:
    found = schedule_on(pipe)
    assert found is not None
    return found


def calibrated(pipe: Any, *prompts: str) -> Calibration:
    """Of set-ups that stand on the stage already."""
    session: Any = SimpleNamespace(stage=lambda _: nullcontext((pipe, None)))
    first: Any = SimpleNamespace(steps=STEPS)
    return calibrate(session, first, prompts, SETTINGS)


@pytest.fixture(scope="module")
def pipe() -> Iterator[Any]:
    with three() as made:
        yield made


@pytest.fixture(scope="module")
def found(pipe: Any) -> Calibration:
    return calibrated(pipe, "a red fox", "a red fox")


@pytest.mark.parametrize(("kind", "sampler"), [*(("text", each) for each in SAMPLERS), ("xl", "euler")])
def test_the_drawing_goes_on_as_if_nobody_listened(kind: str, sampler: str) -> None:
    with three(sampler, kind) as pipe:
        plain = draw(pipe, STEPS)
        panel = Panel(pipe, 7.5 if kind == "text" else 5.0)  # the pipelines' own, which `draw` leaves as they are
        with panel.listening():
            assert torch.equal(draw(pipe, STEPS), plain)
        assert "step" not in vars(pipe.scheduler)
        assert torch.equal(draw(pipe, STEPS), plain)
        calls = len(pipe.scheduler.timesteps)
        assert panel.timesteps == pipe.scheduler.timesteps.tolist()
        assert {name: len(each) for name, each in panel.seconds.items()} == dict.fromkeys(switched(pipe).names, calls)
        assert panel.errors["large"] == panel.errors["equal"] == [0.0] * calls
        assert all(error > 0 for error in panel.errors["small"])


def test_of_equal_unets_nothing_differs(found: Calibration) -> None:
    assert found.errors["large"] == found.errors["equal"] == [0.0] * STEPS
    assert min(found.errors["small"]) > 0
    assert list(found.seconds) == list(found.errors) == ["large", "equal", "small"]
    assert all(seconds > 0 for each in found.seconds.values() for seconds in each)
    assert all(len(set(each)) == 1 for each in found.seconds.values()), "without a plan all calls are the same work"


class Seen:
    """What the first UNet saw and answered, after guidance."""

    def __init__(self, pipe: Any, guidance: float):
        self.inputs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.answers: list[Tensor] = []
        with ExitStack() as undo:
            hook = lambda _, args, named, out: self._note(args, named, out, guidance)  # noqa: E731
            undo.callback(pipe.unet.register_forward_hook(hook, with_kwargs=True).remove)
            draw(pipe, STEPS, guidance_scale=guidance)

    def _note(self, args: Any, named: Any, out: Any, guidance: float) -> None:
        self.inputs.append((args[0].clone(), args[1], named["encoder_hidden_states"]))
        self.answers.append(guided(out[0], guidance))


def guided(answer: Tensor, guidance: float) -> Tensor:
    if guidance == 1:
        return answer
    without, text = answer.chunk(2)
    return without + guidance * (text - without)


def reach(pipe: Any, call: int) -> float:
    """DDIM's next latents are linear in the answer: by how much, from its paper's formula."""
    scheduler = pipe.scheduler
    time = int(scheduler.timesteps[call])
    before = time - 1000 // STEPS
    alpha = float(scheduler.alphas_cumprod[time])
    next_alpha = float(scheduler.alphas_cumprod[before]) if before >= 0 else float(scheduler.final_alpha_cumprod)
    return abs((1 - next_alpha) ** 0.5 - (next_alpha * (1 - alpha) / alpha) ** 0.5)


def rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())


@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_errors_are_how_far_the_next_latents_move(pipe: Any, guidance: float) -> None:
    seen, panel = Seen(pipe, guidance), Panel(pipe, guidance)
    with panel.listening():
        draw(pipe, STEPS, guidance_scale=guidance)
    own, checked = seen.answers, 0
    for call, (sample, time, text) in enumerate(seen.inputs):
        far = reach(pipe, call)
        with torch.no_grad():
            other = guided(switched(pipe).unets["small"](sample, time, text, return_dict=False)[0], guidance)
        expected: dict[Any, Tensor] = {"small": other}
        for distance in range(1, FARTHEST + 1):
            for gap in range(GAPS + 1):
                if distance + gap <= call:
                    last = own[call - distance]
                    slope = (last - own[call - distance - gap]) / gap if gap else torch.zeros_like(last)
                    expected[distance, gap] = last + distance * slope
        for choice, errors in panel.errors.items():
            if choice in expected:
                assert errors[call] == pytest.approx(far * rms(expected[choice] - own[call]), rel=2e-3, abs=1e-6)
                checked += 1
            elif isinstance(choice, tuple):
                assert np.isnan(errors[call]), "nothing was predicted so long ago"
    assert checked == 6 + sum(
        min(call, 3) + sum(distance + gap <= call for distance in (1, 2, 3) for gap in (1, 2, 3, 4))
        for call in range(6)
    )


def test_costs_are_whole_units_rounded_up() -> None:
    nulls = [[[None, 1.0]] * (GAPS + 1)] * FARTHEST
    seconds = {"a": [1.0, 3.0], "b": [0.5, 0.501], "c": [0.001, 2.0]}
    choices = Calibration([2.0, 1.0], {"a": [0.0, 0.0], "b": [1.0, 2.0], "c": [3.0, 4.0]}, seconds, nulls).choices()
    assert GRID == 100
    costs = {name: each.tolist() for name, each in choices.costs.items()}
    assert costs == {"a": [50, 150], "b": [25, 26], "c": [1, 100]}
    assert choices.reuse.tolist() == [[np.inf, 1.0]] * FARTHEST
    assert choices.extrapolate.shape == (FARTHEST, GAPS, 2)


def test_plans_are_in_force_while_their_unets_answer() -> None:
    """The equal one inherits at every second call: there, and only there, it errs."""
    with three(plans={"equal": every(2, "up.3")}) as pipe:
        found = calibrated(pipe, "a fox")
        cache = cache_on(switched(pipe).unets["equal"])
        assert cache
        assert [bool(reused) for reused in cache.stats().reused["unet"]] == [False, True] * 3
        assert cache.thread.generation is None
    assert [error > 0 for error in found.errors["equal"]] == [False, True] * 3
    assert len(set(found.seconds["equal"])) > 1, "its calls are unlike work"


def test_a_broken_unet_is_named() -> None:
    with three() as pipe:
        switched(pipe).unets["small"].conv_out.weight.data.fill_(float("nan"))
        with pytest.raises(RunError, match=r"^UNets small: answer with what is no number"):
            calibrated(pipe, "a fox")
