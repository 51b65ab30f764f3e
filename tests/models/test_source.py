"""Model directories: found by path or name, and everything dangerous or broken in them refused by file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asdm_cli.errors import ModelError
from asdm_cli.models.classes import KNOWN, check_class
from asdm_cli.models.source import INDEX, find
from asdm_cli.recipe.verbs import PruneRecipe
from asdm_cli.verbs.prune import plan as prune


@pytest.fixture
def copy(tiny_pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "copy"))


def _index(folder: Path, **changes: Any) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


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
    assert not model.is_pipeline
    assert model.components == {"unet": tiny_pipeline / "unet"}
    assert set(model.index) == {"unet"}
    with pytest.raises(ModelError, match="has no component 'vae'"):
        model.component("vae")


def test_finding_a_model_imports_no_torch(tiny_pipeline: Path) -> None:
    code = (
        "import sys; from asdm_cli.models.source import find; "
        f"find({str(tiny_pipeline)!r}).config('unet'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == "False"


def test_what_is_no_model_directory_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    faults = {"nowhere": "no such directory", "file": "is a file", "empty": "is it a model directory"}
    for name, fault in faults.items():
        with pytest.raises(ModelError, match=fault):
            find(str(tmp_path / name))


def test_a_vae_is_no_unet(tiny_pipeline: Path) -> None:
    with pytest.raises(ModelError, match=r"of the class AutoencoderKL; only UNet2DConditionModel, .* is supported"):
        find(str(tiny_pipeline / "vae"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '"unet"'])
def test_an_index_that_cannot_be_read(copy: Path, text: str) -> None:
    (copy / "model_index.json").write_text(text)
    with pytest.raises(ModelError, match=r"model_index\.json: "):
        find(str(copy))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"unet": ["my_module", "MyUNet"]}, "code from a model directory is never run"),
        ({"unet": ["os", "system"]}, "code from a model directory is never run"),
        ({"unet": [["diffusers"], "UNet2DConditionModel"]}, "code from a model directory is never run"),
        ({"../other": ["diffusers", "AutoencoderKL"]}, "not the plain name"),
        ({"/etc": ["diffusers", "AutoencoderKL"]}, "not the plain name"),
        ({"..": ["diffusers", "AutoencoderKL"]}, "not the plain name"),
        ({"_class_name": ["pipeline", "Mine"]}, "custom pipelines are never run"),
        ({"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}, "its folder is missing"),
        ({"text_encoder": ["transformers", "AutoModel"]}, r"text_encoder is a transformers\.AutoModel, and only"),
        ({"text_encoder": ["transformers", "BertModel"]}, r"text_encoder is a transformers\.BertModel, and only"),
        ({"scheduler": ["diffusers", "utils"]}, r"scheduler is a diffusers\.utils, and only"),
        ({"scheduler": ["diffusers", "AutoencoderKL"]}, r"scheduler is a diffusers\.AutoencoderKL, and only"),
        ({"vae": ["diffusers", ["AutoencoderKL"]]}, r"vae is a .*, and only"),
        ({"helper": ["diffusers", "AutoencoderKL"]}, "no component of this name is known"),
    ],
)
def test_an_index_that_asks_for_too_much(copy: Path, changes: dict[str, Any], fault: str) -> None:
    _index(copy, **changes)
    with pytest.raises(ModelError, match=fault):
        find(str(copy))


def test_the_safety_checker_of_old_checkpoints_is_known(copy: Path) -> None:
    shutil.copytree(copy / "clip", copy / "safety_checker")
    _index(copy, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert "safety_checker" in find(str(copy)).components


PIPELINES = {
    "SD 2.1 unCLIP": {
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "image_noising_scheduler": ["diffusers", "DDPMScheduler"],
        "image_normalizer": ["stable_diffusion", "StableUnCLIPImageNormalizer"],
    },
    "x4 upscaler": {"low_res_scheduler": ["diffusers", "DDPMScheduler"], "scheduler": ["diffusers", "DDIMScheduler"]},
    "depth": {
        "depth_estimator": ["transformers", "DPTForDepthEstimation"],
        "feature_extractor": ["transformers", "DPTFeatureExtractor"],
    },
    "XL": {
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    },
    "inpainting": {"vae": ["diffusers", "AsymmetricAutoencoderKL"], "scheduler": ["diffusers", "PNDMScheduler"]},
    "of old": {
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    },
}
"""What published pipelines' indices name beside what all name."""


def test_the_components_of_the_field_are_known() -> None:
    for parts in PIPELINES.values():
        for name, entry in parts.items():
            check_class(name, ".".join(entry), Path(INDEX))


def test_known_classes_are_classes_of_their_libraries() -> None:
    """But for what transformers has no more, and what diffusers keeps elsewhere."""
    import diffusers
    import transformers

    named = {
        kind for kinds in KNOWN.values() for kind in kinds if not kind.startswith(("asdm_cli", "stable_diffusion"))
    }
    gone = {kind for kind in named if kind.endswith("FeatureExtractor")}
    libraries = {"diffusers": diffusers, "transformers": transformers}
    assert len(named - gone) >= 50
    for kind in named - gone:
        library, name = kind.split(".")
        assert isinstance(getattr(libraries[library], name), type), kind


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("text_encoder/modeling.py", "raise SystemExit"),
        ("pipeline.py", "raise SystemExit"),
        ("text_encoder/config.json", '{"auto_map": {"AutoModel": "modeling.Mine"}}'),
        ("tokenizer/tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["words.Mine", null]}}'),
        ("scheduler/processor_config.json", '{"auto_map": {"AutoProcessor": "mine.Mine"}}'),
        ("clip/config.json", '{"auto_map": {"AutoModel": "other/repo--modeling.Mine"}}'),
        ("text_encoder/adapter_config.json", '{"base_model_name_or_path": "elsewhere"}'),
    ],
)
def test_what_brings_code_is_refused(copy: Path, file: str, text: str) -> None:
    (copy / file).write_text(text)
    with pytest.raises(ModelError, match=r"is never run|is of an adapter") as caught:
        find(str(copy))
    assert str(caught.value).startswith(str(copy / file))


@pytest.mark.parametrize("component", ["unet", "clip"])
def test_a_component_behind_a_link_that_leaves(copy: Path, tmp_path: Path, component: str) -> None:
    shutil.move(copy / component, tmp_path / "elsewhere")
    (copy / component).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="is a link that leaves"):
        find(str(copy))


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_a_file_behind_a_link_that_leaves(copy: Path, tmp_path: Path, file: str) -> None:
    shutil.move(copy / file, tmp_path / "elsewhere")
    (copy / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="is a link that leaves"):
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
    made = prune(PruneRecipe(verb="prune", model=str(snapshot), remove="base", out=str(tmp_path / "run")))
    assert made.kept.tensors
    (tmp_path / "elsewhere").write_text("{}")
    (snapshot / "vae/config.json").unlink()
    (snapshot / "vae/config.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="is a link that leaves"):
        find(str(snapshot))


def test_a_link_that_goes_in_circles(copy: Path) -> None:
    (copy / "unet" / "config.json").unlink()
    (copy / "unet" / "config.json").symlink_to("config.json")
    with pytest.raises(ModelError):
        find(str(copy)).config("unet")


@pytest.mark.parametrize("component", ["unet", "text_encoder", "clip"])
def test_pickled_weights_are_refused(copy: Path, component: str) -> None:
    file = next((copy / component).glob("*.safetensors"))
    os.rename(file, file.with_suffix(".bin"))
    with pytest.raises(ModelError, match="safe_serialization=True") as caught:
        find(str(copy))
    assert file.with_suffix(".bin").name in str(caught.value)


def test_pickles_beside_safetensors_do_not_matter(copy: Path) -> None:
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    assert find(str(copy)).weights("unet")[0].suffix == ".safetensors"
