"""Text encoders, VAEs and CLIPs hold what their configs promise, and numbers: told from headers, by every verb."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from asdm_cli.data.encoder import Encoder
from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.checked import check_unet
from asdm_cli.models.load import load_clip, load_pipeline, load_unet
from asdm_cli.models.parts import check_clip, check_parts
from asdm_cli.models.source import find
from asdm_cli.sampling.generate import SamplingSettings, draw
from asdm_cli.unet.weights import WEIGHTS
from asdm_cli.unet.weights import WEIGHTS
from tests.hardening.test_broken_models import RECIPES
from tests.typed import asdm

CPU = torch.device("cpu")
FILES = {"vae": WEIGHTS, "text_encoder": "model.safetensors", "clip": "model.safetensors"}


@pytest.fixture
def copy(tiny_pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "copy", copy_function=os.link))


def change(model: Path, part: str, how: Callable[[dict[str, Tensor]], object]) -> Path:
    file = model / part / FILES.get(part, WEIGHTS)
    tensors = load_file(file)
    how(tensors)
    file.unlink()
    save_file(tensors, file, {"format": "pt"})
    return model


def _first(tensors: dict[str, Tensor]) -> str:
    return next(name for name in sorted(tensors) if name.endswith("weight") and tensors[name].dim() > 1)


FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda held: held.pop(_first(held)), "the weights lack"),
    "more": (lambda held: held.update(odd=torch.zeros(1)), "odd has no place in the model"),
    "shape": (lambda held: held.update({_first(held): torch.zeros(3, 3)}), r"has the shape \[3, 3\] where"),
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
    vae, text = str(caught.value).splitlines()
    assert vae.startswith(str(copy / "vae"))
    assert text.startswith(str(copy / "text_encoder"))


@pytest.mark.parametrize("use", ["eval", "inherit", "switch, first", "bench", "teacher", "generate"])
def test_every_verb_that_reads_them_refuses(use: str, copy: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    change(copy, "text_encoder", FAULTS["missing"][0])
    if use == "generate":
        said = asdm("generate", copy, "x", "--out", tmp_path / "out", "--device", "cpu", "-q")
    else:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(json.dumps({**RECIPES[use](str(copy), str(tiny_pipeline)), "out": str(tmp_path / "out")}))
        said = asdm(json.loads(recipe.read_text())["verb"], recipe, "--dry-run", "-q")
    assert (said.code, said.out) == (2, "")
    assert f"{copy / 'text_encoder'}: the weights lack" in said.err


def test_a_clip_that_lacks_a_tensor_scores_nothing(copy: Path, tmp_path: Path) -> None:
    change(copy, "clip", FAULTS["missing"][0])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({**RECIPES["eval"](str(copy), ""), "out": str(tmp_path / "out")}))
    said = asdm("eval", recipe, "--dry-run", "-q")
    assert said.code == 2
    assert f"{copy / 'clip'}: the weights lack" in said.err


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
    change(
        copy,
        "text_encoder",
        lambda held: held.update({"text_model.embeddings.position_ids": torch.arange(16)[None]}),
    )
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
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").unlink()
    (copy / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", kind]}))
    pipe: Any = load_pipeline(find(str(copy)), CPU, torch.float32)
    ((_, drawn),) = draw(pipe, ["x"], [0], SamplingSettings(1, 1.0, None, 0))
    assert drawn.size == (32, 32)
    assert Encoder(pipe, 32).latents([numpy.asarray(drawn)]).shape == (1, 4, 8, 8)


@pytest.mark.parametrize("file", ["vae/config.json", "text_encoder/config.json"])
def test_a_billion_layers_are_not_built(file: str, copy: Path) -> None:
    held = json.loads((copy / file).read_text())
    (copy / file).unlink()
    key = next(key for key in held if "layers" in key)
    (copy / file).write_text(json.dumps({**held, key: 10**9}))
    with pytest.raises(ModelError, match=f"{key} is 1000000000, and the weights hold"):
        check_parts(find(str(copy)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["unet", *FILES])
def test_weights_that_are_no_numbers_are_refused(part: str, value: float, copy: Path) -> None:
    change(copy, part, lambda held: held[_first(held)].view(-1)[:1].fill_(value))
    with pytest.raises(ModelError, match="no finite numbers in float32") as caught:
        load_clip(find(str(copy))) if part == "clip" else load_pipeline(find(str(copy)), CPU, torch.float32)
    assert str(copy / part) in str(caught.value)


def test_weights_too_large_for_the_dtype_are_refused(copy: Path) -> None:
    change(copy, "unet", lambda held: held["conv_in.weight"].fill_(1e6))
    assert load_unet(find(str(copy)), CPU, torch.float32)
    with pytest.raises(ModelError, match="no finite numbers in float16"):
        load_unet(find(str(copy)), CPU, torch.float16)


def test_pictures_that_are_no_numbers_are_not_saved(tiny_pipeline: Path) -> None:
    pipe: Any = load_pipeline(find(str(tiny_pipeline)), CPU, torch.float32)
    pipe.vae.decoder.conv_out.bias.data[0] = float("nan")
    with pytest.raises(RunError, match="no numbers"):
        list(draw(pipe, ["x"], [0], SamplingSettings(1, 1.0, None, 0)))


def test_the_search_for_the_culprit_reads_no_pickle(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    tensors = load_file(copy / "vae" / WEIGHTS)
    (copy / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    (copy / "tokenizer" / "tokenizer.json").unlink()
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer"):
        load_pipeline(find(str(copy)), CPU, torch.float32)
    (copy / "vae" / WEIGHTS).unlink()
    save_file(tensors, copy / "vae" / "model.safetensors")
    with pytest.raises(ModelError, match=r"vae.*pickled weights are not read"):
        load_pipeline(find(str(copy)), CPU, torch.float32)


@pytest.mark.parametrize("limit", ["10GB", "300KB"])
def test_the_advice_about_variants_works(limit: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    """Of one file and of shards, of all components at once."""
    half = tmp_path / "half"
    DiffusionPipeline.from_pretrained(tiny_pipeline, dtype=torch.float16, use_safetensors=True).save_pretrained(
        half, variant="fp16", max_shard_size=limit
    )
    assert (len(list((half / "unet").glob("*fp16*.safetensors"))) > 1) == (limit == "300KB")
    with pytest.raises(ModelError, match="only the variant 'fp16' is there") as caught:
        find(str(half))
    advice = str(caught.value).partition("in Python: ")[2].replace("FOLDER", repr(str(tmp_path / "plain")))
    exec(advice, {"diffusers": diffusers, "torch": torch})
    made = find(str(tmp_path / "plain"))
    check_parts(made)
    assert check_unet(made).tensors["conv_in.weight"].dtype == "F16"
