"""Models of the field, driven through every verb: what works, and what is refused in which words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import asdm_cli
from asdm_cli.compare import costs
from asdm_cli.errors import ModelError
from asdm_cli.models.pipelines import PIPELINES
from asdm_cli.patches.base import stats_of
from tests import tiny
from tests.data import tars
from tests.foreign import models
from tests.foreign.models import KINDS
from tests.typed import asdm

WORKS = ""
VERBS = ("prune", "assemble", "condconv-expand", "bench", "inherit", "switch", "eval", "distill", "in Python")

DRAWING = ("inherit", "switch", "distill")
"""Verbs that take long, and whose dry run says first what would stop them."""


def refused(reason: str, *verbs: str) -> dict[str, str]:
    return dict.fromkeys(verbs, reason)


def of_kind(kind: str) -> dict[str, str]:
    """Surgery and UNet calls work on every pipeline; these verbs draw, with those of the table, from their `inputs`."""
    how = f"is a {kind}, which draws from a picture; name shards or a folder of pictures with captions"
    drawn = refused(how if kind in PIPELINES else f"is a {kind}; whole pictures need", "inherit", "switch", "eval")
    return drawn | refused(f"is a {kind}; whole pictures need a StableDiffusionPipeline or", "distill")


ADAPTER = "holds an image-prompt adapter .* call pipe.unload_ip_adapter.., and save it again"
EXPECTED: dict[str, dict[str, str]] = {
    "bk-tiny": {},
    "gligen-sd-class": {},
    "ip-saved": refused(ADAPTER, *VERBS[:-1]),
    "kandinsky22": refused("down_block_types 'ResnetDownsampleBlock2D' is not supported", *VERBS),
    "lcm-dreamshaper": refused("takes in timestep_cond, which training does not feed; it was distilled to", "distill"),
    "marigold": of_kind("MarigoldDepthPipeline"),
    "playground-v25": refused("EDMDPMSolverMultistepScheduler, without betas: only models whose noise", "distill")
    | refused(
        "EDMDPMSolverMultistepScheduler does not tell a UNet timesteps, which experts share out", "condconv-expand"
    ),
    "sd-x4-upscaler": of_kind("StableDiffusionUpscalePipeline"),
    "sd15-inpaint": of_kind("StableDiffusionInpaintPipeline"),
    "sd21-unclip": of_kind("StableUnCLIPImg2ImgPipeline"),
    "sdxl-refiner": of_kind("StableDiffusionXLImg2ImgPipeline")
    | refused("strength: 0.3 of 2 steps are none; raise `strength` or", "inherit", "switch", "eval"),
    "ssd1b": {},
    "uncond-unet2d": refused("is a .*UNet2DModel[;,] .*only .*UNet2DConditionModel", *VERBS),
}
"""Model -> verb -> the words of the refusal; what is not named works."""
REMOVED = {"bk-tiny": ["down.2.*.attn", "up.0.*.attn"]}
"""What is pruned where there is no mid block."""
EVERY_OTHER = {"rules": [{"nodes": "up.0", "schedule": {"mode": "uniform", "interval": 2}}]}
FEW = {"steps": 2, "device": "cpu", "metrics": ["psnr"], "bootstrap": 20}
COMPARED = {**FEW, "fewer_steps": [], "repeats": 1, "warmups": 1}
RECIPES: dict[str, Callable[[str, str, Path], dict[str, Any]]] = {
    "condconv-expand": lambda model, _, __: {"model": model, "expand": {"experts": 2, "at": "down.0"}},
    "bench": lambda model, other, _: {
        "models": [{"name": "a", "model": model}, {"name": "b", "model": other}],
        "images": False, "repeats": 1, "warmups": 1, "batches": [1], "device": "cpu"
    },
    "inherit": lambda model, _, shard: {"model": model, "plan": EVERY_OTHER, **COMPARED, **_prompts(shard)},
    "switch": lambda model, other, shard: {
        "unets": {"a": {"model": model}, "b": {"model": other}},
        "by": "step", "parts": [{"unet": "b", "until": 1}, {"unet": "a"}], **COMPARED, **_prompts(shard)
    },
    "eval": lambda model, other, shard: {
        "models": [{"name": "a", "model": model}, {"name": "b", "model": other}], **FEW, **_prompts(shard)
    },
    "distill": lambda model, other, shard: {
        "teacher": model, "students": [{"name": "s", "model": other}], "steps": 2, "batch": 2, "device": "cpu",
        "precision": "float32", "losses": [{"kind": "output"}, {"kind": "task"}],
        "data": {"train": str(shard), "cache_folder": str(shard.parent / "cache")}
    },
}  # fmt: skip


def _prompts(shard: Path) -> dict[str, str]:
    return {"prompts": str(shard.parent / "prompts.txt")}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shard")
    (folder / "prompts.txt").write_text("a fox\nan owl\n")
    return tars.write(folder / "train.tar", tars.samples(*range(2)))


@pytest.mark.parametrize("name", KINDS)
def test_every_verb_works_on_a_model_of_the_field_or_says_why_not(
    name: str, parts: Path, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "in_fresh_process", lambda *_: (1, 1))  # in a process of its own, which takes seconds
    model = models.directory(name, parts, tmp_path / "model")
    found = {verb: _outcome(verb, name, model, shard, tmp_path) for verb in VERBS}
    expected = dict.fromkeys(VERBS, WORKS) | EXPECTED[name]
    wrong = [verb for verb in VERBS if not _as_told(found[verb], expected[verb])]
    assert not wrong, {verb: found[verb] for verb in wrong}


def _as_told(found: str, expected: str) -> bool:
    return bool(re.search(expected, found)) if expected else not found


def _outcome(verb: str, name: str, model: Path, shard: Path, folder: Path) -> str:
    """Nothing where it works, else the refusal."""
    if verb == "in Python":
        return _in_python(name, model)
    pruned = folder / "prune" / "model"
    other = str(pruned if pruned.is_dir() else model)
    if verb == "prune":
        recipe: dict[str, Any] = {"model": str(model), "remove": REMOVED.get(name, "mid")}
    elif verb == "assemble":
        recipe = _assembly(name, str(model))
    else:
        recipe = RECIPES[verb](str(model), other, shard)
    file = folder / f"{verb}.yaml"
    file.write_text(yaml.safe_dump({"verb": verb, **recipe, "out": str(folder / verb)}, width=1000))
    # what is refused is refused by a dry run; and what inherit draws and judges, eval does
    dry = verb == "eval" or (verb in DRAWING and verb in EXPECTED[name])
    said = asdm(verb, file, *(["--dry-run"] if dry else []), "-q")
    assert "bug" not in said.text
    return f"exit {said.code}: {said.text}" if said.code else WORKS


def _assembly(name: str, model: str) -> dict[str, Any]:
    held = models.config(name)
    levels = ["a"] * (len(held["block_out_channels"]) - 1) + ["b"]
    mid = "none" if held["mid_block_type"] is None else "a"
    return {"donors": {"a": model, "b": model}, "levels": levels, "mid": mid}


PICTURE = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
SAFE = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
VISION = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, patch_size=8)
VISION.image_size, VISION.projection_dim = 8, models.HALF
BESIDE: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": SAFE,
    "StableDiffusionInpaintPipeline": SAFE,
    "StableDiffusionUpscalePipeline": {"low_res_scheduler": diffusers.DDPMScheduler()},
    "StableDiffusionXLImg2ImgPipeline": {"requires_aesthetics_score": True, "add_watermarker": False},
    "StableUnCLIPImg2ImgPipeline": {
        "image_normalizer": StableUnCLIPImageNormalizer(16), "image_noising_scheduler": diffusers.DDPMScheduler(),
        "image_encoder": CLIPVisionModelWithProjection(VISION), "feature_extractor": None,
    },
}  # fmt: skip
"""What a pipeline has besides, and what it does without here."""
GIVEN: dict[str, dict[str, Any]] = {
    "StableDiffusionInpaintPipeline": {"mask_image": (PICTURE[:, :1] > 0.5).float(), "height": 32, "width": 32},
    "StableDiffusionXLImg2ImgPipeline": {"strength": 1.0},
    "StableUnCLIPImg2ImgPipeline": {"image": None, "image_embeds": torch.ones(1, 16), "height": 32, "width": 32},
    "MarigoldDepthPipeline": {
        "prompt": None,
        "ensemble_size": 1,
        "processing_resolution": 0,
        "match_input_resolution": False,
    },
}
"""What its call is given besides a text and a picture."""


def _pipeline(name: str, model: Path) -> Any:
    kind = KINDS[name].pipeline
    if kind in ("KandinskyV22Pipeline", "DDPMPipeline"):
        unet, scheduler = models.unet(name), diffusers.DDPMScheduler()
        movq = {} if kind == "DDPMPipeline" else {"movq": diffusers.VQModel()}
        return getattr(diffusers, kind)(unet=unet, scheduler=scheduler, **movq)
    pipe = getattr(diffusers, kind).from_pretrained(model, **BESIDE.get(kind, {}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _call(name: str) -> dict[str, Any]:
    kind = KINDS[name].pipeline
    given: dict[str, Any] = {"prompt": "a fox", "image": PICTURE, **GIVEN.get(kind, {})}
    if kind in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        given = {"prompt": "a fox", "height": 32, "width": 32}
    return {key: value for key, value in given.items() if value is not None}


def _in_python(name: str, model: Path) -> str:
    """A plan on a pipeline of the class that the model is of, which draws."""
    pipe = _pipeline(name, model)
    try:
        with asdm_cli.inherit(pipe, EVERY_OTHER):
            pipe(**_call(name), num_inference_steps=3, output_type="np", generator=torch.Generator().manual_seed(0))
            (reused,) = stats_of(pipe).reused.values()
    except ModelError as error:
        return str(error)
    assert reused[:2] == [frozenset(), frozenset({0})], reused
    return WORKS


@pytest.mark.parametrize("verb", ["prune", "assemble", "condconv-expand"])
def test_a_cost_that_nobody_can_count_is_left_out_and_the_work_goes_on(verb: str, tmp_path: Path) -> None:
    """Of a UNet whose config contradicts itself: a class beside the time, and no classes."""
    model = str(tmp_path / "model")
    tiny.unet(tiny.shape("sd15", class_embeddings_concat=True)).save_pretrained(model)
    recipes: dict[str, dict[str, Any]] = {
        "prune": {"model": model, "remove": "mid"},
        "assemble": {"donors": {"a": model, "b": model}, "levels": ["a", "a", "a", "b"], "mid": "a"},
        "condconv-expand": {"model": model, "expand": {"experts": 2, "at": "mid"}},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"verb": verb, **recipes[verb], "out": str(tmp_path / "run")}, width=1000))
    said = asdm(verb, file)
    assert said.code == 0, said.err
    assert "what a call costs is not known" in said.text
    assert "GMACs" not in said.text
    assert (tmp_path / "run/model/config.json").is_file()
