"""Times and memory of UNet calls at real size, and of generations made of them.

    python -m scripts.gpu.costs sd15 --out FILE [--seconds 105] [--tiny]

Weights are random. One call of every pattern of every plan is timed in turn, round after round; a generation's time
is added up from them. Whole generations of Stable Diffusion 1.5 check the sum.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from asdm_cli.compare.setup import cache_spec, twin
from asdm_cli.errors import AsdmError
from asdm_cli.models.load import random_unet
from asdm_cli.patches.base import Trajectory, applied, patch_of
from asdm_cli.patches.feature_cache import FeatureCache
from asdm_cli.patches.feature_cache.state import CacheState
from asdm_cli.recipe.patches import DeepCacheSpec, PatchSpec, read_plan
from asdm_cli.unet.flops import inputs
from asdm_cli.unet.shapes import latent_size
from scripts.gpu.results import Results
from scripts.gpu.ways import GROUPS, STEPS, Way, label

IMAGES, ROUNDS, WARMUPS = (1, 4), 12, 2
COMPILING = 60.0
"""Seconds that must be left for a group that is compiled."""
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.float16 if CUDA else torch.float32
Times = dict[str, list[float]]


def seconds(work: Callable[[], object]) -> float:
    """On a GPU between two events, from an idle device on: launching counts as it does for a user."""
    if not CUDA:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    torch.cuda.synchronize()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    work()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1e3


class Body:
    """A way's UNet with its plan on it, around weights that it shares with others of its shape."""

    def __init__(self, way: Way, weights: torch.nn.Module, tiny: bool):
        self.way, self.config, resolved = way, way.config(tiny), way.resolved(tiny)
        self.unet = twin(weights)
        if way.compiled:
            backend = {"mode": way.compiled} if CUDA else {"backend": "eager"}
            self.unet = torch.compile(self.unet, **backend)
        self.cache = FeatureCache(self.unet, resolved) if resolved else None
        self.begin: list[float] = []
        self.peaks: dict[int, float | None] = {}
        self.first = 0.0
        if self.cache and not way.compiled:
            self.cache.begin = partial(self._begin, self.cache.begin)

    def _begin(self, begin: Callable[[Trajectory], CacheState], trajectory: Trajectory) -> CacheState:
        start = time.perf_counter()
        state = begin(trajectory)
        self.begin.append(time.perf_counter() - start)
        return state

    @torch.no_grad()
    def round(self, images: int) -> dict[str, float]:
        """Seconds of a call of each pattern; `first` has no past."""
        found: dict[str, float] = {}
        for half, rows in self.way.halves().items():
            given = inputs(self.config, images * rows, latent_size(self.config), 77, DEVICE, DTYPE)
            call = partial(self.unet, **given, return_dict=False)
            found |= {name + half: taken for name, taken in self._calls(call).items()}
        return found

    def _calls(self, call: Callable[[], object]) -> dict[str, float]:
        if self.cache is None:
            return {"full": seconds(call)}
        steps = self.cache.resolved.steps(STEPS).digest()
        names = ["first", *(label(steps.reused(number)) for number in range(1, steps.calls))]
        with self.cache.generation(Trajectory(steps.calls, lambda *_: range(steps.calls), plan=steps)):
            return {name: seconds(call) for name in names}

    def peak(self, images: int) -> float | None:
        """MB that its weights and a round take at most."""
        if not CUDA:
            return None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.round(images)
        weights = sum(tensor.nbytes for tensor in self.unet.state_dict().values())
        return (torch.cuda.max_memory_allocated() - before + weights) / 1e6


class Measuring:
    def __init__(self, results: Results, end: float, tiny: bool):
        self.results, self.end, self.tiny = results, end, tiny
        results.put("tiny", tiny)
        self.rows: list[dict[str, Any]] = results.found.get("rows", [])
        self.weights: dict[str, torch.nn.Module] = {}
        self.bodies: dict[Way, Body] = {}

    def group(self, ways: tuple[Way, ...], images: int) -> None:
        bodies = [body for way in ways if (body := self.body(way, images))]
        times: dict[Way, Times] = {body.way: {} for body in bodies}
        for number in range(WARMUPS + ROUNDS):
            offset = number % max(1, len(bodies))
            for body in bodies[offset:] + bodies[:offset]:
                if number >= WARMUPS and time.monotonic() > self.end:
                    break
                start = time.perf_counter()
                try:
                    taken = body.round(images)
                except Exception as error:  # one way that fails ends no other
                    self.skip(body.way, images, f"{type(error).__name__}: {f'{error}'.splitlines()[:1]}")
                    bodies.remove(body)
                    del times[body.way]
                    continue
                if number < WARMUPS:
                    body.begin.clear()
                    body.first = body.first or time.perf_counter() - start
                    continue
                for name, each in taken.items():
                    times[body.way].setdefault(name, []).append(each)
            if number == WARMUPS:  # in case that there is no time for more
                self.note(times, images)
        for body in bodies if time.monotonic() < self.end else ():
            body.peaks[images] = body.peak(images)
        self.note(times, images)

    def body(self, way: Way, images: int) -> Body | None:
        """None, with the reason noted, for what cannot be built or what there is no time for."""
        if way in self.bodies:
            return self.bodies[way]
        needed = COMPILING if way.compiled and CUDA else 0.0
        if time.monotonic() > self.end - needed:
            return self.skip(way, images, "no time was left")
        try:
            config = way.config(self.tiny)
            key = str((config, way.channels_last))
            if key not in self.weights:
                unet = random_unet(config, DEVICE, DTYPE)
                self.weights[key] = unet.to(memory_format=torch.channels_last) if way.channels_last else unet
            self.bodies[way] = Body(way, self.weights[key], self.tiny)
        except (AsdmError, torch.OutOfMemoryError) as error:
            return self.skip(way, images, str(error).splitlines()[0])
        return self.bodies[way]

    def skip(self, way: Way, images: int, reason: str) -> None:
        self.put(way, images, {"skipped": reason})

    def note(self, times: dict[Way, Times], images: int) -> None:
        for way, taken in times.items():
            if not taken:
                self.skip(way, images, "no time was left")
                continue
            body, counts = self.bodies[way], way.counts(self.tiny)
            ms = {name: 1e3 * median(each) for name, each in taken.items()}
            figures = {
                "ms": ms,
                "low_high_ms": {name: [1e3 * min(each), 1e3 * max(each)] for name, each in taken.items()},
                "rounds": len(taken["full"]),
                "counts": counts,
                "generation_s": sum(count * ms[name] for name, count in counts.items()) / 1e3,
                "peak_mb": body.peaks.get(images),
                "cache_mb": (body.cache.stats().cache_bytes or 0) / 1e6 if body.cache else 0.0,
                "begin_ms": 1e3 * median(body.begin) if body.begin else None,
                "first_round_s": body.first,
            }
            self.put(way, images, figures)

    def put(self, way: Way, images: int, figures: dict[str, Any]) -> None:
        row = {"way": asdict(way), "images": images, **figures}
        self.rows = [each for each in self.rows if _named(each) != _named(row)] + [row]
        self.results.put("rows", self.rows)
        print(way.shape, way.name, images, figures.get("skipped") or figures["ms"], flush=True)


def _named(row: dict[str, Any]) -> tuple[Any, ...]:
    return (*(row["way"][key] for key in ("shape", "name", "compiled")), row["images"])


def whole(measuring: Measuring) -> None:
    """Latents of whole generations: plain, the DeepCache package, and the plan that is fastest by its sum."""
    planned = [row for row in measuring.rows if row["images"] == 1 and "ms" in row and row["way"]["plan"]]
    whole_unet = [row for row in planned if not row["way"]["removed"] and not row["way"]["guided"]]
    if not whole_unet:
        measuring.results.put("whole skipped", "no time was left")
        return
    plain = measuring.bodies[GROUPS["sd15"][0][0]]
    pipe: Any = StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=twin(plain.unet),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    text = inputs(plain.config, 1, None, 77, DEVICE, DTYPE)["encoder_hidden_states"]
    fastest = min(whole_unet, key=lambda row: row["generation_s"])["way"]["name"]
    best = next(way for way in measuring.bodies if way.name == fastest)
    setups: dict[str, tuple[int, list[PatchSpec]]] = {
        "plain": (STEPS, []),
        best.name: (STEPS, [cache_spec(read_plan(best.plan))]),
        "fewer steps": (STEPS // 2, []),
    }
    package = DeepCacheSpec(interval=3, steps=STEPS)
    if faults := patch_of(package).check({"unet": plain.config}, []):
        measuring.results.put("DeepCache package", "\n".join(faults))
    else:
        setups["DeepCache package"] = (STEPS, [package])
    times: dict[str, list[float]] = {name: [] for name in setups}
    for number in range(4):
        for name, (steps, specs) in setups.items() if time.monotonic() < measuring.end else ():
            with applied(pipe, [patch_of(spec) for spec in specs], lambda _: pipe.unet):
                draw = partial(
                    pipe,
                    prompt_embeds=text,
                    negative_prompt_embeds=text,
                    num_inference_steps=steps,
                    generator=torch.Generator().manual_seed(0),
                    output_type="latent",
                )
                taken = seconds(draw)
            if number:
                times[name].append(taken)
                measuring.results.put("whole", {name: median(each) for name, each in times.items() if each})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=GROUPS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=105.0)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    end = time.monotonic() + given.seconds
    torch._dynamo.config.recompile_limit = 64  # bodies of one class count together
    measuring = Measuring(Results(given.out), end, given.tiny)
    for images in IMAGES:
        for ways in GROUPS[given.part]:
            measuring.group(ways, images)
        if images == 1 and given.part == "sd15":
            whole(measuring)


if __name__ == "__main__":
    main()
