"""Prompts -> pictures, each with its own seed, so that a picture depends on its prompt, its index and the seed alone.

Equal noise is not enough for that: float kernels sum in another order when the batch or the number of threads
changes, the sampler amplifies it, and some pixel values (of the pocket model, in float32: 2 in 100,000) end up on
the other side of a rounding.
So on the CPU every UNet call has one fixed shape (a picture has a fixed row of it; rows without a wanted picture
are filled up), and runs on one thread; cores are kept busy by drawing several calls side by side. Pictures are
then the same, bit by bit, at any batch size, with any number of processes and after an interruption.
On CUDA the batch is the call, because small calls would waste the device: pictures are equal for one batch size,
and differ by rounding between batch sizes. Protocol cards therefore name the batch on CUDA only.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL.Image import Image

from asdm_cli.console import bar, note
from asdm_cli.errors import RunError
from asdm_cli.switching.pipelines import switched

SMALL = 100_000_000
"""UNets of fewer parameters leave most of their time to per-call overhead, so they draw ROWS pictures per call."""
ROWS = 4


@dataclass(frozen=True)
class Layout:
    """How pictures are put into UNet calls: `rows` per call, filled up or not, `workers` calls side by side."""

    rows: int
    filled: bool
    workers: int
    threads: int

    def calls(self, indices: Iterable[int]) -> list[list[int]]:
        """Index i is drawn in call i // rows, whichever other indices are wanted."""
        together: dict[int, list[int]] = {}
        for index in sorted(set(indices)):
            together.setdefault(index // self.rows, []).append(index)
        return list(together.values())

    def seats(self, call: Sequence[int]) -> list[int]:
        """The index that each row draws; a filled-up call puts index i always into row i % rows."""
        if not self.filled:
            return list(call)
        seats = [call[0]] * self.rows
        for index in call:
            seats[index % self.rows] = index
        return seats


def prompt_seed(seed: int, index: int) -> int:
    """The seed (0 .. 2**63 - 1) of prompt `index`, by numpy's SeedSequence: stable over versions and machines."""
    return int(numpy.random.SeedSequence([seed, index]).generate_state(1, numpy.uint64)[0] >> 1)


def layout(pipe: DiffusionPipeline, prompts: int, batch: int) -> Layout:
    """`batch` is the UNet call on CUDA, and how many pictures are under way at a time on the CPU."""
    threads = torch.get_num_threads()
    if pipe.device.type != "cpu":
        return Layout(rows=batch, filled=False, workers=1, threads=threads)
    several = switched(pipe)
    unets = several.unets.values() if several else [pipe.unet]
    if max(sum(weight.numel() for weight in unet.parameters()) for unet in unets) < SMALL:
        return Layout(rows=ROWS, filled=True, workers=min(threads, -(-batch // ROWS)), threads=1)
    # A few pictures of a big model would leave cores idle; from `threads` prompts on, one thread each as above.
    return Layout(rows=1, filled=True, workers=min(threads, batch, prompts), threads=max(1, threads // prompts))


def pictures(  # noqa: PLR0913 - what a picture depends on, each by its name
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    indices: Iterable[int],
    *,
    steps: int,
    guidance: float,
    size: int | None,
    seed: int,
    batch: int,
    alone: bool = False,
    what: str = "drawing",
) -> Iterator[tuple[int, Image]]:
    """(index, picture) of the wanted `indices` into `prompts`, in rising order, each as soon as it is drawn.

    `alone` draws one call at a time, for pipelines that keep what they remember of a picture in the UNet. A bar that
    says `what` counts UNet calls. When nobody wants more, or on Ctrl-C, all that is under way ends at its next one.
    """
    plan = layout(pipe, len(prompts), batch)
    calls = plan.calls(indices)
    settings = {"num_inference_steps": steps, "guidance_scale": guidance, "height": size, "width": size}

    def draw(call: list[int]) -> list[tuple[int, Image]]:
        seats = plan.seats(call)
        drawn = _draw(pipe, [prompts[i] for i in seats], [prompt_seed(seed, i) for i in seats], settings)
        return [(index, drawn[seats.index(index)]) for index in call]

    at_a_time = 1 if alone else plan.workers
    workers = ThreadPoolExecutor(at_a_time, initializer=torch.set_num_threads, initargs=(plan.threads,))
    with bar(what, len(calls) * unet_calls(pipe, steps)) as one_more, _at_each_call(pipe, one_more) as stop:
        try:
            for drawn in workers.map(draw, calls):
                yield from drawn
        except KeyboardInterrupt:
            note("stopping at the next UNet call")
            raise
        finally:
            stop.set()
            workers.shutdown(cancel_futures=True)


@contextmanager
def _at_each_call(pipe: Any, tell: Callable[[], None]) -> Iterator[threading.Event]:
    """Tell of every UNet call in any thread; once the event is set, a call ends its drawing instead."""
    stop = threading.Event()

    def before(*_: Any) -> None:
        if stop.is_set():
            raise CancelledError
        tell()

    hook = pipe.unet.register_forward_pre_hook(before)
    try:
        yield stop
    finally:
        hook.remove()


def unet_calls(pipe: DiffusionPipeline, steps: int) -> int:
    """UNet calls of one picture: samplers of second order make more than `steps`."""
    scheduler: Any = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(steps)
    return len(scheduler.timesteps)


def _draw(pipe: DiffusionPipeline, prompts: list[str], seeds: list[int], settings: dict[str, Any]) -> list[Image]:
    """One call of the pipeline; it encodes the prompts once and draws every picture's noise by its own generator."""
    alone: Any = copy.copy(pipe)  # networks are shared between threads, the scheduler counts steps and cannot be
    alone.scheduler = copy.deepcopy(pipe.scheduler)
    noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    drawn = alone(prompt=prompts, generator=noise, output_type="pt", **settings).images
    if not torch.isfinite(drawn).all():
        raise RunError(
            "pictures that are no numbers came out, which would be saved black; draw in float32 or bfloat16 (`dtype`), "
            "and if they are the same there, fetch or train the model again"
        )
    processor = alone.image_processor
    return processor.numpy_to_pil(processor.pt_to_numpy(drawn))  # what "pil" does
