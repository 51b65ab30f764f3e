"""Every class of pipeline that is drawn with: as the table says it is, as plain diffusers draws, with plans on it."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import asdm_cli
from asdm_cli.compare.setup import Setup, drawing
from asdm_cli.errors import ModelError
from asdm_cli.models.directory import check_drawing, find
from asdm_cli.models.metadata import write_patched
from asdm_cli.models.pipelines import CALLED, PIPELINES
from asdm_cli.models.schedulers import set_sampler
from asdm_cli.patches.base import stats_of
from tests import families, pictures
from tests.carrying import cache

KINDS = {
    told.get("pipeline", "StableDiffusionPipeline"): kind
    for kind, told in {**families.KINDS, **families.OTHERS}.items()
}
"""Class -> a tiny model of it."""
STEPS, SEEDS = 5, [3, 4]
EVERY_CALL = {"rules": [{"nodes": "base", "schedule": {"mode": "uniform", "interval": 1}}]}
Model = Callable[[str], Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return families.kept(KINDS, tmp_path_factory)


def draw(pipe: Any, steps: int = STEPS, **more: Any) -> Tensor:
    noise = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    asked = {**pictures.call(type(pipe).__name__, [0, 1]), **more}
    return pipe(**asked, num_inference_steps=steps, generator=noise, output_type="pt").images


def calls_of(pipe: Any, steps: int = STEPS, **more: Any) -> list[int]:
    """The rows of each, of one picture."""
    seen: list[int] = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0]) // len(SEEDS)))
    try:
        draw(pipe, steps, **more)
    finally:
        hook.remove()
    return seen


def setup(model: Path, **settings: Any) -> Setup:
    return drawing("it", find(str(model)), steps=settings.pop("steps", STEPS), **settings)


def test_the_table_is_what_diffusers_has() -> None:
    assert KINDS.keys() == PIPELINES.keys()
    for name, kind in PIPELINES.items():
        known = getattr(diffusers, name)
        asked = inspect.signature(known.__call__).parameters
        assert {*kind.takes} == {word for word, argument in CALLED.items() if argument in asked}, name
        assert kind.guidance == asked["guidance_scale"].default, name
        assert kind.steps in (None, asked["num_inference_steps"].default), name
        optional = {"feature_extractor"} & {*inspect.signature(known.__init__).parameters} - {
            *known._optional_components
        }
        assert optional == {*kind.needs}, name


@pytest.mark.parametrize("name", PIPELINES)
def test_each_is_drawn_with_as_plain_diffusers_draws_and_by_plans(name: str, model: Model) -> None:
    plain = getattr(diffusers, name).from_pretrained(model(name))
    plain.set_progress_bar_config(disable=True)
    pipe: Any = asdm_cli.load(str(model(name)), "cpu")
    assert type(pipe).__name__ == name
    expected = draw(plain)
    assert torch.equal(draw(pipe), expected)
    with asdm_cli.inherit(pipe, EVERY_CALL):
        assert torch.equal(draw(pipe), expected)
    more = {"strength": 0.9} if "strength" in PIPELINES[name].takes else {}
    for preset in ("deepcache", "last-block"):
        with asdm_cli.inherit(pipe, {"preset": preset}):
            found = draw(pipe, STEPS + 3, **more)
            (reused,) = stats_of(pipe).reused.values()
        assert len(reused) == setup(model(name), steps=STEPS + 3, **more).calls
        assert any(reused)
        assert not torch.equal(found, draw(plain, STEPS + 3, **more))
    assert torch.equal(draw(pipe), expected)


@pytest.mark.parametrize("name", PIPELINES)
def test_calls_are_counted_as_they_come(name: str, model: Model) -> None:
    pipe: Any = asdm_cli.load(str(model(name)), "cpu")
    kind = PIPELINES[name]
    own = pipe.scheduler
    for sampler in ("own",) if kind.own_sampler else ("own", "pndm", "heun"):
        pipe.scheduler = own
        set_sampler(pipe, sampler)
        for strength in (None, 0.5, 1.0) if "strength" in kind.takes else (None,):
            more = {} if strength is None else {"strength": strength}
            planned = setup(model(name), sampler=sampler, **more)
            assert calls_of(pipe, **more) == [planned.rows] * planned.calls


def test_what_a_written_plan_does_is_done(model: Model, tmp_path: Path) -> None:
    for name in PIPELINES:
        source = find(str(model(name)))
        plan = cache({"preset": "deepcache"})
        write_patched(source, {}, [plan], tmp_path / name, "inherit", False)
        pipe: Any = asdm_cli.load(str(tmp_path / name), "cpu")
        draw(pipe)
        assert len(stats_of(pipe).reused["unet"]) == setup(model(name)).calls


def test_ways_of_drawing_that_a_pipeline_does_not_have(model: Model) -> None:
    lcm, refiner = model("LatentConsistencyModelPipeline"), model("StableDiffusionXLImg2ImgPipeline")
    refused = {
        "LatentConsistencyModelPipeline draws with its own alone; use `own`": (lcm, {"sampler": "euler"}),
        "steps: 60 are more than the 50 that .*scheduler_config.json knows": (lcm, {"steps": 60}),
        "strength: 0.3 of 3 steps are none; raise `strength` or `steps`": (refiner, {"steps": 3}),
    }
    for words, (source, settings) in refused.items():
        with pytest.raises(ModelError, match=words):
            assert setup(source, **settings).calls


CHANGED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another's UNet": (
        "StableDiffusionUpscalePipeline",
        {"in_channels": 9},
        "takes in 9 channels .* pipeline feeds 7: fetch",
    ),
    "no noise level": (
        "StableDiffusionUpscalePipeline",
        {"num_class_embeds": None},
        "takes in no class_labels, which a StableDiff",
    ),
    "half of two": ("StableDiffusionInpaintPipeline", {"in_channels": 5}, "takes in 5 channels .* feeds 4 or 9"),
    "guidance untold": ("LatentConsistencyModelPipeline", {"time_cond_proj_dim": None}, "takes in no timestep_cond"),
    "guidance told": ("StableDiffusionDepth2ImgPipeline", {"time_cond_proj_dim": 8}, "takes in timestep_cond, which a"),
}


def test_inpainting_knows_latents_of_four_channels_only(tmp_path: Path) -> None:
    model = families.pipeline("sd15-inpaint", tmp_path / "model", in_channels=8, out_channels=8)
    config = json.loads((model / "vae/config.json").read_text()) | {"latent_channels": 8}
    (model / "vae/config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="takes in 8 channels, and diffusers' inpainting draws with 4 or 9 alone"):
        check_drawing(find(str(model)))


@pytest.mark.parametrize("what", CHANGED)
def test_a_unet_of_another_pipeline_is_told(what: str, tmp_path: Path) -> None:
    name, changes, words = CHANGED[what]
    with pytest.raises(ModelError, match=words):
        setup(families.pipeline(KINDS[name], tmp_path / "model", **changes))


def test_what_a_depth_pipeline_cannot_do_without(model: Model, tmp_path: Path) -> None:
    """Old models call the class of its feature extractor by a name that transformers no longer has."""
    name = "StableDiffusionDepth2ImgPipeline"
    copy = Path(shutil.copytree(model(name), tmp_path / "copy"))
    index = json.loads((copy / "model_index.json").read_text())
    index["feature_extractor"] = ["transformers", "DPTFeatureExtractor"]
    (copy / "model_index.json").write_text(json.dumps(index))
    assert torch.equal(draw(asdm_cli.load(str(copy), "cpu")), draw(asdm_cli.load(str(model(name)), "cpu")))
    shutil.rmtree(copy / "feature_extractor")
    with pytest.raises(
        ModelError, match=r"feature_extractor: model_index\.json names this component but its folder is m"
    ):
        asdm_cli.load(str(copy), "cpu")
