"""A pipeline's parts hold what their configs promise, and fit each other: told from headers, by every verb."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from asdm_cli.data.encoder import Encoder
from asdm_cli.errors import ModelError
from asdm_cli.models.directory import check_clip, check_drawing, check_parts, find
from asdm_cli.models.load import load_clip, load_pipeline
from asdm_cli.unet.weights import WEIGHTS
from tests import tiny
from tests.foreign import models
from tests.hardening.uses import RECIPES
from tests.typed import asdm

CPU = torch.device("cpu")
FILES = {"vae": WEIGHTS, "text_encoder": "model.safetensors", "clip": "model.safetensors"}


@pytest.fixture
def copy(tiny_pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "copy", copy_function=os.link))


def said_by(use: str, model: Path, other: Path, folder: Path) -> Any:
    if use == "generate":
        return asdm("generate", model, "x", "--out", folder / "out", "--steps", 1, "--device", "cpu", "-q")
    recipe = {**RECIPES[use](str(model), str(other)), "out": str(folder / "out")}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, width=1000))
    return asdm(recipe["verb"], folder / "recipe.yaml", "--dry-run", "-q")


# --- what they are for each other ---

UNETS: dict[str, tuple[str, dict[str, Any]]] = {
    "inpainting": ("takes in 9 channels .* have 4, as UNets for inpainting do", {"in_channels": 9}),
    "pix2pix": ("takes in 8 channels .* as UNets for editing a picture", {"in_channels": 8}),
    "depth": ("takes in 5 channels .* as UNets for depth to image do", {"in_channels": 5}),
    "odd": ("takes in 6 channels where the latents of .*vae.config.json have 4", {"in_channels": 6}),
    "learnt variance": ("gives 8 channels where the latents", {"out_channels": 8}),
    "another encoder's": ("text is 16 wide .hidden_size., and the UNet of .* takes in 24", {"cross_attention_dim": 24}),
    "projected text": ("text is 16 wide .* takes in 24", {"encoder_hid_dim": 24}),
    "classes": ("takes in class_labels, which .* does not feed", {"num_class_embeds": 3}),
    "SDXL": ("(?s)takes in text_embeds, which .* takes in time_ids, which", {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 40}),
    "images": ("takes in image_embeds, which", {
        "addition_embed_type": "image", "encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 16}),
}  # fmt: skip
"""Of another pipeline, in the directory of one that draws from a text -> what is told."""
USES = ("eval", "bench", "inherit", "teacher", "generate")


def with_unet(source: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("unet"))
    tiny.unet(tiny.shape("sd15", **changes)).save_pretrained(target / "unet")
    return target


@pytest.mark.parametrize("what", UNETS)
def test_a_unet_of_another_pipeline_is_told_before_anything(what: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    words, changes = UNETS[what]
    model = with_unet(tiny_pipeline, tmp_path / "model", **changes)
    with pytest.raises(ModelError, match=words):
        check_drawing(find(str(model)))
    said = said_by(USES[list(UNETS).index(what) % len(USES)], model, tiny_pipeline, tmp_path)
    assert (said.code, bool(re.search(words, said.text))) == (2, True), said.text


def test_parts_that_fit_pass(tiny_pipeline: Path, tmp_path: Path) -> None:
    check_drawing(find(str(tiny_pipeline)))
    for changes in ({"encoder_hid_dim": 16}, {"time_cond_proj_dim": 8}, {"attention_type": "gated"}):
        check_drawing(find(str(with_unet(tiny_pipeline, tmp_path / next(iter(changes)), **changes))))
    with pytest.raises(ModelError, match="takes in timestep_cond, which training does not feed; it was distilled"):
        check_drawing(find(str(tmp_path / "time_cond_proj_dim")), training=True)


@pytest.mark.parametrize(
    ("name", "file", "changes", "words"),
    [
        ("ssd1b", "vae", {"latent_channels": 16}, "takes in 4 channels where the latents of .*vae.* have 16"),
        ("ssd1b", "text_encoder_2", {"hidden_size": 24}, r"text is 16 \+ 24 wide"),
        ("ssd1b", "text_encoder_2", {"projection_dim": 8}, "pooled text is 8 wide .* beside 6 sizes .* takes in 16"),
        ("sdxl-refiner", "vae", {}, r"pooled text is 16 wide .* takes in 12"),  # it takes in five numbers beside it
    ],
)
def test_parts_of_sdxl(name: str, file: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = models.directory(name, models.parts(tmp_path / "parts"), tmp_path / "model", _class_name=models.XL)
    if changes:
        check_drawing(find(str(model)))
        edit(model / file / "config.json", **changes)
    with pytest.raises(ModelError, match=words):
        check_drawing(find(str(model)))


# --- what they hold ---


def edit(file: Path, **changes: Any) -> None:
    held = json.loads(file.read_text())
    file.unlink()  # it may be a link
    file.write_text(json.dumps({**held, **changes}))


def change(model: Path, part: str, how: Callable[[dict[str, Tensor]], object]) -> Path:
    file = model / part / FILES.get(part, WEIGHTS)
    tensors = load_file(file)
    how(tensors)
    file.unlink()
    save_file(tensors, file, {"format": "pt"})
    return model


def first(tensors: dict[str, Tensor]) -> str:
    return next(name for name in sorted(tensors) if name.endswith("weight") and tensors[name].dim() > 1)


FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda held: held.pop(first(held)), "the weights lack"),
    "more": (lambda held: held.update(odd=torch.zeros(1)), "odd has no place in the model"),
    "shape": (lambda held: held.update({first(held): torch.zeros(3, 3)}), r"has the shape \[3, 3\] where"),
}


@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize("fault", FAULTS)
def test_parts_are_held_against_their_configs(part: str, fault: str, copy: Path) -> None:
    how, words = FAULTS[fault]
    change(copy, part, how)
    with pytest.raises(ModelError, match=words) as caught:
        check_clip(copy / "clip") if part == "clip" else check_parts(find(str(copy)))
    assert str(copy / part) in str(caught.value)


def test_all_parts_at_once(copy: Path) -> None:
    for part in ("vae", "text_encoder"):
        change(copy, part, FAULTS["missing"][0])
    with pytest.raises(ModelError) as caught:
        check_parts(find(str(copy)))
    assert [Path(line.partition(": ")[0]).name for line in str(caught.value).splitlines()] == ["vae", "text_encoder"]


@pytest.mark.parametrize("use", ["eval", "inherit", "switch, first", "bench", "teacher", "generate", "eval, clip"])
def test_every_verb_that_reads_them_refuses(use: str, copy: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    part = "clip" if "clip" in use else "text_encoder"
    change(copy, part, FAULTS["missing"][0])
    said = said_by(use.removesuffix(", clip"), copy, tiny_pipeline, tmp_path)
    assert (said.code, said.out) == (2, "")
    assert f"{copy / part}: the weights lack" in said.err


def test_names_of_old_files_are_known(copy: Path) -> None:
    """As the first releases have them: attention of the VAE, and positions that are no weights."""
    vae = AutoencoderKL.from_config({**find(str(copy)).config("vae"), "mid_block_add_attention": True})
    vae.save_pretrained(copy / "new")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        return next((name.replace(f".{new}.", f".{past}.") for new, past in old.items() if f".{new}." in name), name)

    tensors = {renamed(name): tensor for name, tensor in load_file(copy / "new" / WEIGHTS).items()}
    assert sum(".query." in name for name in tensors) == 4
    shutil.rmtree(copy / "vae")
    (copy / "new").rename(copy / "vae")
    save_file(tensors, copy / "vae" / WEIGHTS, {"format": "pt"})
    positions = {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    change(copy, "text_encoder", lambda held: held.update(positions))
    check_parts(find(str(copy)))


LEVELS = {"down": ("DownEncoderBlock2D",) * 3, "up": ("UpDecoderBlock2D",) * 3}
VAES: dict[str, Callable[[], Any]] = {
    "AutoencoderTiny": lambda: diffusers.AutoencoderTiny(
        **{f"{side}_block_out_channels": (8, 8, 8) for side in ("encoder", "decoder")},
        **{f"num_{side}_blocks": (1, 1, 1) for side in ("encoder", "decoder")},
    ),
    "AsymmetricAutoencoderKL": lambda: diffusers.AsymmetricAutoencoderKL(
        **{f"{side}_block_types": types for side, types in LEVELS.items()},
        **{f"{side}_block_out_channels": (8, 8, 16) for side in LEVELS},
        norm_num_groups=4,
    ),
}


@pytest.mark.parametrize("kind", VAES)
def test_other_vaes_of_the_family_draw_and_encode(kind: str, copy: Path) -> None:
    shutil.rmtree(copy / "vae")
    VAES[kind]().save_pretrained(copy / "vae")
    edit(copy / "model_index.json", vae=["diffusers", kind])
    pipe: Any = load_pipeline(find(str(copy)), CPU, torch.float32)
    drawn = pipe("x", num_inference_steps=1, output_type="np").images
    assert drawn.shape == (1, 32, 32, 3)
    assert Encoder(pipe, 32).latents([(drawn[0] * 255).astype("uint8")]).shape == (1, 4, 8, 8)


@pytest.mark.parametrize("file", ["vae/config.json", "text_encoder/config.json"])
def test_a_billion_layers_are_not_built(file: str, copy: Path) -> None:
    key = next(key for key in json.loads((copy / file).read_text()) if "layers" in key)
    edit(copy / file, **{key: 10**9})
    with pytest.raises(ModelError, match=f"{key} is 1000000000, and the weights hold"):
        check_parts(find(str(copy)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["unet", *FILES])
def test_weights_that_are_no_numbers_are_refused(part: str, value: float, copy: Path) -> None:
    change(copy, part, lambda held: held[first(held)].view(-1)[:1].fill_(value))
    with pytest.raises(ModelError, match="no finite numbers in float32") as caught:
        load_clip(find(str(copy))) if part == "clip" else load_pipeline(find(str(copy)), CPU, torch.float32)
    assert str(copy / part) in str(caught.value)


def test_the_search_for_the_culprit_reads_no_pickle(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    (copy / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    (copy / "tokenizer" / "tokenizer.json").unlink()
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer"):
        load_pipeline(find(str(copy)), CPU, torch.float32)
    (copy / "vae" / WEIGHTS).rename(copy / "vae" / "model.safetensors")
    with pytest.raises(ModelError, match=r"vae.*pickled weights are not read"):
        load_pipeline(find(str(copy)), CPU, torch.float32)
