"""Prompts -> images, each with its own seed, so that an image depends on its prompt, its index and the seed alone.

Equal noise is not enough for that: float kernels sum in another order when the batch or the number of threads
changes, the sampler amplifies it, and some pixel values (of the pocket model, in float32: 2 in 100,000) end up on
the other side of a rounding.
So on the CPU every UNet call has one fixed shape (an image has a fixed row of it; rows without a wanted image
are filled up), and runs on one thread; cores are kept busy by drawing several calls side by side. Images are
then the same, bit by bit, at any batch size, with any number of processes and after an interruption. What decides
while it runs what is computed would decide for all rows of a call at once; it is drawn one image a call.
On CUDA the batch is the call, because small calls would waste the device: images are equal for one batch size,
and differ by rounding between batch sizes. Protocol cards therefore name the batch on CUDA only.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import numpy
import torch
from accelerate import PartialState
from diffusers import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL.Image import Image
from torch import Tensor

from asdm_cli.console import bar, note
from asdm_cli.data.images import read_rgb
from asdm_cli.errors import RunError
from asdm_cli.models.load import cut_captions, device_and_dtype
from asdm_cli.models.pipelines import CALLED, PIPELINES, Kind
from asdm_cli.models.schedulers import set_steps
from asdm_cli.sampling.prompts import Given

SMALL = 100_000_000
"""UNets of fewer parameters leave most of their time to per-call overhead, so they draw ROWS images per call."""
ROWS = 4
PATIENCE = timedelta(hours=1)
"""How long processes wait for each other: while the first one measures 30,000 pictures the others have nothing to do,
and torch's own patience on GPUs is 10 minutes. A machine that falls silent without ending is noticed only then."""


@dataclass(frozen=True)
class SamplingSettings:
    """How a set-up draws; `size` in pixels (None: the model's own). `sampler` is the one that the pipeline
    was loaded with."""

    steps: int
    guidance: float
    size: int | None
    seed: int
    sampler: str = "own"
    batch: int = 16
    negative: str = ""
    strength: float | None = None
    """This and the next: of pipelines that draw from pictures; None is their own."""
    image_guidance: float | None = None


def processes(device: str = "auto") -> PartialState:
    """This process among all: the first who asks says where they work. accelerate takes processes of a machine without
    a GPU for lone ones unless it is told."""
    return PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=PATIENCE)


def place(device: str, dtype: str, state: PartialState) -> tuple[torch.device, torch.dtype]:
    """Where a process works, and in what format: of several on GPUs each has one of its own. Raises ModelError."""
    own, format_ = device_and_dtype(device, dtype)
    return (state.device if own.type == "cuda" and state.num_processes > 1 else own), format_


@dataclass(frozen=True)
class Share:
    """Which of `count` processes draws what: stretches of prompts in turn, by index alone."""

    rank: int
    count: int

    def of(self, indices: Iterable[int], batch: int, device: torch.device) -> list[int]:
        """Whole UNet calls, which are of `batch` images on a GPU."""
        stretch = ROWS if device.type == "cpu" else batch
        return [index for index in indices if index // stretch % self.count == self.rank]


@dataclass(frozen=True)
class Layout:
    """How images are put into UNet calls: `rows` per call, filled up or not, `workers` calls side by side."""

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

    def seats(self, call: Sequence[int], count: int) -> list[int]:
        """The index below `count` that each row draws; a filled-up call puts index i always into row i % rows."""
        if not self.filled:
            return list(call)
        first = call[0] // self.rows * self.rows
        return [min(first + row, count - 1) for row in range(self.rows)]


def prompt_seed(seed: int, index: int) -> int:
    """The seed (0 .. 2**63 - 1) of prompt `index`, by numpy's SeedSequence: stable over versions and machines."""
    return int(numpy.random.SeedSequence([seed, index]).generate_state(1, numpy.uint64)[0] >> 1)


def layout(pipe: DiffusionPipeline, prompts: int, batch: int, together: bool = True) -> Layout:
    """`batch` is the UNet call on CUDA, and how many calls are under way at a time on the CPU; not `together`, each
    image has a call of its own."""
    threads = torch.get_num_threads()
    if pipe.device.type != "cpu":
        return Layout(rows=batch if together else 1, filled=False, workers=1, threads=threads)
    unets = [part for part in pipe.unet.modules() if isinstance(part, UNet2DConditionModel)]  # whatever is around them
    if max(sum(weight.numel() for weight in unet.parameters()) for unet in unets) < SMALL:
        return Layout(rows=ROWS if together else 1, filled=True, workers=min(threads, batch), threads=1)
    # A few images of a big model would leave cores idle; from `threads` prompts on, one thread each as above.
    return Layout(rows=1, filled=True, workers=min(threads, batch, prompts), threads=max(1, threads // prompts))


def draw(  # noqa: PLR0913 - what is drawn, from what and how, each by its name
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    indices: Iterable[int],
    settings: SamplingSettings,
    *,
    given: Sequence[Given] = (),
    reentrant: bool = True,
    together: bool = True,
    what: str = "drawing",
) -> Iterator[tuple[int, Image]]:
    """(index, image) of the wanted `indices` into `prompts`, in rising order, each as soon as it is drawn; from what is
    `given` with each prompt, where a pipeline draws from pictures.

    One call at a time where the pipeline is not `reentrant`: what it remembers of an image lies in the UNet; one image
    a call where what it computes for it depends on what is drawn `together`. A bar that says `what` counts UNet calls.
    When nobody wants more, or on Ctrl-C, all that is under way ends at its next one.
    """
    plan = layout(pipe, len(prompts), settings.batch, together)
    if cut := too_long(pipe, prompts):
        _note_once(cut)
    calls = plan.calls(indices)
    scheduler: Any = copy.deepcopy(pipe.scheduler)
    set_steps(scheduler, type(pipe).__name__, settings.steps, settings.strength)
    at_a_time = plan.workers if reentrant else 1
    stop, own = threading.Event(), threading.local()
    tokenizers = [_tokenizers(pipe) for _ in range(at_a_time)]

    def begin() -> None:
        torch.set_num_threads(plan.threads)
        own.tokenizers = tokenizers.pop()

    def one_call(call: list[int]) -> list[tuple[int, Image]]:
        seats = plan.seats(call, len(prompts))
        seeds = [prompt_seed(settings.seed, index) for index in seats]
        asked = arguments(
            pipe, [prompts[index] for index in seats], settings, [given[index] for index in seats if given]
        )
        drawn = _images(pipe, own.tokenizers, asked, seeds)
        return [(index, drawn[seats.index(index)]) for index in call]

    def at_each_unet_call(*_: Any) -> None:
        if stop.is_set():
            raise CancelledError
        one_more()

    workers = ThreadPoolExecutor(at_a_time, initializer=begin)
    with bar(what, len(calls) * len(scheduler.timesteps)) as one_more:
        hook = pipe.unet.register_forward_pre_hook(at_each_unet_call)
        try:
            for drawn in workers.map(one_call, calls):
                yield from drawn
        except KeyboardInterrupt:
            note("stopping at the next UNet call")
            raise
        finally:
            stop.set()
            workers.shutdown(cancel_futures=True)
            hook.remove()


def too_long(pipe: Any, prompts: Sequence[str]) -> str:
    """In words, how many prompts have more tokens than a text encoder takes in; '' if none has."""
    count, most = cut_captions(pipe, each_once := dict.fromkeys(prompts))
    are = "is" if count == 1 else "are"
    told = f"{count} of {len(each_once)} prompts {are} longer than the {most} tokens that the text encoder takes in"
    return f"{told}, and cut there" if count else ""


@cache
def _note_once(text: str) -> None:
    """Whoever draws."""
    note(text)


def latents(pipe: Any, prompt: str, settings: SamplingSettings, index: int, given: Sequence[Given] = ()) -> Tensor:
    """What one image ends in before it is decoded, with the seed of prompt `index`; from one that is `given`, if any
    is."""
    final: Tensor = pipe(
        **arguments(pipe, [prompt], settings, given),
        generator=[torch.Generator("cpu").manual_seed(prompt_seed(settings.seed, index))],
        output_type="latent",
    )[0]
    return final


def arguments(
    pipe: Any, prompts: Sequence[str], settings: SamplingSettings, given: Sequence[Given] = ()
) -> dict[str, Any]:
    """What a pipeline's call is given, by its own names: as much as its class takes. A picture says how large it is."""
    takes, known = PIPELINES.get(type(pipe).__name__, Kind()).takes, inspect.signature(type(pipe).__call__).parameters
    width, height = given[0].size if given else (settings.size, settings.size)
    ours: dict[str, Any] = {"strength": settings.strength, "image_guidance": settings.image_guidance}
    if given:
        ours |= {"image": [read_rgb(each.image) for each in given]}
        ours |= {"mask": [each.area for each in given]} if "mask" in takes else {}
    return {
        "prompt": [*prompts],
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance,
        **({"negative_prompt": [settings.negative] * len(prompts)} if settings.negative else {}),
        **({"height": height, "width": width} if "height" in known else {}),
        **{CALLED[word]: ours[word] for word in takes if ours.get(word) is not None},
    }


def _tokenizers(pipe: Any) -> dict[str, Any]:
    """Copies: how far a tokenizer pads and cuts is a state of its own, which threads would change under each other."""
    return {name: copy.deepcopy(part) for name, part in pipe.components.items() if name.startswith("tokenizer")}


def _images(
    pipe: DiffusionPipeline,
    tokenizers: Mapping[str, Any],
    asked: Mapping[str, Any],
    seeds: Sequence[int],
) -> list[Image]:
    """One call of the pipeline; it encodes the prompts once and draws every image's noise by its own generator."""
    own: Any = copy.copy(pipe)  # networks are shared between threads; what counts steps or has a state cannot be
    for name, part in {**tokenizers, "scheduler": copy.deepcopy(pipe.scheduler)}.items():
        own.__dict__[name] = part
    drawn = own(
        **asked,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="pt",
    ).images
    if not torch.isfinite(drawn).all():
        raise RunError(
            "pictures that are no numbers came out, which would be saved black; draw in float32 or bfloat16 (`dtype`), "
            "and if they are the same there, fetch or train the model again"
        )
    processor = own.image_processor
    return processor.numpy_to_pil(processor.pt_to_numpy(drawn))  # what "pil" does
