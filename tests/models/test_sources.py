"""What a recipe's `model:` may say: models of the hub, against a server that speaks its protocol, and its cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from asdm_cli.errors import AsdmError, ModelError, RunError
from asdm_cli.models.directory import find
from asdm_cli.models.metadata import history, made_from
from asdm_cli.models.sources import hub_name
from tests.hub import Hub, Repository, serving, use
from tests.typed import asdm

FLUX = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as made:
        use(made, tmp_path / "cache", monkeypatch)
        yield made


@pytest.fixture
def model(hub: Hub, tiny_pipeline: Path, tmp_path: Path) -> Path:
    """Served as org/tiny: the tiny pipeline, with what drawing does without."""
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "served"))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.copytree(folder / "clip", folder / "safety_checker")
    for name in (
        "README.md",
        "tiny.ckpt",
        "unet/diffusion_pytorch_model.bin",
        "unet/model.onnx",
        "vae/flax_model.msgpack",
    ):
        (folder / name).write_bytes(b"x" * 100)
    shutil.copy(
        folder / "vae/diffusion_pytorch_model.safetensors", folder / "vae/diffusion_pytorch_model.fp16.safetensors"
    )
    hub.repositories["org/tiny"] = Repository(folder)
    return folder


def test_what_is_needed_is_fetched_once(hub: Hub, model: Path, tmp_path: Path) -> None:
    found = find("org/tiny")
    assert (found.name, found.source, found.revision) == ("org/tiny", "org/tiny", Repository(model).commit)
    assert {*found.components} == {"unet", "vae", "text_encoder", "tokenizer", "scheduler", "clip"}
    fetched = hub.fetched()
    assert len(fetched) == len({*fetched})
    assert {Path(name).suffix for name in fetched} <= {".json", ".txt", ".safetensors"}
    assert not [name for name in fetched if "fp16" in name or "safety" in name]
    hub.asked.clear()
    assert find("org/tiny").path == found.path
    assert find(f"{hub.endpoint}/org/tiny").path == find("org/tiny@main").path == found.path
    assert not hub.asked
    assert find("org/tiny@v1").source == "org/tiny@v1"
    assert hub.fetched() == []  # another name of the same commit
    cached = tmp_path / "cache" / "models--org--tiny"
    assert (find(str(cached)).path, find(str(cached)).source) == (found.path, "org/tiny")
    assert (find(str(found.path)).name, find(str(found.path)).source) == ("org/tiny", f"org/tiny@{found.revision}")
    assert made_from(["org/tiny", "org/none", "runs/none"]).keys() == {"org/tiny"}


def test_a_path_wins_over_a_model_of_the_hub(
    hub: Hub, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_base / "model", tmp_path / "org/tiny")
    assert find("org/tiny").path == Path("org/tiny")
    with pytest.raises(ModelError, match=r"org/other: no such directory"):
        find("org/other")
    assert not hub.asked


def test_a_variant_is_fetched_where_there_is_nothing_else(hub: Hub, model: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(model / "unet", dtype=torch.float16, use_safetensors=True)
    (model / "unet/diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(model / "unet", variant="fp16", max_shard_size="300KB")
    assert find("org/tiny").weight_files("unet").variant == "fp16"
    fetched = [name.removeprefix("unet/") for name in hub.fetched() if name.startswith("unet/")]
    assert {*fetched} == {file.name for file in (model / "unet").iterdir() if "fp16" in file.name} | {"config.json"}
    assert len(fetched) >= 4


def test_a_snapshot_that_is_not_whole_is_completed(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the middle of the largest file, and again by an error of the server."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)
    large = "unet/diffusion_pytorch_model.safetensors"
    hub.breaks[large] = 1 << 17
    found = find("org/tiny")
    ranges = [(path, each) for _, path, each in hub.asked if each]
    assert len(ranges) == 1
    assert ranges[0][0].endswith(large)
    assert 0 < int(ranges[0][1].removeprefix("bytes=").removesuffix("-")) <= 1 << 17
    assert (found.path / large).read_bytes() == (model / large).read_bytes()
    (found.path / large).unlink()
    hub.broken = True
    with pytest.raises(RunError, match=r"org/tiny: .* does not give it \(.*500.*give the same command again"):
        find("org/tiny")
    hub.broken = False
    assert (find("org/tiny").path / large).is_file()


def test_what_the_hub_does_not_give_is_told_with_a_way_out(
    hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, settings in {"org/gated": {"gated": True}, "org/private": {"token": "hf_secret"}}.items():
        hub.repositories[name] = Repository(model, **settings)
    pickled = Path(shutil.copytree(model, tmp_path / "pickled"))
    for file in pickled.glob("unet/*.safetensors"):
        file.unlink()
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "v1.safetensors").write_text("")
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "model_index.json").write_text(json.dumps(FLUX))
    (tmp_path / "flux" / "transformer").mkdir()
    (tmp_path / "flux" / "transformer" / "diffusion_pytorch_model.safetensors").write_text("")
    hub.repositories |= {f"org/{name}": Repository(tmp_path / name) for name in ("pickled", "single", "flux")}
    for text, told in {
        "org/tinny": "no such directory here, and no such model on .*correct the name.*HF_TOKEN",
        "org/tiny@v7": "has no revision 'v7'; see .*/org/tiny/tree/main",
        "org/gated": "is given only to those who accept its terms; do that on .*/org/gated, then set HF_TOKEN",
        "org/private": "no such model .* if the model is private, set HF_TOKEN",
        "org/pickled": r"unet/diffusion_pytorch_model\.bin: pickled weights are not fetched",
        "org/single": r"neither model_index\.json nor config\.json; give .*/org/single/blob/main/v1\.safetensors",
        "org/flux": r"no DiT \(SD 3, FLUX, PixArt\)",
    }.items():
        with pytest.raises(ModelError, match=told) as caught:
            find(text)
        assert text.partition("@")[0].split("/")[1] in str(caught.value)
    assert not [name for name in hub.fetched() if name.endswith((".bin", ".safetensors"))]
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert find("org/private").name == "org/private"


@pytest.mark.usefixtures("model")
def test_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    found = find("org/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find("org/tiny").path == found.path
    with pytest.raises(ModelError, match=r"org/other: .*HF_HUB_OFFLINE forbids to fetch it; unset that"):
        find("org/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert find("org/tiny").path == found.path
    with pytest.raises(AsdmError, match=r"org/other: is no directory here, and http://127.0.0.1:9 does not give it"):
        find("org/other")


def test_as_it_is_typed(hub: Hub, model: Path, tmp_path: Path) -> None:
    """With the environment that people set, in a process of its own; then a verb, whose result says the name alone."""
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "asdm_cli", "show", "org/tiny"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "org/tiny" in done.stdout
    assert "MB from" in done.stderr
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"verb: prune\nmodel: org/tiny\nremove: base\nout: {tmp_path / 'run'}\n")
    told = asdm("prune", recipe, "-q")
    assert told.code == 0, told.err
    made = find(str(tmp_path / "run"))
    assert history(made)[0].items() >= {"source": "org/tiny", "revision": Repository(model).commit}.items()
    assert Repository(model).commit not in (tmp_path / "run/report.json").read_text()
    assert Repository(model).commit not in (tmp_path / "run/report.html").read_text()


TEXTS = {
    "org/name": ("org/name", ""),
    "org/na.me-1@refs/pr/3": ("org/na.me-1", "refs/pr/3"),
    "https://huggingface.co/org/name": ("org/name", ""),
    "https://huggingface.co/org/name/": ("org/name", ""),
    "https://hf.co/org/name/tree/fp16?x=1#y": ("org/name", "fp16"),
    "huggingface.co/org/name/tree/refs%2Fpr%2F3": ("org/name", "refs/pr/3"),
    "https://huggingface.co/org": None,
    "https://huggingface.co/org/name/blob/main/x.safetensors": None,
    "https://example.com/org/name": None,
    "models/mine.safetensors": None,
    "models/mine.ckpt": None,
    "a/b/c": None,
    "../name": None,
    "name": None,
    "/org/name": None,
    "~/name": None,
    "tests/none": None,
    "runs/first": None,
}


@pytest.mark.parametrize("text", TEXTS)
def test_which_texts_name_models_of_the_hub(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert hub_name(text) == TEXTS[text]


# --- wrong guesses ---

GUESSES: dict[str, tuple[str, str]] = {
    "a file of the pipeline": ("tiny/model_index.json", "is a part of a model; give tiny"),
    "weights of the pipeline": ("tiny/unet/diffusion_pytorch_model.safetensors", "is a part of a model; give tiny"),
    "a report of a run": ("runs/first/report.html", "is a part of a model; give runs/first"),
    "a component that is no UNet": ("tiny/vae", "of the class AutoencoderKL; only UNet2DConditionModel, .*; give tiny"),
    "a run of students": ("runs/several", "give one of those in it, as runs/several/students/small"),
    "a file in a folder beside a run": ("runs/loras/lora.safetensors", "holds a LoRA"),
    "a folder of models": (".", "give one of those in it, as (flux|tiny)"),
    "a typo in a path": ("runs/frist", "no such directory; give runs/first"),
    "a typo in a model of the hub": ("orgg/tiny", "no such directory here, and no such model on .*; correct the name"),
    "a file that is not there": (
        "models/mine.safetensors",
        "no such file; give a model directory, .* as ORG/NAME",
    ),
    "an address elsewhere": (
        "https://example.com/models/12",
        "is no model.s address on the hub; download what it names",
    ),
    "a pickle": (
        "old.ckpt",
        r"old\.ckpt: is a pickle, and loading one can run any code; .* python -c .* old\.safetensors",
    ),
    "a LoRA": (
        "lora.safetensors",
        "holds a LoRA: name it under `adapters` beside a model; give a file with a whole pipeline",
    ),
    "a VAE": ("vae.safetensors", "holds a VAE; give a file with a whole pipeline"),
    "a ControlNet": ("control.safetensors", "holds a ControlNet, which stands beside a model"),
    "a ControlNet's directory": ("control", "of the class ControlNetModel; only UNet2DConditionModel"),
    "a textual inversion": ("word.safetensors", "holds a textual inversion"),
    "FLUX in a file": ("flux.safetensors", r"holds no UNet but a transformer \(FLUX, SD 3\)"),
    "FLUX in a directory": ("flux", r"no DiT \(SD 3, FLUX, PixArt\)"),
    "a UNet without the rest": ("unet.safetensors", "holds a UNet without a VAE and a text encoder"),
    "a quantised model": ("model.gguf", "is a file, and of those only .safetensors may be models"),
}
NAMES = {
    "lora": "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
    "vae": "decoder.up.0.block.0.norm1.weight",
    "control": "control_model.input_blocks.0.0.weight",
    "word": "emb_params",
    "flux": "double_blocks.0.img_attn.proj.weight",
    "unet": "model.diffusion_model.input_blocks.0.0.weight",
}
"""A tensor that tells what a file is."""


@pytest.fixture
def place(tiny_pipeline: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where people keep what they have."""
    here = tmp_path / "here"
    (here / "runs").mkdir(parents=True)
    (here / "tiny").symlink_to(tiny_pipeline)
    (here / "runs/first").symlink_to(tiny_base)
    for name, tensor in NAMES.items():
        save_file({tensor: torch.zeros(4, 4, 3, 3)}, here / f"{name}.safetensors")
    shutil.copytree(tiny_pipeline, here / "runs/model")
    (here / "runs/several/students/small").mkdir(parents=True)
    (here / "runs/several/students/small/model").symlink_to(tiny_pipeline)
    (here / "runs/loras").mkdir()
    (here / "runs/loras/lora.safetensors").symlink_to(here / "lora.safetensors")
    for name in ("old.ckpt", "model.gguf"):
        (here / name).write_bytes(b"")
    for name, held in {
        "control/config.json": {"_class_name": "ControlNetModel"},
        "flux/model_index.json": FLUX,
    }.items():
        (here / name).parent.mkdir()
        (here / name).write_text(json.dumps(held))
    save_file({"conv_in.weight": torch.zeros(1)}, here / "control/diffusion_pytorch_model.safetensors")
    monkeypatch.chdir(here)
    return here


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("guess", GUESSES)
def test_a_wrong_guess_is_told_what_would_be_right(guess: str, hub: Hub) -> None:
    text, told = GUESSES[guess]
    with pytest.raises(ModelError, match=told):
        find(text)
    assert bool(hub.asked) == ("orgg" in text)


def test_a_unet_alone_names_the_model_around_it(place: Path) -> None:
    told = asdm("generate", "tiny/unet", "a fox", "--out", place / "out", "--steps", 1)
    assert (told.code, "draws nothing; give a whole pipeline directory, tiny" in told.text) == (2, True), told.text
