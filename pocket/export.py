"""Trained parts -> the model directory that ships: float16 safetensors, and the shards beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTextModel, CLIPTokenizer

from asdm_cli.errors import RunError
from pocket.denoiser import new_scheduler
from pocket.drawings import SIZE
from pocket.stages import RECORDS, SHARDS, WEIGHTS

SHIPPED_SHARDS = ("train", "held-out", "evaluation")
PARTS = {"generator": ("vae", "clip", "unet"), "judges": ("score", "probe")}
"""What goes together, and the stages whose records go with it: a UNet learnt with one autoencoder and one text encoder;
the judges are apart from it."""


def export(folder: Path, what: str) -> Path:
    """Replace the shipped `generator` or `judges` by the parts in `folder`."""
    parts = folder / "parts"
    (_generator if what == "generator" else _judges)(parts)
    RECORDS.mkdir(parents=True, exist_ok=True)
    for name in PARTS[what]:
        if not (folder / f"{name}.json").exists():  # of what was shipped and only gone on with
            continue
        shutil.copyfile(folder / f"{name}.json", RECORDS / f"{name}.json")
        if (folder / name / "log.jsonl").exists():
            lines = (folder / name / "log.jsonl").read_text().splitlines(keepends=True)
            (RECORDS / f"{name}.jsonl").write_text("".join(lines[:: max(1, len(lines) // 300)]))
    return WEIGHTS


def _generator(parts: Path) -> None:
    needed = ("vae", "text_encoder", "tokenizer", "unet")
    if lacking := [name for name in needed if not (parts / name).exists()]:
        raise RunError(f"{parts} lacks {', '.join(lacking)}: a UNet ships with what it learnt with; train those stages")
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(parts / "vae", use_safetensors=True),
        text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder", use_safetensors=True),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(parts / "unet", use_safetensors=True),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    partial = WEIGHTS.with_name(".partial-weights")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.to(torch.float16)
    pipeline.save_pretrained(partial, safe_serialization=True)
    pipeline.tokenizer.backend_tokenizer.model.save(str(partial / "tokenizer"))  # vocab.json, merges.txt
    _as_float32(partial / "text_encoder")
    for name in needed:
        _replace(partial / name, WEIGHTS / name)
    shutil.rmtree(partial)


def _judges(parts: Path) -> None:
    partial = WEIGHTS.with_name(".partial-weights")
    shutil.rmtree(partial, ignore_errors=True)
    CLIPModel.from_pretrained(parts / "clip", use_safetensors=True).half().save_pretrained(partial / "clip")
    _processor().save_pretrained(partial / "clip")
    CLIPTokenizer.from_pretrained(parts / "tokenizer").save_pretrained(partial / "clip")
    _as_float32(partial / "clip")
    shutil.copytree(parts / "probe", partial / "probe")
    for name in ("clip", "probe"):
        _replace(partial / name, WEIGHTS / name)
    shutil.rmtree(partial)


def _as_float32(folder: Path) -> None:
    """transformers loads in the format that the config names, diffusers in float32: both must agree."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


def _replace(new: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    new.rename(old)


def ship_shards(data: Path) -> None:
    """Copy the small shards into the package."""
    SHARDS.mkdir(parents=True, exist_ok=True)
    for name in SHIPPED_SHARDS:
        shutil.copyfile(data / f"{name}.tar.gz", SHARDS / f"{name}.tar.gz")


def _processor() -> CLIPImageProcessorPil:
    """-1..1, as the VAE's images: the CLIP was trained on those."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
