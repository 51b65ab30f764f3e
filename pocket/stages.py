"""From data to trained parts. A stage leaves its weights in `FOLDER/parts`, where the next ones read them."""

from __future__ import annotations

import copy
import filecmp
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

import asdm_cli
from asdm_cli.errors import RunError
from asdm_cli.models.write import whole_file
from pocket import autoencoder, contrastive, denoiser, probe
from pocket.drawings import Pairs, read
from pocket.loop import Plan, Stage, State, newest, place, resumed, train

SHIPPED = Path(asdm_cli.__file__).parent / "pocket"
WEIGHTS, SHARDS = SHIPPED / "weights", SHIPPED / "data"
RECORDS = WEIGHTS / "training"
"""Figures and log of each stage that made the shipped weights."""

CLIP = {"weight_decay": 0.1, "betas": (0.9, 0.98)}
PLANS = {
    "vae": Plan(steps=4000, batch=16, lr=2e-3, emas=(0.995, 0.999)),
    "clip": Plan(steps=1500, batch=256, lr=1e-3, emas=(0.98, 0.995), options=CLIP),
    "score": Plan(steps=3000, batch=256, lr=1e-3, emas=(0.98, 0.995), options=CLIP, seed=1),
    "unet": Plan(steps=30000, batch=32, lr=1e-3, warmup=200),
}
GPU_PLANS = {
    "vae": replace(PLANS["vae"], batch=128, lr=3e-3),
    "clip": replace(PLANS["clip"], batch=512),
    "score": replace(PLANS["score"], batch=512),
    "unet": replace(PLANS["unet"], batch=512),
}
"""A step of a small model costs a GPU the same whatever its batch, until that is large."""
COPIES = {"cpu": 12, "cuda": 96}
"""Each drawing as it is and so many times moved, encoded once: against learning it by heart."""
SHARES = {"vae": 2 / 7, "clip": 0.5 / 7, "score": 0.5 / 7, "unet": None}
"""Of the time of a whole chain; the UNet has the rest, less SPARE."""
SPARE = 0.06


@dataclass(frozen=True)
class Shop:
    """Where a training lives: `data` has the shards, `folder/STAGE` the checkpoints, `folder/parts` what came of them.

    With `go_on`, a stage without a checkpoint starts from the shipped weights instead of random ones.
    """

    data: Path
    folder: Path
    go_on: bool = False
    device: torch.device = field(default_factory=place)

    def plan(self, stage: str) -> Plan:
        return (GPU_PLANS if self.device.type == "cuda" else PLANS)[stage]

    def part(self, name: str) -> Path:
        """The finished part of an earlier stage: this training's, else the shipped one; of a training that goes on from
        the shipped weights, what they learnt with."""
        own, shipped = self.folder / "parts" / name, WEIGHTS / name
        found = own if own.exists() and not self.go_on else shipped
        if not found.exists():
            raise RunError(f"{own} is missing: train that stage first")
        return found

    def take_shipped(self) -> None:
        """What the shipped UNet learnt with, beside what it becomes; RunError where another training's lies there."""
        (self.folder / "parts").mkdir(parents=True, exist_ok=True)
        for name in ("vae", "text_encoder", "tokenizer"):
            own, shipped = self.folder / "parts" / name, WEIGHTS / name
            if not own.exists():
                shutil.copytree(shipped, own)
            names = [file.name for file in shipped.iterdir()]
            if filecmp.cmpfiles(shipped, own, names, shallow=False)[0] != names:
                raise RunError(f"{own} is not what the shipped UNet learnt with; go on in another --folder")

    def shard(self, name: str) -> Pairs:
        """A shard that `make data` wrote, or one that ships."""
        shipped, own = (folder / f"{name}.tar.gz" for folder in (SHARDS, self.data))
        return read(shipped if shipped.exists() else own)


@dataclass(frozen=True)
class Learner:
    """A stage, and what makes of its trained module the models that are kept, by the names of their parts."""

    stage: Stage
    parts: Callable[[], dict[str, nn.Module]]


def run_stage(shop: Shop, name: str, plan: Plan, minutes: float | None = None, again: bool = True) -> dict[str, float]:
    """Train one stage to the end of a stretch, write the better running mean's parts, and return its figures. One that
    is at the end of a stretch already begins another, or, unless `again`, stays as it is: what comes after it learnt
    with its parts."""
    held = None if again else newest(shop.folder / name)
    if held is not None and held["finished"]:
        record = _recorded(shop, name)
        return record["figures"] if record.get("steps") == held["step"] else parts_of_checkpoint(shop, name)
    torch.manual_seed(plan.seed)
    learner = STAGES[name](shop)
    state = train(learner.stage, plan, shop.folder / name, minutes)
    return write_parts(shop, name, learner, state, plan)


def run_chain(shop: Shop, minutes: float) -> dict[str, dict[str, float]]:
    """Every stage that has a loop, each within its share; the UNet has what the others left, less a little to write."""
    end = time.monotonic() + 60 * minutes
    figures = {}
    for name, share in SHARES.items():
        left = (end - time.monotonic()) / 60
        setting_up = SPARE * minutes
        length = share * minutes if share else left - setting_up
        figures[name] = run_stage(shop, name, shop.plan(name), max(length, setting_up))
    return figures


def parts_of_checkpoint(shop: Shop, name: str) -> dict[str, float]:
    """Write the parts of a stage's newest checkpoint; RunError where there is none."""
    plan, learner = shop.plan(name), STAGES[name](shop)
    module = learner.stage.module.to(shop.device)
    state = resumed(module, plan, shop.folder / name, shop.device)
    if not state.step:
        raise RunError(f"{shop.folder / name} has no checkpoint yet")
    return write_parts(shop, name, learner, state, plan)


def run_probe(shop: Shop) -> dict[str, float]:
    """Fit the probe and say what it sees in held-out drawings, as they are and through the autoencoder."""
    folder, held = shop.folder / "parts" / "probe", shop.shard("held-out")
    probe.fit_probe(shop.shard("train"), shop.shard("wide"), folder, shop.folder / "probe", shop.device)
    vae = AutoencoderKL.from_pretrained(shop.part("vae"), use_safetensors=True).to(shop.device)
    figures = probe.accuracies(folder, held, vae)
    _record(shop, "probe", {"figures": figures})
    return figures


def write_parts(shop: Shop, name: str, learner: Learner, state: State, plan: Plan) -> dict[str, float]:
    """The parts with the weights of the running mean whose first figure is the better one, and what was measured."""
    module = learner.stage.module.eval()
    own = copy.deepcopy(module.state_dict())
    measured = {}
    for decay, ema in zip(plan.emas, state.emas, strict=True):
        ema.copy_to(module.parameters())
        measured[decay] = learner.stage.figures()
    best = max(measured, key=lambda decay: _worth(measured[decay]))
    state.emas[plan.emas.index(best)].copy_to(module.parameters())
    for part, model in learner.parts().items():  # float16, as they ship: what comes after learns with that
        copy.deepcopy(model).half().save_pretrained(shop.folder / "parts" / part)
    record = {"steps": state.step, "batch": plan.batch, "ema": best, "figures": measured[best]}
    _record(shop, name, record)
    module.load_state_dict(own)
    return measured[best]


def _recorded(shop: Shop, name: str) -> dict[str, Any]:
    file = shop.folder / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def _record(shop: Shop, name: str, record: dict[str, object]) -> None:
    with whole_file(shop.folder / f"{name}.json") as partial:
        partial.write_text(json.dumps({"stage": name} | record, indent=2) + "\n")


def _worth(figures: dict[str, float]) -> float:
    name, value = next(iter(figures.items()))
    return -value if name.endswith("loss") else value


def _vae(shop: Shop) -> Learner:
    vae = (
        AutoencoderKL.from_pretrained(WEIGHTS / "vae", use_safetensors=True)
        if shop.go_on
        else AutoencoderKL(**autoencoder.CONFIG)
    )
    wide = shop.shard("wide")
    stage = autoencoder.Autoencoding(vae, wide, shop.shard("held-out"), shop.device)

    def parts() -> dict[str, nn.Module]:
        autoencoder.standardise(vae, stage.images[:2000])
        return {"vae": vae}

    return Learner(stage, parts)


def _clip(shop: Shop) -> Learner:
    clip, stage = _contrasting(shop, "clip")
    return Learner(stage, lambda: {"text_encoder": _text_half(clip)})


def _score(shop: Shop) -> Learner:
    clip, stage = _contrasting(shop, "score")
    return Learner(stage, lambda: {"clip": clip})


def _contrasting(shop: Shop, name: str) -> tuple[CLIPModel, Stage]:
    wide = shop.shard("wide")
    tokenizer = _tokenizer(shop, wide)
    goes_on = shop.go_on and name == "score"  # of the other only the text half ships
    clip = (
        CLIPModel.from_pretrained(WEIGHTS / "clip", dtype=torch.float32, use_safetensors=True)
        if goes_on
        else contrastive.new_clip(tokenizer)
    )
    return clip, contrastive.Contrasting(clip, wide, shop.shard("held-out"), tokenizer, shop.device)


def _tokenizer(shop: Shop, pairs: Pairs) -> CLIPTokenizer:
    """Trained once and kept: the same captions need not give the same numbering twice."""
    own = shop.folder / "parts" / "tokenizer"
    if shop.go_on:
        return CLIPTokenizer.from_pretrained(WEIGHTS / "clip")
    if not own.exists():
        contrastive.train_tokenizer(pairs.captions).save_pretrained(own)
    return CLIPTokenizer.from_pretrained(own)


def _unet(shop: Shop) -> Learner:
    if shop.go_on:
        shop.take_shipped()
    unet = (
        UNet2DConditionModel.from_pretrained(WEIGHTS / "unet", use_safetensors=True)
        if shop.go_on
        else UNet2DConditionModel(**denoiser.CONFIG)
    )
    vae = AutoencoderKL.from_pretrained(shop.part("vae"), use_safetensors=True).to(shop.device)
    tokenizer = CLIPTokenizer.from_pretrained(shop.part("tokenizer"))
    text_encoder = CLIPTextModel.from_pretrained(shop.part("text_encoder"), dtype=torch.float32, use_safetensors=True)
    text_encoder = text_encoder.eval().to(shop.device)

    def encoded(pairs: Pairs, moved: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = contrastive.tokenize(tokenizer, [*pairs.captions, ""]).to(shop.device)
        latents = denoiser.copies(vae, pairs.images.to(shop.device), moved)
        return latents, denoiser.encode_text(text_encoder, ids)

    latents, text = encoded(shop.shard("train"), COPIES[shop.device.type])
    held_latents, held_text = encoded(shop.shard("held-out"), 0)
    stage = denoiser.Denoising(unet, latents, text, (held_latents[0], held_text[:-1]))
    return Learner(stage, lambda: {"unet": unet})


def _text_half(clip: CLIPModel) -> CLIPTextModel:
    """The CLIP's text encoder as a model of its own."""
    encoder = CLIPTextModel(clip.config.text_config)
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder.eval()


STAGES: dict[str, Callable[[Shop], Learner]] = {"vae": _vae, "clip": _clip, "score": _score, "unet": _unet}
ORDER = ("vae", "clip", "score", "probe", "unet")
"""Each needs what those before it left."""
