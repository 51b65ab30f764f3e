"""Model directories: found by path or name, and everything dangerous or broken in them refused by file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from asdm_cli.errors import ModelError
from asdm_cli.models.directory import find
from asdm_cli.models.load import load_pipeline
from asdm_cli.models.write import assemble_directory
from asdm_cli.recipe.verbs import PruneRecipe
from asdm_cli.verbs.prune import plan as prune


def change(file: Path, **changes: Any) -> None:
    held = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in held.items() if value is not None}))


def test_a_pipeline_directory(tiny_pipeline: Path) -> None:
    model = find(str(tiny_pipeline))
    assert (model.path, model.name, model.is_pipeline) == (tiny_pipeline, "tiny", True)
    assert set(model.components) == {"unet", "vae", "text_encoder", "tokenizer", "scheduler", "clip"}
    assert model.config("unet")["_class_name"] == "UNet2DConditionModel"
    assert model.config("scheduler")["_class_name"] == "DDIMScheduler"
    assert [file.name for file in model.weights("text_encoder")] == ["model.safetensors"]


def test_a_run_directory_is_known_by_its_own_name(tiny_pipeline: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "run-7" / "model")
    model = find(str(tmp_path / "run-7"))
    assert (model.path, model.name) == (tmp_path / "run-7" / "model", "run-7")


def test_a_bare_unet(tiny_pipeline: Path) -> None:
    model = find(str(tiny_pipeline / "unet"))
    assert (model.is_pipeline, model.components) == (False, {"unet": tiny_pipeline / "unet"})
    with pytest.raises(ModelError, match="has no component 'vae'"):
        model.component("vae")
    with pytest.raises(ModelError, match=r"of the class AutoencoderKL; only UNet2DConditionModel, .* is supported"):
        find(str(tiny_pipeline / "vae"))


def test_what_is_no_model_directory_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    faults = {"nowhere": "no such directory", "file": "is a file", "empty": "is it a model directory"}
    for name, fault in faults.items():
        with pytest.raises(ModelError, match=fault):
            find(str(tmp_path / name))


NO_CODE = "no code from a model directory"
INDICES: list[tuple[dict[str, Any], str]] = [
    ({"unet": ["my_module", "MyUNet"]}, NO_CODE),
    ({"unet": ["os", "system"]}, NO_CODE),
    ({"unet": [["diffusers"], "UNet2DConditionModel"]}, NO_CODE),
    ({"../other": ["diffusers", "AutoencoderKL"]}, "no component of this name is known"),
    ({"..": ["diffusers", "AutoencoderKL"]}, "no component of this name is known"),
    ({"_class_name": ["pipeline", "Mine"]}, "custom pipelines are never run"),
    ({"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "its folder is missing"),
    ({"text_encoder": ["transformers", "BertModel"]}, r"text_encoder is a transformers\.BertModel, and only"),
    ({"scheduler": ["diffusers", "utils"]}, r"scheduler is a diffusers\.utils, and only"),
    ({"scheduler": ["diffusers", "AutoencoderKL"]}, r"scheduler is a diffusers\.AutoencoderKL, and only"),
    ({"vae": ["diffusers", ["AutoencoderKL"]]}, r"vae is a .*, and only"),
    ({"transformer": ["diffusers", "FluxTransformer2DModel"], "unet": None}, r"no DiT \(SD 3, FLUX, PixArt\)"),
    ({"unet": ["diffusers", "UNetMotionModel"]}, "here: diffusers.UNet2DConditionModel, asdm_cli.ExpertUNet"),
]


@pytest.mark.parametrize(("changes", "fault"), INDICES)
def test_an_index_that_asks_for_too_much(changes: dict[str, Any], fault: str, copy: Path) -> None:
    change(copy / "model_index.json", **changes)
    with pytest.raises(ModelError, match=fault):
        find(str(copy))


CODE = {
    "text_encoder/modeling.py": "raise SystemExit",
    "pipeline.py": "raise SystemExit",
    "text_encoder/config.json": '{"auto_map": {"AutoModel": "modeling.Mine"}}',
    "tokenizer/tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["words.Mine", null]}}',
    "scheduler/processor_config.json": '{"auto_map": {"AutoProcessor": "mine.Mine"}}',
    "clip/config.json": '{"auto_map": {"AutoModel": "other/repo--modeling.Mine"}}',
    "text_encoder/adapter_config.json": '{"base_model_name_or_path": "elsewhere"}',
}


@pytest.mark.parametrize("file", CODE)
def test_what_brings_code_is_refused(file: str, copy: Path) -> None:
    (copy / file).write_text(CODE[file])
    with pytest.raises(ModelError, match=r"is never run|is of an adapter") as caught:
        find(str(copy))
    assert str(caught.value).startswith(str(copy / file))


PLACES = ["unet", "clip", "model_index.json", "unet/config.json", "vae/diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize("place", PLACES)
def test_a_link_that_leaves(place: str, copy: Path, tmp_path: Path) -> None:
    shutil.move(copy / place, tmp_path / "elsewhere")
    (copy / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="is a link that leaves"):
        find(str(copy)).config("unet")
    (copy / place).unlink()
    (copy / place).symlink_to(Path(place).name)
    if place != "clip":  # what is no folder is no clip
        with pytest.raises(ModelError):
            find(str(copy)).config("unet")


def test_a_snapshot_of_the_hub_s_cache(copy: Path, tmp_path: Path) -> None:
    """Its files are links to what lies beside it under the names of digests."""
    cache = tmp_path / "models--someone--sd"
    snapshot = cache / "snapshots" / "0a1b"
    (cache / "blobs").mkdir(parents=True)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    for number, file in enumerate(files):
        shutil.move(file, cache / "blobs" / str(number))
        link = snapshot / file.relative_to(copy)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(cache / "blobs" / str(number), link.parent))
    assert len(files) >= 8
    assert "unet" in find(str(snapshot)).components
    assert find(str(snapshot / "unet")).config("unet") == find(str(snapshot)).config("unet")
    assert prune(PruneRecipe(verb="prune", model=str(snapshot), remove="base", out=str(tmp_path / "run"))).kept.tensors
    (tmp_path / "elsewhere").write_text("{}")
    (snapshot / "vae/config.json").unlink()
    (snapshot / "vae/config.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="is a link that leaves"):
        find(str(snapshot))


@pytest.mark.parametrize("component", ["unet", "text_encoder", "clip"])
def test_pickles_are_refused_and_beside_safetensors_do_not_matter(component: str, copy: Path) -> None:
    file = next((copy / component).glob("*.safetensors"))
    file.with_suffix(".bin").write_bytes(b"")
    assert find(str(copy)).weights(component) == [file]
    file.unlink()
    with pytest.raises(ModelError, match="safe_serialization=True") as caught:
        find(str(copy))
    assert file.with_suffix(".bin").name in str(caught.value)


def test_what_drawing_does_without_may_be_missing(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("asdm_cli.models.directory.note", told.append)
    named = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    }
    change(copy / "model_index.json", **named)
    (copy / "safety_checker").mkdir()
    (copy / "safety_checker/config.json").write_text("{}")  # without its weights
    for _ in range(2):
        model = find(str(copy))
    missing = "safety_checker and feature_extractor and image_encoder: not downloaded; left out"
    assert [missing in each for each in told] == [True]
    assemble_directory(model, tmp_path / "made")
    written = json.loads((tmp_path / "made/model_index.json").read_text())
    assert [written[name] for name in named] == [[None, None]] * 3
    assert not (tmp_path / "made/safety_checker").exists()
    pipe: Any = load_pipeline(model, torch.device("cpu"), torch.float32)
    assert (pipe.safety_checker, pipe.feature_extractor, pipe.image_encoder) == (None, None, None)
