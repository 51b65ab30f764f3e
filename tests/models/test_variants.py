"""Half-precision variants, in one file or in shards of either spelling: read as they are, written so that stock
diffusers finds them untold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from asdm_cli.models.directory import ModelDirectory, check_parts, check_unet, find
from asdm_cli.models.load import load_clip, load_pipeline
from asdm_cli.models.write import assemble_directory, carried_size

PARTS = ("unet", "vae", "text_encoder")
SAVED = {"one file": "10GB", "shards": "300KB", "shards, spelt as of old": "300KB"}


def half(source: Path, folder: Path, saved: str, variant: str = "fp16") -> Path:
    """The model in float16, as a variant and nothing else; the extra `clip/` too."""
    pipe = DiffusionPipeline.from_pretrained(source, dtype=torch.float16, use_safetensors=True)
    pipe.save_pretrained(folder, variant=variant, max_shard_size=SAVED[saved])
    if saved.endswith("of old"):
        for index in folder.glob(f"*/*.index.{variant}.json"):
            index.write_text(
                index.read_text().replace(f".{variant}-", "-").replace(".safetensors", f".{variant}.safetensors")
            )
        for shard in folder.glob(f"*/*.{variant}-*"):
            shard.rename(
                shard.with_name(shard.name.replace(f".{variant}-", "-").replace(".safet", f".{variant}.safet"))
            )
    return folder


def states(pipe: Any) -> dict[str, torch.Tensor]:
    return {f"{part}.{name}": tensor for part in PARTS for name, tensor in getattr(pipe, part).state_dict().items()}


def loaded(model: ModelDirectory) -> dict[str, torch.Tensor]:
    return states(load_pipeline(model, torch.device("cpu"), torch.float16))


@pytest.mark.parametrize("saved", SAVED)
def test_a_variant_is_the_model_and_is_written_without_its_name(
    saved: str, tiny_pipeline: Path, tmp_path: Path
) -> None:
    folder = half(tiny_pipeline, tmp_path / "half", saved)
    assert (len(list((folder / "unet").glob("*fp16*.safetensors"))) > 1) == saved.startswith("shards")
    assert list(folder.glob("unet/*-00001-of-*.fp16.*")) or "of old" not in saved
    model, wanted = find(str(folder)), loaded(find(str(tiny_pipeline)))
    check_parts(model)
    assert check_unet(model).tensors["conv_in.weight"].dtype == "F16"
    torch.testing.assert_close(loaded(model), wanted, rtol=0, atol=0)
    for replaced in (set(), {"unet"}):
        target = tmp_path / f"made{len(replaced)}"
        assemble_directory(model, target, replaced)
        assert not list(target.rglob("*fp16*"))
        assert carried_size(model, replaced) <= sum(file.stat().st_size for file in target.rglob("*"))
    stock = DiffusionPipeline.from_pretrained(tmp_path / "made0", dtype=torch.float16, use_safetensors=True)
    torch.testing.assert_close(states(stock), wanted, rtol=0, atol=0)


def test_variants_may_be_mixed_and_do_not_count_beside_the_whole(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "mixed"))
    pipe = DiffusionPipeline.from_pretrained(tiny_pipeline, use_safetensors=True)
    pipe.vae.to(torch.float16).save_pretrained(folder / "vae", variant="fp16")
    pipe.text_encoder.to(torch.bfloat16).save_pretrained(folder / "text_encoder", variant="bf16")
    (folder / "text_encoder" / "model.safetensors").unlink()
    (folder / "clip" / "model.safetensors").rename(folder / "clip" / "model.fp16.safetensors")
    model = find(str(folder))
    names = [file.name for part in (*PARTS, "clip") for file in model.weights(part)]
    whole = "diffusion_pytorch_model.safetensors"
    assert names == [whole, whole, "model.bf16.safetensors", "model.fp16.safetensors"]
    drawn, plain = loaded(model), loaded(find(str(tiny_pipeline)))
    for name, tensor in drawn.items():
        rounded = (2**-8, 1e-6) if name.startswith("text_encoder") else (0, 0)
        torch.testing.assert_close(tensor, plain[name], rtol=rounded[0], atol=rounded[1])
    assert load_clip(model).model.dtype == torch.float32
    assemble_directory(model, tmp_path / "made", set())
    assert (
        sorted(file.name for file in (tmp_path / "made").rglob("*.safetensors"))
        == [whole] * 2 + ["model.safetensors"] * 2
    )
    assert json.loads((tmp_path / "made" / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
