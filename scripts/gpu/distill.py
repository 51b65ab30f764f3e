"""What a training step costs at the real size of Stable Diffusion 1.5: `asdm distill`, its bare work, a plain loop.

    python -m scripts.gpu.distill --out FILE [--seconds 105] [--batch 8] [--tiny]

Random weights; Base, and three students in one; bfloat16, latents at hand, a small batch and the largest that fits.
They take turns, a stretch of steps each; `floor`, `distill` and `plain` are as in scripts/distill_throughput.py.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from asdm_cli.data.encoder import Condition
from asdm_cli.models.load import random_unet
from asdm_cli.training.distillation import Distillation, LossTerm
from asdm_cli.training.loop import Training
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import preset
from asdm_cli.unet.feature_pairs import feature_pairs
from asdm_cli.unet.surgery import remove
from scripts.distill_throughput import Work, floor, plain, steps
from scripts.gpu.costs import CUDA, DEVICE, seconds
from scripts.gpu.results import Results
from tests.tiny import SHAPES
from tests.training.students import PLAIN, InMemory, like

SETS = ("base", "small", "tiny")
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
BATCH, LARGER, STRETCH, ROUNDS = 8, (16, 32, 64, 96, 128, 192), 5, 6
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
AUTOCAST = partial(torch.autocast, DEVICE.type, dtype=torch.bfloat16)


class Size:
    """Shapes: real ones, or tiny ones for a try."""

    def __init__(self, tiny: bool):
        self.tiny, self.unet = tiny, SHAPES["sd15"] if tiny else preset("sd15")
        self.latent, self.width = self.unet["sample_size"], self.unet["cross_attention_dim"]

    def vae(self) -> AutoencoderKL:
        small = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4} if self.tiny else {}
        return AutoencoderKL(**{**VAE, **small})

    def text_encoder(self) -> CLIPTextModel:
        layers = 1 if self.tiny else 12
        sizes = {"hidden_size": self.width, "intermediate_size": 4 * self.width, "num_hidden_layers": layers}
        return CLIPTextModel(CLIPTextConfig(**sizes, num_attention_heads=4 if self.tiny else 12))


def training(size: Size, sets: tuple[str, ...], batch: int, folder: Path) -> Training:
    """As `asdm distill` sets it up."""
    torch.manual_seed(0)
    condition = Condition(torch.randn(64, 77, size.width))
    latents = torch.randn(64, 4, size.latent, size.latent)
    samples = InMemory(latents, condition, Condition(condition.text[:1]))
    configs = {name: remove(size.unet, name).config for name in sets}
    pairs = {
        name: feature_pairs(Anatomy.of(config), Anatomy.of(size.unet), ["down.?", "up.?"])
        for name, config in configs.items()
    }
    rows = [LossTerm("task"), LossTerm("output"), LossTerm("features", feature_pairs=pairs)]
    task = Distillation(samples, DDPMScheduler(**NOISE), rows, device=DEVICE, precise=AUTOCAST)
    teacher = random_unet(size.unet, DEVICE, torch.bfloat16 if CUDA else torch.float32)
    task.attach_teacher(teacher.to(memory_format=torch.channels_last))
    students = {name: random_unet(config, DEVICE, torch.float32).train() for name, config in configs.items()}
    for name, student in students.items():
        task.attach_student(name, student)
    recipe = like(PLAIN, steps=10**6, batch=batch, lr=1e-5, precision="bfloat16", device=DEVICE.type, ema=0.999)
    return Training(task, students, recipe, folder)


def encoding(size: Size, batch: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """VAE and text encoder on the same pictures and captions at every step."""
    vae, text_encoder = (each.to(DEVICE, torch.bfloat16).eval() for each in (size.vae(), size.text_encoder()))
    pixels = torch.rand(batch, 3, 8 * size.latent, 8 * size.latent, device=DEVICE, dtype=torch.bfloat16)
    ids = torch.randint(0, 40_000, (batch, 77), device=DEVICE)
    factor = vae.config.scaling_factor
    return lambda: (vae.encode(pixels).latent_dist.sample() * factor, text_encoder(ids)[0])


def one_batch(results: Results, size: Size, batch: int, names: list[str], end: float, place: Path) -> None:
    """Those of `names` take turns at this batch; each has models of its own. What does not fit is told."""
    fresh()
    fits = True
    try:
        _in_turn(results, size, batch, names, end, place)
    except torch.OutOfMemoryError:
        fits = False
    results.put(f"fits: batch {batch}, {', '.join(names)}", fits)


def _in_turn(results: Results, size: Size, batch: int, names: list[str], end: float, place: Path) -> None:
    works: dict[str, Work] = {}
    runs: dict[str, Training] = {}
    for name in names:
        sets = SETS if name == "three" else ("base",)
        runs[name] = training(size, sets, batch, place / f"{name}-{batch}")
        if name == "plain":
            works[name] = plain(runs[name], encoding(size, batch))
        else:
            works[name] = (floor if name == "floor" else steps)(runs[name])
    times: dict[str, list[float]] = {name: [] for name in names}
    phases: dict[str, dict[str, float]] = {}
    for number in range(-2, ROUNDS):
        for name, work in works.items():
            if number > 0 and time.monotonic() > end:
                return
            watch = runs[name].watch
            watch.exact = number == -1  # the device is waited for at every phase's end, in one round that is not timed
            taken = seconds(partial(work, STRETCH)) / STRETCH
            if watch.exact and watch.seconds:
                phases[name] = watch.per_step()
            if number >= 0:
                times[name].append(taken)
        if number >= 0:
            figures = {name: {"s": median(each), "images_per_s": batch / median(each)} for name, each in times.items()}
            found = {"figures": figures, "phases_s": phases, "rounds": number + 1, "peak_mb": peak()}
            results.put(f"batch {batch}: {', '.join(names)}", found)


def fresh() -> None:
    """What earlier ones held is free again."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> float | None:
    return torch.cuda.max_memory_allocated() / 1e6 if CUDA else None


def largest(results: Results, size: Size, end: float, place: Path) -> None:
    """Base alone, larger and larger batches, until memory or time is over."""
    for batch in LARGER:
        if time.monotonic() > end:
            results.put("largest", f"before a batch of {batch} there was no time left")
            return
        fresh()
        try:
            work = steps(training(size, ("base",), batch, place / f"largest-{batch}"))
            work(2)
            each = seconds(partial(work, STRETCH)) / STRETCH
            results.put(f"distill alone, batch {batch}", {"s": each, "images_per_s": batch / each, "peak_mb": peak()})
            del work
        except torch.OutOfMemoryError:
            results.put("largest", f"a batch of {batch} does not fit")
            return
        if not CUDA:
            return


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=105.0)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    start, results, size = time.monotonic(), Results(given.out), Size(given.tiny)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        batch = 2 if given.tiny else given.batch
        one_batch(results, size, batch, ["floor", "distill", "plain"], start + 0.5 * given.seconds, place)
        one_batch(results, size, batch, ["distill", "three"], start + 0.75 * given.seconds, place / "three")
        largest(results, size, start + given.seconds, place)


if __name__ == "__main__":
    main()
