"""What a pipeline's parts must be for each other, told from configs before anything is loaded."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from asdm_cli.errors import ModelError
from asdm_cli.models.checked import FEEDS, check_drawing
from asdm_cli.models.load import PIPELINES, load_pipeline
from asdm_cli.models.source import find
from tests import tiny
from tests.foreign import models
from tests.typed import asdm

UNETS: dict[str, tuple[str, dict[str, Any]]] = {
    "inpainting": ("takes in 9 channels .* have 4, as UNets for inpainting do", {"in_channels": 9}),
    "pix2pix": ("takes in 8 channels .* as UNets for editing a picture", {"in_channels": 8}),
    "upscaler": ("takes in 7 channels .* as UNets for upscaling do", {"in_channels": 7}),
    "depth": ("takes in 5 channels .* as UNets for depth to image do", {"in_channels": 5}),
    "odd": ("takes in 6 channels where the latents of .*vae.config.json have 4", {"in_channels": 6}),
    "learnt variance": ("gives 8 channels where the latents", {"out_channels": 8}),
    "another encoder's": ("text is 16 wide .hidden_size., and the UNet of .* takes in 24", {"cross_attention_dim": 24}),
    "projected text": ("text is 16 wide .* takes in 24", {"encoder_hid_dim": 24}),
    "classes": ("takes in class_labels, which .* does not feed", {"num_class_embeds": 3}),
    "SDXL": ("takes in text_embeds, which .* takes in time_ids, which", {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 40}),
    "images": ("takes in image_embeds, which", {
        "addition_embed_type": "image", "encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 16}),
}  # fmt: skip
"""Of another pipeline, in the directory of one that draws from a text -> what is told."""
USES = ("eval", "bench", "inherit", "distill", "generate")


@pytest.mark.parametrize("what", UNETS)
def test_a_unet_of_another_pipeline_is_told_before_anything(what: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    words, changes = UNETS[what]
    model = _with_unet(tiny_pipeline, tmp_path / "model", **changes)
    use = USES[list(UNETS).index(what) % len(USES)]
    with pytest.raises(ModelError, match=words):
        check_drawing(find(str(model)))
    said = _used(use, str(model), tmp_path)
    assert said.code == 2, said.text
    assert re.search(words, said.text)


def test_parts_that_fit_pass(tiny_pipeline: Path, tmp_path: Path) -> None:
    check_drawing(find(str(tiny_pipeline)))
    for changes in ({"encoder_hid_dim": 16}, {"time_cond_proj_dim": 8}, {"attention_type": "gated"}):
        check_drawing(find(str(_with_unet(tiny_pipeline, tmp_path / str(len(list(tmp_path.iterdir()))), **changes))))


def test_what_training_does_not_feed(tiny_pipeline: Path, tmp_path: Path) -> None:
    model = _with_unet(tiny_pipeline, tmp_path / "model", time_cond_proj_dim=8)
    with pytest.raises(ModelError, match="takes in timestep_cond, which training does not feed; it was distilled"):
        check_drawing(find(str(model)), training=True)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("vae", {"latent_channels": 16}, "takes in 4 channels where the latents of .*vae.* have 16"),
        ("text_encoder_2", {"hidden_size": 24}, r"text is 16 \+ 24 wide"),
        (
            "text_encoder_2",
            {"projection_dim": 8},
            "pooled text is 8 wide .*, and beside 6 sizes .* takes in 16",
        ),
    ],
)
def test_parts_of_sdxl(file: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = models.directory("koala-1b", models.parts(tmp_path / "parts"), tmp_path / "model")
    check_drawing(find(str(model)))
    config = model / file / "config.json"
    held = json.loads(config.read_text())
    config.unlink()
    config.write_text(json.dumps({**held, **changes}))
    with pytest.raises(ModelError, match=words):
        check_drawing(find(str(model)))


def test_the_refiner_does_not_draw_as_a_base(tmp_path: Path) -> None:
    """It takes in five numbers beside a pooled text of the same width."""
    parts = models.parts(tmp_path / "parts")
    model = models.directory("sdxl-refiner", parts, tmp_path / "model", _class_name=models.XL)
    with pytest.raises(ModelError, match=r"pooled text is 16 wide .* takes in 12"):
        check_drawing(find(str(model)))


def test_everything_that_draws_is_fed() -> None:
    assert FEEDS.keys() == PIPELINES.keys()


def test_a_safety_checker_that_was_not_downloaded_is_left_out(tiny_pipeline: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    file = model / "model_index.json"
    named = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), **named}))
    (model / "safety_checker").mkdir()
    (model / "safety_checker/config.json").write_text("{}")  # without its weights
    recipe = {"verb": "prune", "model": str(model), "remove": "mid", "out": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = asdm("prune", tmp_path / "recipe.yaml")
    assert said.code == 0, said.err
    assert said.text.count("safety_checker and feature_extractor: not downloaded; left out") == 1
    written = json.loads((tmp_path / "run/model/model_index.json").read_text())
    assert (written["safety_checker"], written["feature_extractor"]) == ([None, None], [None, None])
    assert not (tmp_path / "run/model/safety_checker").exists()
    pipe: Any = load_pipeline(find(str(model)), torch.device("cpu"), torch.float32)
    assert (pipe.safety_checker, pipe.feature_extractor) == (None, None)
    assert json.loads(file.read_text())["safety_checker"] == named["safety_checker"]


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"], "unet": None},
         "a FluxPipeline has no UNet; only UNet2DConditionModel, .*: no DiT .SD 3, FLUX, PixArt."),
        ({"unet": ["diffusers", "UNetMotionModel"]}, "its UNet is of the class UNetMotionModel; only UNet2DCond"),
    ],
)  # fmt: skip
def test_models_without_such_a_unet_are_told_by_their_class(
    index: dict[str, Any], words: str, tiny_pipeline: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    if "transformer" in index:
        (model / "unet").rename(model / "transformer")
    file = model / "model_index.json"
    held = {**json.loads(file.read_text()), **index}
    file.write_text(json.dumps({key: value for key, value in held.items() if value is not None}))
    with pytest.raises(ModelError, match=words):
        find(str(model))


def _with_unet(source: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(source, target)
    shutil.rmtree(target / "unet")
    tiny.unet(tiny.shape("sd15", **changes)).save_pretrained(target / "unet")
    return target


def _used(use: str, model: str, folder: Path) -> Any:
    if use == "generate":
        return asdm("generate", model, "x", "--out", folder / "out", "--steps", 1, "-q", "--device", "cpu")
    one = [{"name": "a", "model": model}]
    recipes: dict[str, dict[str, Any]] = {
        "eval": {"models": one, "metrics": ["psnr"], "steps": 2, "limit": 2, "device": "cpu"},
        "bench": {"models": one, "steps": 2, "device": "cpu"},
        "inherit": {"model": model, "plan": {"preset": "deepcache"}, "steps": 2, "limit": 2, "device": "cpu"},
        "distill": {"teacher": model, "students": [{"name": "s", "model": model}], "steps": 1, "device": "cpu"},
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({"verb": use, **recipes[use], "out": str(folder / "out")}, width=1000))
    return asdm(use, file, "--dry-run", "-q")
