"""What a step of `asdm distill` costs beside its bare work, beside a plain loop, and with three students at once.

    python -m scripts.distill_throughput [ROUNDS]
    python -m scripts.distill_throughput sd15 [STEPS]

Prune the bundled model first (recipes/prune-pocket-{base,small,tiny}.yaml). Everybody takes turns in one process,
a stretch of ten steps each; figures are medians of times and of ratios within rounds.

- floor: teacher forward, student forward and backward and optimizer step on a batch at hand, nothing else
- distill: the product's step with cached latents: data, losses, feature pairs, running mean and log
- plain: what BK-SDM's script does at every step: VAE and text encoder, gradient checkpointing, one student
- three: the product's step with three students at once, against three single ones

`sd15` tells where the time of a step goes at the real size of Stable Diffusion 1.5: Base, random weights, bfloat16,
batch 1, latents at hand.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel

from asdm_cli.data.samples import Condition, InMemory
from asdm_cli.models.directory import find
from asdm_cli.models.load import load_pipeline, random_unet
from asdm_cli.recipe.verbs import DistillRecipe
from asdm_cli.sampling.generate import processes
from asdm_cli.training.distillation import Distillation, LossTerm
from asdm_cli.training.loop import Training
from asdm_cli.training.plan import make_plan
from asdm_cli.training.student import TrainingConfig
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import preset
from asdm_cli.unet.feature_pairs import feature_pairs
from asdm_cli.unet.surgery import remove
from asdm_cli.verbs.distill import make_task
from pocket.contrastive import tokenize
from pocket.drawings import read, to_unit

SHARD = Path("asdm_cli/pocket/data/train.tar.gz")
STRETCH = 10
BATCH = 32
BASE, SMALL, TINY = ({"name": name, "model": f"runs/prune-pocket-{name}"} for name in ("base", "small", "tiny"))


def training(folder: Path, students: list[dict[str, Any]], **changes: object) -> Training:
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
        **changes,
    }
    plan = make_plan(DistillRecipe.model_validate(settings))
    state = processes()
    task, modules = make_task(plan, plan.cache().open(state.device, state), state, folder)
    return Training(task, modules, plan.config, folder)


def steps(run: Training) -> Callable[[], None]:
    count = iter(range(10**9))

    def stretch() -> None:
        for _ in range(STRETCH):
            run.step(next(count))
        run.report(STRETCH)

    return stretch


def floor(run: Training) -> Callable[[], None]:
    """The same modules' bare work; no hooks are recorded, no noise is drawn."""
    task, student = run.task, run.students[0]
    latents = torch.randn(BATCH, 8, 16, 16).to(memory_format=torch.channels_last)
    text = task.samples.read(torch.arange(BATCH)).condition.text
    times = torch.randint(0, 1000, (BATCH,))

    def stretch() -> None:
        for _ in range(STRETCH):
            with torch.no_grad():
                wanted = task.teacher(latents, times, text, return_dict=False)[0]
            got = student.module(latents, times, text, return_dict=False)[0]
            (got - wanted).square().mean().backward()
            student.optimizer.step()
            student.optimizer.zero_grad()

    return stretch


def plain(run: Training) -> Callable[[], None]:
    """Written out by hand, with nothing of the product's but the UNets: pictures are decoded already."""
    unet, teacher = run.students[0].module, run.task.teacher
    unet.enable_gradient_checkpointing()
    for each in (unet, teacher):
        each.to(memory_format=torch.contiguous_format)
    pipe = load_pipeline(find("pocket"), torch.device("cpu"), torch.float32)
    drawings = read(SHARD)
    pixels, ids = to_unit(drawings.images), tokenize(pipe.tokenizer, drawings.captions)
    noise_scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    optimizer, ema = torch.optim.AdamW(unet.parameters(), lr=1e-5), EMAModel(unet.parameters())
    ours, theirs = hooked(unet), hooked(teacher)

    def step() -> None:
        rows = torch.randint(len(pixels), (BATCH,))
        with torch.no_grad():
            latents = pipe.vae.encode(pixels[rows]).latent_dist.sample() * pipe.vae.config.scaling_factor
            text = pipe.text_encoder(ids[rows])[0]
        noise, times = torch.randn_like(latents), torch.randint(0, 1000, (BATCH,))
        noisy = noise_scheduler.add_noise(latents, noise, times)
        target = noise_scheduler.get_velocity(latents, noise, times)
        got = unet(noisy, times, text, return_dict=False)[0]
        with torch.no_grad():
            wanted = teacher(noisy, times, text, return_dict=False)[0]
        features = sum(F.mse_loss(ours[name], theirs[name]) for name in ours)
        (F.mse_loss(got, target) + F.mse_loss(got, wanted) + features).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())

    def stretch() -> None:
        for _ in range(STRETCH):
            step()

    return stretch


def hooked(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
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
            "plain": plain(training(place / "plain", [BASE])),
            "small alone": steps(training(place / "small", [SMALL])),
            "tiny alone": steps(training(place / "tiny", [TINY])),
            "three": steps(training(place / "three", [BASE, SMALL, TINY])),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds + 1):
            for name, stretch in runs.items():
                start = time.perf_counter()
                stretch()
                if number:  # the first round warms up
                    seconds[name].append((time.perf_counter() - start) / STRETCH)
        report(seconds, single)


def real_size(count: int) -> None:
    """Teacher and Base of SD 1.5's shape; UNets alone are trained, so VAE and text encoder are not needed."""
    config = preset("sd15")
    small = remove(config, "base").config
    cpu = torch.device("cpu")
    pairs = {"base": feature_pairs(Anatomy.of(small), Anatomy.of(config), ["down.?", "up.?"])}
    condition = Condition(torch.randn(8, 77, 768))
    samples = InMemory(torch.randn(8, 4, 64, 64), condition, Condition(condition.text[:1]))
    rows = [LossTerm("task"), LossTerm("output"), LossTerm("features", feature_pairs=pairs)]
    precise = partial(torch.autocast, "cpu", torch.bfloat16)
    task = Distillation(samples, DDPMScheduler(beta_schedule="scaled_linear"), rows, precise=precise)
    task.attach_teacher(random_unet(config, cpu, torch.float32))
    student = random_unet(small, cpu, torch.float32).train()
    task.attach_student("base", student)
    with tempfile.TemporaryDirectory() as folder:
        plan = TrainingConfig(steps=count + 1, batch=1, lr=1e-5, precision="bfloat16", device="cpu")
        run = Training(task, {"base": student}, plan, Path(folder))
        run.step(0)
        run.watch.seconds.clear()  # the first step allocates
        run.watch.steps = 0
        for step in range(count):
            run.step(step + 1)
        run.report(count + 1)
        split(run)


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
    split(single)


def split(run: Training) -> None:
    total = sum(run.watch.per_step().values())
    for phase, each in run.watch.per_step().items():
        print(f"  {phase:20} {1e3 * each:10.2f} ms  {100 * each / total:5.1f} %")
    print(f"  {'all':20} {1e3 * total:10.2f} ms")


if __name__ == "__main__":
    if sys.argv[1:2] == ["sd15"]:
        real_size(int(sys.argv[2]) if len(sys.argv) > 2 else 3)
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
