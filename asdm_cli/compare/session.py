"""Set-ups in memory: those of one model share it, and each is put in force for as long as it is looked at."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from asdm_cli.compare.setup import Setup, check_memory
from asdm_cli.errors import blame
from asdm_cli.models.directory import ModelDirectory
from asdm_cli.models.load import load_pipeline, load_unet, random_unet
from asdm_cli.models.metadata import member, schedule_of, unet_components
from asdm_cli.models.schedulers import set_sampler
from asdm_cli.patches.base import Stats, applied, patch_of

PROMPT = "a red fox"
"""What whole images are timed with; the text encoder pads it, so its length changes no cost."""
CPU = torch.device("cpu")


class Session:
    """Where set-ups draw. On a GPU that does not hold all of them, models that wait live in the CPU's memory; moving
    them is never timed."""

    def __init__(self, device: torch.device, dtype: torch.dtype, setups: Sequence[Setup] = ()):
        self.device, self.dtype = device, dtype
        sizes = check_memory(setups, device, dtype) if setups else {}
        self.crowded = device.type == "cuda" and sum(sizes.values()) > 0.8 * torch.cuda.mem_get_info(device)[0]
        self._pipelines: dict[Path, Any] = {}
        self._unets: dict[tuple[Any, ...], Any] = {}

    @contextmanager
    def stage(self, setup: Setup) -> Iterator[tuple[Any, Callable[[], Stats]]]:
        """The pipeline, which draws as the set-up does, and what tells of its last drawing; afterwards it is what it
        was."""
        assert setup.model is not None, "only set-ups with a pipeline draw"
        with blame(setup.name, "loading the weights"):
            pipe = self.pipeline(setup.model)
            unet = self.made(setup) if setup.make is not None else pipe.unet
        own = pipe.scheduler, pipe.unet
        with ExitStack() as undo:
            undo.callback(_put_back, pipe, *own)
            if self.crowded:
                undo.callback(pipe.to, "cpu")
                pipe.to(self.device)
            set_sampler(pipe, setup.sampler)
            pipe.unet = unet
            patches = [patch_of(spec) for spec in setup.patches]
            yield pipe, undo.enter_context(applied(pipe, patches, lambda name: self.turn(setup, name)))

    def pipeline(self, model: ModelDirectory) -> Any:
        """Without what it carries: a set-up says itself what is in force."""
        if model.path not in self._pipelines:
            place = CPU if self.crowded else self.device
            self._pipelines[model.path] = load_pipeline(model, place, self.dtype, with_patches=False)
        return self._pipelines[model.path]

    def unet(self, model: ModelDirectory, device: torch.device | None = None) -> UNet2DConditionModel:
        """That of a pipeline that is loaded, or read alone."""
        if model.path in self._pipelines:
            return self._pipelines[model.path].unet
        return self._once((model.path,), lambda: load_unet(model, device or self.device, self.dtype))

    def made(self, setup: Setup) -> UNet2DConditionModel:
        """The UNet that is put together from others, whose tensors it shares."""
        assert setup.make is not None, "others have one of their own"
        return self._once((*setup.body, setup.name), lambda: setup.make(self.unet))  # type: ignore[misc]

    def turn(self, setup: Setup, name: str) -> UNet2DConditionModel:
        """One of the UNets that take turns beside the first: of another model, or of this one's `unets/`."""
        assert setup.model is not None, "only set-ups with a pipeline switch"
        schedule = schedule_of(setup.patches)
        waits = schedule is not None and schedule.offload
        if name in setup.unets:
            return self.unet(setup.unets[name], CPU if waits else None)
        inside = member(setup.model, name, unet_components(setup.patches)[name])
        return self.unet(inside, CPU if waits else None)

    def bare(self, setup: Setup) -> UNet2DConditionModel:
        """The UNet alone, without patches; those of one body share every tensor, in modules for hooks of their own."""
        with blame(setup.name, "loading the weights" if setup.model else "making random weights"):
            if setup.make is not None:
                return self.made(setup)
            if setup.model is not None:
                return self.unet(setup.model)
            return self._once(setup.body, lambda: random_unet(setup.config, self.device, self.dtype))

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._unets:
            self._unets[key] = make()
        return self._unets[key]


def _put_back(pipe: Any, scheduler: Any, unet: Any) -> None:
    pipe.scheduler, pipe.unet = scheduler, unet


def twin(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Modules of its own, for hooks of its own, around the same tensors."""
    shared = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
    return copy.deepcopy(unet, shared)


def networks(pipe: Any) -> dict[str, torch.nn.Module]:
    """Every network of a pipeline, by its own names."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def image_call(pipe: Any, setup: Setup, size: int | None, images: int = 1, steps: int | None = None) -> Any:
    """Text to pixels of one seed, as a user would call the pipeline."""

    def call() -> None:
        pipe(
            [PROMPT] * images,
            num_inference_steps=steps or setup.steps,
            guidance_scale=setup.guidance,
            height=size,
            width=size,
            generator=torch.Generator("cpu").manual_seed(0),
            output_type="np",
        )

    return call
