"""The noise that models were trained with: real, and the same wherever two models meet, or a model and a sampler."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from asdm_cli.errors import ModelError
from asdm_cli.models.directory import find
from asdm_cli.models.schedulers import SAMPLERS, own_scheduler, planned_scheduler, training_scheduler, unlike_noise
from asdm_cli.patches.noise import alphas_cumprod
from tests.hardening.uses import RECIPES
from tests.typed import asdm

Make = Callable[..., Path]
OTHER = {
    "EDM": ("EDMEulerScheduler", {"sigma_data": 0.5}),
    "flow matching": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow matching beside betas": ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}),
    "continuous": ("EulerDiscreteScheduler", {"timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0}),
}
"""Noise that is not given by betas, whatever a config says of them."""
KEEP = {"flow matching beside betas": {"dpm++2m", "unipc"}, "continuous": {"euler"}}
"""Samplers that know that kind of noise too."""
LINEAR = ("DDIMScheduler", {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"})


@pytest.fixture
def make(tiny_pipeline: Path, tmp_path: Path) -> Make:
    """The tiny pipeline with another scheduler, of which the config says only this."""

    def made(kind: str, settings: dict[str, Any], name: str = "other") -> Path:
        model = Path(shutil.copytree(tiny_pipeline, tmp_path / name))
        (model / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": kind, **settings}))
        index = json.loads((model / "model_index.json").read_text())
        (model / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", kind]}))
        return model

    return made


def test_latents_are_not_clipped_where_a_config_does_not_say_so(make: Make) -> None:
    """DDIM's own default is that of pictures between -1 and 1."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    euler, ddim = (find(str(make(kind, betas, kind))) for kind in ("EulerDiscreteScheduler", "DDIMScheduler"))
    assert planned_scheduler(euler, "ddim", 4).config["clip_sample"] is False
    assert planned_scheduler(ddim, "ddim", 4).config["clip_sample"] is own_scheduler(ddim).config["clip_sample"] is True


def test_what_a_config_leaves_to_its_class_is_not_left_to_the_samplers(make: Make) -> None:
    """An LCM scheduler's own betas are those of Stable Diffusion, DDIM's are not."""
    model = find(str(make("LCMScheduler", {})))
    own: Any = alphas_cumprod(planned_scheduler(model, "own", 3))
    assert own[-1] == pytest.approx(0.004660, abs=1e-6)
    assert torch.equal(alphas_cumprod(training_scheduler(model)), own)  # type: ignore[arg-type]
    for name in SAMPLERS:
        made: Any = alphas_cumprod(planned_scheduler(model, name, 3))
        assert torch.allclose(made, own, atol=1e-6)


@pytest.mark.parametrize("noise", OTHER)
def test_what_has_no_betas_draws_as_it_is_and_no_other_way(noise: str, make: Make) -> None:
    kind, settings = OTHER[noise]
    model = find(str(make(kind, settings)))
    assert planned_scheduler(model, "own", 3).timesteps.shape == (3,)
    for name in SAMPLERS.keys() - KEEP.get(noise, set()):
        with pytest.raises(ModelError, match=rf"^sampler '{re.escape(name)}': .*{kind}, without betas.*use `own`"):
            planned_scheduler(model, name, 3)
    for name in KEEP.get(noise, ()):
        assert alphas_cumprod(planned_scheduler(model, name, 3)) is None
    with pytest.raises(ModelError, match=rf"scheduler_config.json: {kind}, without betas: only models whose noise"):
        training_scheduler(model)


def test_a_sampler_that_cannot_end_in_pure_noise_is_refused(make: Make) -> None:
    model = find(str(make(LINEAR[0], {**LINEAR[1], "rescale_betas_zero_snr": True})))
    for name in ("ddim", "euler", "dpm++2m", "unipc"):
        assert alphas_cumprod(planned_scheduler(model, name, 3))[-1] < 1e-6  # type: ignore[index]
    for name in ("pndm", "heun"):
        with pytest.raises(ModelError, match=r"another noise .*rescaled to end in pure noise; of that, .*; use `own`"):
            planned_scheduler(model, name, 3)


def test_schedulers_are_unlike_in_their_noise_alone(make: Make, tiny_pipeline: Path) -> None:
    def noise(kind: str, settings: dict[str, Any]) -> Any:
        return own_scheduler(find(str(make(kind, settings, f"{kind} {len(settings)} {settings.get('sigma_data')}"))))

    own, lcm = own_scheduler(find(str(tiny_pipeline))), noise("LCMScheduler", {})
    assert unlike_noise({"a": own, "b": lcm, "c": noise("LCMScheduler", {"beta_end": 0.012})}) == []
    edm = noise("EDMEulerScheduler", {"sigma_data": 0.5})
    assert unlike_noise({"a": edm, "b": noise("EDMDPMSolverMultistepScheduler", {"sigma_data": 0.5})}) == []
    assert unlike_noise({"a": edm, "b": noise("EDMEulerScheduler", {"sigma_data": 1.0})})
    (told,) = unlike_noise({"a": own, "b": noise(*LINEAR), "c": edm})
    assert "a has DDIMScheduler, scaled_linear betas from 0.00085 to 0.012 in 1000 steps; b has DDIMSch" in told
    assert told.endswith(", linear betas from 0.0001 to 0.02 in 1000 steps; c has EDMEulerScheduler, without betas")


def said(use: str, model: Path, other: Path, folder: Path, **changes: Any) -> str:
    """What a dry run refuses."""
    recipe = {**RECIPES[use](str(model), str(other)), **changes, "out": str(folder / "out")}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, width=1000))
    done = asdm(recipe["verb"], folder / "recipe.yaml", "--dry-run", "-q")
    assert done.code == 2
    return done.text


@pytest.mark.parametrize(("kind", "settings"), [LINEAR, OTHER["EDM"], ("DDIMScheduler", {"trained_betas": [0.1] * 50})])
def test_two_models_that_meet_have_one_noise(
    kind: str, settings: dict[str, Any], make: Make, tiny_pipeline: Path, tmp_path: Path
) -> None:
    other = make(kind, settings)
    for use in ("donor", "student", "switch, second"):
        told = said(use, other, tiny_pipeline, tmp_path)
        assert "the noise that models were trained with must be the same everywhere" in told, use


ASKED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "eval": ("eval", "a: sampler 'ddim'", {"sampler": "ddim"}),
    "inherit": ("inherit", "plain: sampler 'euler'", {"sampler": "euler"}),
    "converged": ("inherit", "converged: sampler 'dpm++2m'", {"converged": 5}),
    "bench": ("bench", "sampler 'heun'", {"sampler": "heun"}),
    "distill": ("teacher", "teacher: ", {}),
}


@pytest.mark.parametrize("what", ASKED)
def test_every_verb_holds_a_sampler_against_its_model_before_it_starts(what: str, make: Make, tmp_path: Path) -> None:
    use, words, asked = ASKED[what]
    model = make(*OTHER["EDM"])
    told = said(use, model, model, tmp_path, **asked)
    assert words in told
    assert "EDMEulerScheduler, without betas" in told
