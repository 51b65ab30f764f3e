"""Trained parts -> the model directory that ships: float16 safetensors, and the shards beside it."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTextModel, CLIPTokenizer

from asdm_cli.pocket.denoiser import new_scheduler
from asdm_cli.pocket.shards import SIZE
from asdm_cli.pocket.stages import RECORDS, STAGES, WEIGHTS, Workshop

SHARDS = Path(__file__).parent / "data"
SHIPPED_SHARDS = ("validation", "train-small")


def export(data: Path, folder: Path) -> Path:
    """Replace the shipped weights and shards by this training's; parts it lacks stay as shipped."""
    shop = Workshop(data, folder)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(shop.part("vae"), use_safetensors=True),
        text_encoder=CLIPTextModel.from_pretrained(shop.part("text_encoder"), use_safetensors=True),
        tokenizer=CLIPTokenizer.from_pretrained(shop.part("tokenizer")),
        unet=UNet2DConditionModel.from_pretrained(shop.part("unet"), use_safetensors=True),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    clip = CLIPModel.from_pretrained(shop.part("clip"), use_safetensors=True)
    partial = WEIGHTS.with_name(".partial-weights")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.to(torch.float16)
    pipeline.save_pretrained(partial, safe_serialization=True)
    pipeline.tokenizer.backend_tokenizer.model.save(str(partial / "tokenizer"))  # vocab.json, merges.txt
    clip.half().save_pretrained(partial / "clip")
    _processor().save_pretrained(partial / "clip")
    CLIPTokenizer.from_pretrained(shop.part("tokenizer")).save_pretrained(partial / "clip")
    _keep_records(folder, partial / "training")
    shutil.rmtree(WEIGHTS, ignore_errors=True)
    partial.rename(WEIGHTS)
    ship_shards(data)
    return WEIGHTS


def _keep_records(folder: Path, target: Path) -> None:
    """Each stage's figures and log go with the weights: this training's, else those shipped before."""
    target.mkdir()
    if RECORDS.exists():
        shutil.copytree(RECORDS, target, dirs_exist_ok=True)
    for name in STAGES:
        if (folder / f"{name}.json").exists():
            shutil.copyfile(folder / f"{name}.json", target / f"{name}.json")
            shutil.copyfile(folder / name / "log.jsonl", target / f"{name}.jsonl")


def ship_shards(data: Path) -> None:
    """Compress the small shards into the package; the same input gives the same bytes."""
    SHARDS.mkdir(exist_ok=True)
    for name in SHIPPED_SHARDS:
        packed = gzip.compress((data / f"{name}.tar").read_bytes(), compresslevel=9, mtime=0)
        (SHARDS / f"{name}.tar.gz").write_bytes(packed)


def _processor() -> CLIPImageProcessorPil:
    """-1..1, as the VAE's pictures: the CLIP was trained on those."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
