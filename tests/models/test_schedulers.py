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

import asdm_cli
from asdm_cli.errors import ModelError
from asdm_cli.models.directory import find
from asdm_cli.models.load import load_pipeline
from asdm_cli.models.schedulers import SAMPLERS, own_scheduler, planned_scheduler, training_scheduler, unlike_noise
from asdm_cli.patches.noise import alphas_cumprod
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


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_a_config_leaves_to_its_class_is_not_left_to_the_samplers(name: str, make: Make) -> None:
    """An LCM scheduler's own betas are those of Stable Diffusion, DDIM's are not."""
    model = find(str(make("LCMScheduler", {})))
    made, own = (alphas_cumprod(planned_scheduler(model, each, 3)) for each in (name, "own"))
    assert made is not None
    assert own is not None
    assert own[-1] == pytest.approx(0.004660, abs=1e-6)
    assert torch.allclose(made, own, atol=1e-6)
    assert torch.equal(alphas_cumprod(training_scheduler(model)), own)  # type: ignore[arg-type]


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

    own = own_scheduler(find(str(tiny_pipeline)))
    assert (
        unlike_noise({"a": own, "b": noise("LCMScheduler", {}), "c": noise("LCMScheduler", {"beta_end": 0.012})}) == []
    )
    edm = noise("EDMEulerScheduler", {"sigma_data": 0.5})
    assert unlike_noise({"a": edm, "b": noise("EDMDPMSolverMultistepScheduler", {"sigma_data": 0.5})}) == []
    assert unlike_noise({"a": edm, "b": noise("EDMEulerScheduler", {"sigma_data": 1.0})})
    (told,) = unlike_noise({"a": own, "b": noise(*LINEAR), "c": edm})
    assert "a has DDIMScheduler, scaled_linear betas from 0.00085 to 0.012 in 1000 steps" in told
    assert "; b has DDIMScheduler, linear betas from 0.0001 to 0.02 in 1000 steps; " in told
    assert told.endswith("c has EDMEulerScheduler, without betas")


DRAWN = {"steps": 2, "limit": 2, "device": "cpu"}
MEETINGS: dict[str, tuple[str, Callable[[str, str], dict[str, Any]]]] = {
    "assemble": ("assemble", lambda good, other: {
        "donors": {"a": good, "b": other}, "levels": ["a", "a", "a", "b"], "mid": "a"}),
    "distill": ("distill", lambda good, other: {
        "teacher": good, "students": [{"name": "s", "model": other}], "steps": 1, "device": "cpu"}),
    "switch": ("switch", lambda good, other: {
        "unets": {"a": {"model": good}, "b": {"model": other}},
        "by": "step", "parts": [{"unet": "b", "until": 1}, {"unet": "a"}], **DRAWN}),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "settings"), [LINEAR, OTHER["EDM"], ("DDIMScheduler", {"trained_betas": [0.1] * 50})])
@pytest.mark.parametrize("meeting", MEETINGS)
def test_two_models_that_meet_have_one_noise(
    meeting: str, kind: str, settings: dict[str, Any], make: Make, tiny_pipeline: Path, tmp_path: Path
) -> None:
    verb, recipe = MEETINGS[meeting]
    said = _tried(verb, recipe(str(tiny_pipeline), str(make(kind, settings))), tmp_path)
    assert said.code == 2
    assert "the noise that models were trained with must be the same everywhere" in said.text


def test_unets_of_another_noise_do_not_take_turns_in_python(make: Make, tiny_pipeline: Path) -> None:
    pipe = load_pipeline(find(str(tiny_pipeline)), torch.device("cpu"), torch.float32)
    unets: dict[str, Any] = {"a": pipe.unet, "b": str(make(*LINEAR))}
    with pytest.raises(ModelError, match=r"unets: the noise .*: the pipeline has DDIM.*; b has DDIMScheduler, linear"):
        asdm_cli.switch(pipe, unets, [{"unet": "b", "until": 500}, {"unet": "a"}])


ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "eval": ("contestant 'a': sampler 'ddim'", {"verb": "eval", "sampler": "ddim"}),
    "inherit": ("contestant 'plain': sampler 'euler'", {"verb": "inherit", "sampler": "euler"}),
    "converged": ("converged: sampler 'dpm++2m'", {"verb": "inherit", "converged": 5}),
    "bench": ("sampler 'heun'", {"verb": "bench", "sampler": "heun"}),
    "distill": ("teacher: ", {"verb": "distill"}),
}


@pytest.mark.parametrize("what", ASKED)
def test_every_verb_holds_a_sampler_against_its_model_before_it_starts(what: str, make: Make, tmp_path: Path) -> None:
    model = str(make(*OTHER["EDM"]))
    words, asked = ASKED[what]
    verb = asked["verb"]
    given: dict[str, dict[str, Any]] = {
        "eval": {"models": [{"name": "a", "model": model}], "metrics": ["psnr"], **DRAWN},
        "inherit": {"model": model, "plan": {"preset": "deepcache"}, **DRAWN},
        "bench": {"models": [{"name": "a", "model": model}], "steps": 2, "device": "cpu"},
        "distill": {"teacher": model, "students": [{"name": "s", "model": model}], "steps": 1, "device": "cpu"},
    }
    said = _tried(verb, {**given[verb], **asked}, tmp_path)
    assert said.code == 2
    assert words in said.text
    assert "EDMEulerScheduler, without betas" in said.text


def _tried(verb: str, recipe: dict[str, Any], folder: Path) -> Any:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({"verb": verb, **recipe, "out": str(folder / "out")}, width=1000))
    return asdm(verb, file, "--dry-run", "-q")
