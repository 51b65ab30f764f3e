"""From data to trained parts: each stage resumes where it was killed and leaves its EMA weights in its folder.

The latents depend on the encoder alone and the conditioning on the text encoder alone, so later
training may go on with the decoder (`decoder`) or the CLIP score's network without spoiling the UNet.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from asdm_cli.data.samples import Condition, InMemory
from asdm_cli.errors import RunError
from asdm_cli.pocket import autoencoder, contrastive, denoiser
from asdm_cli.pocket.pairs import Pairs, read_pairs
from asdm_cli.training.loop import train
from asdm_cli.training.plan import Plan, Task

WEIGHTS = Path(__file__).parent / "weights"
RECORDS = WEIGHTS / "training"
"""Figures and log of each stage that made the shipped weights."""

PLANS = {
    "vae": Plan(steps=8000, batch=16, lr=2e-3, ema_decay=0.995),
    "clip": Plan(
        steps=4000,
        batch=256,
        lr=1e-3,
        options={"weight_decay": 0.1, "betas": (0.9, 0.99)},
        ema_decay=0.99,
        save_every=50,
    ),
    "unet": Plan(steps=30000, batch=32, lr=8e-4, warmup=100, save_every=200, validate_every=1000),
    "decoder": Plan(steps=4000, batch=16, lr=1e-3, ema_decay=0.995),
}


@dataclass(frozen=True)
class Workshop:
    """Where a training lives: `data` has the shards, `folder/<stage>` its checkpoints and results.

    With `go_on`, a stage without a checkpoint starts from the shipped weights instead of random ones.
    """

    data: Path
    folder: Path
    go_on: bool = False

    def pairs(self, name: str) -> Pairs:
        shard = self.data / f"{name}.tar"
        if not shard.exists():
            raise RunError(f"{shard} is missing; `make data` fetches and renders it")
        return read_pairs(shard)

    def part(self, name: str) -> Path:
        """The finished part of an earlier stage: this training's, else the shipped one."""
        own, shipped = self.folder / "parts" / name, WEIGHTS / name
        found = own if own.exists() else shipped
        if not found.exists():
            raise RunError(f"{own} is missing: train that stage first")
        return found


def run_stage(shop: Workshop, name: str, plan: Plan | None = None) -> None:
    """Train one stage to its plan's end and write its parts (EMA weights, float32) and figures.

    A plan of fewer steps than the newest checkpoint has trains nothing and writes that checkpoint's parts.
    """
    torch.manual_seed(0)
    plan = plan or PLANS[name]
    task, module, parts = STAGES[name](shop)
    training = train(task, {name: module}, plan, shop.folder / name)
    (trainee,) = training.crew
    assert trainee.ema is not None, "every plan here has a running mean"
    trainee.ema.copy_to(module.parameters())
    module.eval()
    if name == "vae":
        autoencoder.standardise(parts["vae"], shop.pairs("train").pictures[:2000])
    with torch.no_grad():
        figures = task.validate(name, module, plan.steps)
    for part, model in parts.items():
        model.save_pretrained(shop.folder / "parts" / part)
    log = {
        "stage": name,
        "steps": max(plan.steps, trainee.ema.optimization_step),
        "batch": plan.batch,
        "figures": figures,
    }
    (shop.folder / f"{name}.json").write_text(json.dumps(log, indent=2) + "\n")


def _vae(shop: Workshop) -> tuple[Task, nn.Module, dict[str, AutoencoderKL]]:
    vae = (
        AutoencoderKL.from_pretrained(WEIGHTS / "vae", use_safetensors=True)
        if shop.go_on
        else AutoencoderKL(**autoencoder.CONFIG)
    )
    task = autoencoder.AutoencoderTask(shop.pairs("train"), shop.pairs("validation"))
    return task, autoencoder.Reconstruction(vae), {"vae": vae}


def _decoder(shop: Workshop) -> tuple[Task, nn.Module, dict[str, AutoencoderKL]]:
    """The decoder alone, for latents that a UNet already learned."""
    vae = AutoencoderKL.from_pretrained(shop.part("vae"), use_safetensors=True)
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    task = autoencoder.AutoencoderTask(shop.pairs("train"), shop.pairs("validation"))
    return task, autoencoder.Reconstruction(vae), {"vae": vae}


def _clip(shop: Workshop) -> tuple[Task, nn.Module, dict[str, CLIPModel | CLIPTextModel]]:
    train_pairs = shop.pairs("train")
    tokenizer = _tokenizer(shop, train_pairs)
    clip = (
        CLIPModel.from_pretrained(WEIGHTS / "clip", use_safetensors=True)
        if shop.go_on
        else contrastive.new_clip(tokenizer)
    )
    task = contrastive.ContrastiveTask(train_pairs, shop.pairs("validation"), tokenizer)
    # A CLIP that goes on only serves the score: the UNet keeps the text encoder that it learned with.
    parts = {"clip": clip} if shop.go_on else {"clip": clip, "text_encoder": _text_half(clip)}
    return task, contrastive.Contrast(clip), parts


def _tokenizer(shop: Workshop, pairs: Pairs) -> CLIPTokenizer:
    """Trained once and kept: the same captions need not give the same numbering twice."""
    own = shop.folder / "parts" / "tokenizer"
    if not own.exists():
        known = shop.go_on and CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
        (known or contrastive.train_tokenizer(pairs.captions)).save_pretrained(own)
    return CLIPTokenizer.from_pretrained(own)


def _unet(shop: Workshop) -> tuple[Task, nn.Module, dict[str, UNet2DConditionModel]]:
    unet = (
        UNet2DConditionModel.from_pretrained(WEIGHTS / "unet", use_safetensors=True)
        if shop.go_on
        else UNet2DConditionModel(**denoiser.CONFIG)
    )
    vae = AutoencoderKL.from_pretrained(shop.part("vae"), use_safetensors=True)
    tokenizer = CLIPTokenizer.from_pretrained(shop.part("tokenizer"))
    text_encoder = CLIPTextModel.from_pretrained(shop.part("text_encoder"), use_safetensors=True).eval()
    cached = {}
    for side in ("train", "validation"):
        pairs = shop.pairs(side)
        latents = denoiser.encode_latents(vae, pairs.pictures)
        ids = contrastive.tokenize(tokenizer, [*pairs.captions, ""])
        states = denoiser.encode_text(text_encoder, ids)
        empty = Condition(states[-1:])
        cached[side] = InMemory(latents * vae.config.get("scaling_factor"), Condition(states[:-1]), empty)
    task = denoiser.denoising(cached["train"], cached["validation"])
    task.attach_student("unet", unet)
    return task, unet, {"unet": unet}


def _text_half(clip: CLIPModel) -> CLIPTextModel:
    """The CLIP's text encoder as a model of its own, on the same tensors: it follows what training does to them."""
    encoder = CLIPTextModel(clip.config.text_config)
    encoder.load_state_dict(clip.text_model.state_dict(), assign=True)
    return encoder.eval()


STAGES: dict[str, Callable[[Workshop], tuple[Task, nn.Module, dict]]] = {
    "vae": _vae,
    "clip": _clip,
    "unet": _unet,
    "decoder": _decoder,
}
