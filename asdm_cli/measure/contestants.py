"""What is measured: one model, described so that any process can build it, and the work that it is timed at."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from asdm_cli.errors import AsdmError, RunError
from asdm_cli.inheritance.course import Nodes
from asdm_cli.inheritance.engine import Engine
from asdm_cli.inheritance.pipelines import attach
from asdm_cli.models.load import load_pipeline, load_unet, random_unet
from asdm_cli.models.schedulers import set_sampler
from asdm_cli.models.source import ModelDirectory
from asdm_cli.recipe.patches import Switch
from asdm_cli.switching.inheriting import inherit
from asdm_cli.unet import cost

PROMPT = "a red fox"
"""What whole images are drawn from; the text encoder pads it, so its length changes no cost."""


@dataclass(frozen=True)
class Protocol:
    """How every contestant of a run is measured. `size` is in pixels; None is each model's own."""

    device: torch.device
    dtype: torch.dtype
    batches: tuple[int, ...]
    repeats: int
    warmups: int
    guidance: float
    sampler: str
    size: int | None


@dataclass(frozen=True)
class Entrant:
    """A contestant before it is built; travels to other processes. `directory` None: random weights."""

    name: str
    source: str
    directory: ModelDirectory | None
    config: dict[str, Any]
    parameters: dict[str, int]
    """Of the UNet, by block; of several UNets, by name."""
    macs: cost.Macs
    """Of one UNet call on one latent; of several UNets, the first one's."""
    latent: tuple[int, int, int]
    """Channels, height, width."""
    tokens: int
    steps: int
    calls: int
    """UNet calls of an image, which some samplers make more of than steps; of a UNet alone, its steps."""
    draws: bool
    """Whether whole images are timed, not only UNet calls."""
    nodes: Nodes | None = None
    """Of the plan that is in force; of several UNets, only of one that takes the place of their own, on the first."""
    switch: Switch | None = None
    """Who takes turns, where several UNets do: their calls are unlike each other, so only images are measured."""

    @property
    def body(self) -> str:
        """Equal for UNets alone of one shape with random weights, which need be in memory, and measured, only once."""
        return json.dumps(self.config, sort_keys=True) if self.directory is None else self.name


@dataclass(frozen=True)
class Contestant:
    """An entrant with its weights on the device."""

    entrant: Entrant
    protocol: Protocol
    unet: UNet2DConditionModel
    pipe: DiffusionPipeline | None
    engine: Engine | None = None
    """Of one UNet; several have one each."""

    @property
    def name(self) -> str:
        return self.entrant.name

    @property
    def components(self) -> dict[str, torch.nn.Module]:
        """Every network that is in memory for this contestant, by its pipeline's names."""
        return networks(self.pipe) if self.pipe is not None else {"unet": self.unet}

    def unet_inputs(self, images: int) -> dict[str, Any]:
        """Arguments of the UNet call of so many images, on latents of noise."""
        entrant, protocol = self.entrant, self.protocol
        rows = images * cost.rows(entrant.config, protocol.guidance)
        return cost.inputs(entrant.config, rows, entrant.latent[1:], entrant.tokens, protocol.device, protocol.dtype)

    def unet_call(self, images: int) -> Callable[[], None]:
        """The UNet call of so many images, whatever plan there is."""
        inputs = self.unet_inputs(images)

        @torch.inference_mode()
        def call() -> None:
            with self.engine.plain() if self.engine else nullcontext():
                self.unet(**inputs, return_dict=False)

        return call

    def image_call(self, images: int, steps: int | None = None) -> Callable[[], None]:
        """Text to pixels, `images` at once, as a user would call the pipeline."""
        assert self.pipe is not None, "only contestants that draw have an image call"
        protocol = self.protocol
        return image_call(self.pipe, images, steps or self.entrant.steps, protocol.guidance, protocol.size)


def networks(pipe: DiffusionPipeline) -> dict[str, torch.nn.Module]:
    """Every network of a pipeline, by its own names."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def image_call(
    pipe: DiffusionPipeline, images: int, steps: int, guidance: float, size: int | None
) -> Callable[[], None]:
    """Text to pixels of one seed, as a user would call the pipeline."""
    draw: Callable[..., Any] = pipe

    def call() -> None:
        draw(
            [PROMPT] * images,
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=size,
            width=size,
            generator=torch.Generator("cpu").manual_seed(0),
            output_type="np",
        )

    return call


def bodies(entrants: Sequence[Entrant]) -> dict[str, Entrant]:
    """The first entrant of each body: a plan changes nothing of what one UNet call costs without it."""
    found: dict[str, Entrant] = {}
    for entrant in entrants:
        found.setdefault(entrant.body, entrant)
    return found


def first_of_one(entrants: Iterable[Entrant]) -> Entrant:
    """The first that has one UNet: what UNet calls are compared with."""
    return next(entrant for entrant in entrants if entrant.switch is None)


def build_all(entrants: Sequence[Entrant], protocol: Protocol) -> list[Contestant]:
    """Those of one body share every tensor."""
    made: dict[str, UNet2DConditionModel] = {}
    for body, entrant in bodies(entrants).items():
        if entrant.directory is None:
            with blame(entrant.name, "making random weights"):
                made[body] = random_unet(entrant.config, protocol.device, protocol.dtype)
    return [build(entrant, protocol, made.get(entrant.body)) for entrant in entrants]


def build(entrant: Entrant, protocol: Protocol, body: UNet2DConditionModel | None = None) -> Contestant:
    """Weights of `body`, from the files, or random ones; RunError with the contestant's name if that fails."""
    with blame(entrant.name, "loading the weights"):
        pipe, unet = _networks(entrant, protocol) if body is None else (None, _twin(body))
    return Contestant(entrant, protocol, unet, pipe, _engine(entrant, pipe, unet))


def _twin(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Modules of its own, for hooks of its own, around the same tensors."""
    shared = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
    return copy.deepcopy(unet, shared)


def _engine(entrant: Entrant, pipe: DiffusionPipeline | None, unet: UNet2DConditionModel) -> Engine | None:
    if entrant.nodes is None:
        return None
    if pipe is not None and entrant.switch is not None:
        inherit(pipe, entrant.nodes)
        return None
    return attach(pipe, entrant.nodes).engine if pipe is not None else Engine(unet, entrant.nodes)


def _networks(entrant: Entrant, protocol: Protocol) -> tuple[DiffusionPipeline | None, UNet2DConditionModel]:
    place = protocol.device, protocol.dtype
    if entrant.directory is None:
        return None, random_unet(entrant.config, *place)
    if not entrant.draws:
        return None, load_unet(entrant.directory, *place)
    pipe = load_pipeline(entrant.directory, *place, with_plan=entrant.switch is not None and entrant.nodes is None)
    set_sampler(pipe, protocol.sampler)
    return pipe, pipe.unet


@contextmanager
def blame(name: str, doing: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into one RunError that names the contestant."""
    try:
        yield
    except AsdmError:
        raise
    except (torch.OutOfMemoryError, MemoryError):
        advice = "use smaller `batches`, a smaller `size`, or fewer contestants at once"
        raise RunError(f"contestant {name!r}: out of memory while {doing}; {advice}") from None
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise RunError(f"contestant {name!r}: {doing} failed ({type(error).__name__}: {reason})") from error
