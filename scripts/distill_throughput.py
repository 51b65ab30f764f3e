"""What a step of `asdm distill` costs beside its bare work, beside a plain loop, and with three students at once.

    python -m scripts.distill_throughput [ROUNDS]

Prune the bundled model first (recipes/prune-pocket-{base,small,tiny}.yaml). Everybody takes turns in one process,
a stretch of ten steps each; figures are medians of times and of ratios within rounds. At the size of Stable Diffusion
1.5: scripts/gpu/distill.py.

- floor: teacher forward, student forward and backward and optimizer step on a batch at hand, nothing else
- distill: the product's step with cached latents: data, losses, feature pairs, running mean and log
- plain: what BK-SDM's script does at every step: VAE and text encoder, gradient checkpointing, one student
- three: the product's step with three students at once, against three single ones
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from torch import Tensor

from asdm_cli.models.directory import find
from asdm_cli.models.load import load_pipeline
from asdm_cli.recipe.verbs import DistillRecipe
from asdm_cli.sampling.generate import processes
from asdm_cli.training.loop import Training
from asdm_cli.training.plan import make_plan
from asdm_cli.verbs.distill import make_task
from pocket.contrastive import tokenize
from pocket.drawings import read, to_unit

SHARD = Path("asdm_cli/pocket/data/train.tar.gz")
STRETCH = 10
BATCH = 32
BASE, SMALL, TINY = ({"name": name, "model": f"runs/prune-pocket-{name}"} for name in ("base", "small", "tiny"))
Work = Callable[[int], None]
"""So many steps."""


def training(folder: Path, students: list[dict[str, Any]]) -> Training:
    """The product's own, set up as `asdm distill` does it."""
    settings = {
        "verb": "distill",
        "teacher": "pocket",
        "students": students,
        "steps": 10_000,
        "batch": BATCH,
        "precision": "float32",
        "optimizer": {"lr": 1e-5},
        "out": "unused",
        "device": "cpu",
    }
    plan, state = make_plan(DistillRecipe.model_validate(settings)), processes()
    task, modules = make_task(plan, plan.cache().open(state), state, folder)
    return Training(task, modules, plan.recipe, folder)


def steps(run: Training) -> Work:
    numbers = count()

    def stretch(length: int) -> None:
        for _ in range(length):
            last = next(numbers)
            run.step(last)
        run.report(last + 1)

    return stretch


def floor(run: Training) -> Work:
    """The same modules' bare work on one batch; no hooks are recorded, no noise is drawn."""
    task, student, batch = run.task, run.students[0], run.recipe.batch
    read = task.samples.read(torch.arange(batch) % task.samples.size)
    latents = read.latents.to(task.device, memory_format=torch.channels_last)
    text, times = read.condition.text.to(task.device), torch.randint(0, 1000, (batch,), device=task.device)

    def stretch(length: int) -> None:
        for _ in range(length):
            with task.precise():
                with torch.no_grad():
                    wanted = task.teacher(latents, times, text, return_dict=False)[0]
                got = student.module(latents, times, text, return_dict=False)[0]
                loss = (got - wanted).float().square().mean()
            loss.backward()
            student.optimizer.optimizer.step()
            student.optimizer.optimizer.zero_grad()

    return stretch


def plain(run: Training, encode: Callable[[], tuple[Tensor, Tensor]]) -> Work:
    """Written out by hand, with nothing of the product's but the UNets and their noise; `encode` gives latents and
    text states of a batch."""
    task, unet, teacher = run.task, run.students[0].module, run.task.teacher
    unet.enable_gradient_checkpointing()
    for each in (unet, teacher):
        each.to(memory_format=torch.contiguous_format)
    optimizer, mean = torch.optim.AdamW(unet.parameters(), lr=1e-5), EMAModel(unet.parameters())
    ours, theirs, mse = hooked(unet), hooked(teacher), F.mse_loss

    def step() -> None:
        with torch.no_grad(), task.precise():
            latents, text = encode()
        noise, times = torch.randn_like(latents), torch.randint(0, 1000, (len(latents),), device=latents.device)
        noisy = task.scheduler.add_noise(latents, noise, times)
        target = noise if task.kind == "epsilon" else task.scheduler.get_velocity(latents, noise, times)
        with task.precise():
            got = unet(noisy, times, text, return_dict=False)[0]
            with torch.no_grad():
                wanted = teacher(noisy, times, text, return_dict=False)[0]
            features = sum(mse(ours[name].float(), theirs[name].float()) for name in ours)
            loss = mse(got.float(), target.float()) + mse(got.float(), wanted.float()) + features
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mean.step(unet.parameters())

    def stretch(length: int) -> None:
        for _ in range(length):
            step()

    return stretch


def encoding() -> Callable[[], tuple[Tensor, Tensor]]:
    """The bundled VAE and text encoder on drawings that are decoded already."""
    pipe, drawings = load_pipeline(find("pocket"), torch.device("cpu"), torch.float32), read(SHARD)
    pixels, ids = to_unit(drawings.images), tokenize(pipe.tokenizer, drawings.captions)

    def encode() -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(pixels), (BATCH,))
        latents = pipe.vae.encode(pixels[rows]).latent_dist.sample() * pipe.vae.config.scaling_factor
        return latents, pipe.text_encoder(ids[rows])[0]

    return encode


def hooked(unet: torch.nn.Module) -> dict[str, Tensor]:
    """The last output of every down and up block."""
    kept: dict[str, torch.Tensor] = {}
    for side in ("down_blocks", "up_blocks"):
        for number, block in enumerate(getattr(unet, side)):
            name = f"{side}.{number}"
            block.register_forward_hook(
                lambda _module, _inputs, out, name=name: kept.update({name: out if torch.is_tensor(out) else out[0]})
            )
    return kept


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        single = training(place / "single", [BASE])
        runs = {
            "floor": floor(training(place / "floor", [BASE])),
            "distill": steps(single),
            "plain": plain(training(place / "plain", [BASE]), encoding()),
            "small alone": steps(training(place / "small", [SMALL])),
            "tiny alone": steps(training(place / "tiny", [TINY])),
            "three": steps(training(place / "three", [BASE, SMALL, TINY])),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds + 1):
            for name, stretch in runs.items():
                start = time.perf_counter()
                stretch(STRETCH)
                if number:  # the first round warms up
                    seconds[name].append((time.perf_counter() - start) / STRETCH)
        report(seconds, single)


def report(seconds: dict[str, list[float]], single: Training) -> None:
    for name, times in seconds.items():
        print(f"{name:12} {1e3 * median(times):8.1f} ms per step   ({1e3 * min(times):.1f}-{1e3 * max(times):.1f})")
    alone = [
        sum(each) for each in zip(*(seconds[name] for name in ("distill", "small alone", "tiny alone")), strict=True)
    ]
    for what, above, below in (
        ("distill / floor", seconds["distill"], seconds["floor"]),
        ("plain / distill", seconds["plain"], seconds["distill"]),
        ("three runs / three in one", alone, seconds["three"]),
    ):
        ratios = [a / b for a, b in zip(above, below, strict=True)]
        print(f"{what:26} {median(ratios):.3f}   ({min(ratios):.3f}-{max(ratios):.3f} over {len(ratios)} rounds)")
    phases = single.watch.per_step()
    total = sum(phases.values())
    for phase, each in {**phases, "all": total}.items():
        print(f"  {phase:20} {1e3 * each:10.2f} ms  {100 * each / total:5.1f} %")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
