"""What a training step costs at the real size of Stable Diffusion 1.5: `asdm distill`, its bare work, a plain loop.

    python -m scripts.gpu.distill --out FILE [--seconds 105] [--tiny]

Random weights; Base, and three students in one; bfloat16, latents at hand, a batch of 8 and the largest that fits.
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
from diffusers.training_utils import EMAModel
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel

from asdm_cli.data.samples import Condition, InMemory
from asdm_cli.models.load import random_unet
from asdm_cli.training.distillation import Distillation, LossTerm
from asdm_cli.training.loop import Training
from asdm_cli.training.student import TrainingConfig
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import preset
from asdm_cli.unet.feature_pairs import feature_pairs
from asdm_cli.unet.surgery import remove
from scripts.distill_throughput import hooked
from scripts.gpu.costs import CUDA, DEVICE, seconds
from scripts.gpu.results import Results

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
        if tiny:
            from tests.tiny import SHAPES

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
    return Training(task, students, TrainingConfig(steps=10**6, batch=batch, lr=1e-5, precision="bfloat16"), folder)


def steps(run: Training) -> Callable[[int], None]:
    numbers = iter(range(10**6))

    def stretch(count: int) -> None:
        for _ in range(count):
            last = next(numbers)
            run.step(last)
        run.report(last + 1)

    return stretch


def floor(run: Training) -> Callable[[int], None]:
    """Teacher forward, student forward, backward and optimizer step on one batch at hand."""
    task, student, batch = run.task, run.students[0], run.config.batch
    read = task.samples.read(torch.arange(batch) % task.samples.size)
    latents = read.latents.to(DEVICE, memory_format=torch.channels_last)
    text, times = read.condition.text.to(DEVICE), torch.randint(0, 1000, (batch,), device=DEVICE)

    def stretch(count: int) -> None:
        for _ in range(count):
            with AUTOCAST():
                with torch.no_grad():
                    wanted = task.teacher(latents, times, text, return_dict=False)[0]
                got = student.module(latents, times, text, return_dict=False)[0]
                loss = (got - wanted).float().square().mean()
            loss.backward()
            student.optimizer.optimizer.step()
            student.optimizer.optimizer.zero_grad()

    return stretch


def plain(run: Training, size: Size) -> Callable[[int], None]:
    """What BK-SDM's script does at every step: VAE and text encoder, gradient checkpointing, losses, running mean."""
    unet, teacher, batch = run.students[0].module, run.task.teacher, run.config.batch
    unet.enable_gradient_checkpointing()
    for each in (unet, teacher):
        each.to(memory_format=torch.contiguous_format)
    vae, text_encoder = (each.to(DEVICE, torch.bfloat16).eval() for each in (size.vae(), size.text_encoder()))
    pixels = torch.rand(batch, 3, 8 * size.latent, 8 * size.latent, device=DEVICE, dtype=torch.bfloat16)
    ids = torch.randint(0, 40_000, (batch, 77), device=DEVICE)
    scheduler, optimizer = DDPMScheduler(**NOISE), torch.optim.AdamW(unet.parameters(), lr=1e-5)
    mean, ours, theirs = EMAModel(unet.parameters()), hooked(unet), hooked(teacher)

    def step() -> None:
        with torch.no_grad(), AUTOCAST():
            latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
            text = text_encoder(ids)[0]
        noise, times = torch.randn_like(latents), torch.randint(0, 1000, (batch,), device=DEVICE)
        noisy = scheduler.add_noise(latents, noise, times)
        with AUTOCAST():
            got = unet(noisy, times, text, return_dict=False)[0]
            with torch.no_grad():
                wanted = teacher(noisy, times, text, return_dict=False)[0]
            features = sum(functional.mse_loss(ours[name].float(), theirs[name].float()) for name in ours)
            output = functional.mse_loss(got.float(), wanted.float())
            loss = functional.mse_loss(got.float(), noise.float()) + output + features
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mean.step(unet.parameters())

    def stretch(count: int) -> None:
        for _ in range(count):
            step()

    return stretch


def one_batch(results: Results, size: Size, batch: int, names: list[str], end: float, place: Path) -> None:
    """Those of `names` take turns at this batch; each has models of its own."""
    fresh()
    works: dict[str, Callable[[int], None]] = {}
    runs: dict[str, Training] = {}
    for name in names:
        sets = SETS if name == "three" else ("base",)
        runs[name] = training(size, sets, batch, place / f"{name}-{batch}")
        makes = {"floor": floor, "plain": partial(plain, size=size)}
        works[name] = makes.get(name, steps)(runs[name])
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
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    start, results, size = time.monotonic(), Results(given.out), Size(given.tiny)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        batch = 2 if given.tiny else BATCH
        one_batch(results, size, batch, ["floor", "distill", "plain"], start + 0.5 * given.seconds, place)
        one_batch(results, size, batch, ["distill", "three"], start + 0.75 * given.seconds, place / "three")
        largest(results, size, start + given.seconds, place)


if __name__ == "__main__":
    main()
