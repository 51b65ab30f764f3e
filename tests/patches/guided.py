"""Every kind of pipeline whose rows a guidance-schedule knows, and a plain loop with guidance in an interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionAdapterPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionUpscalePipeline,
    T2IAdapter,
)
from torch import Tensor

from asdm_cli.patches.guidance import PROMPT
from tests import tiny
from tests.patches import pipes
from tests.patches.pipes import draw

PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
UNCHECKED = ("safety_checker", "feature_extractor")


def _of(kind: Any, *parts: str, more: Any = None, **changes: Any) -> Any:
    """One of diffusers' own, around a tiny UNet of two levels and this shape."""
    held = pipes.pipe(unet=tiny.unet(tiny.shape("sd15", **tiny.SHALLOW["sd15"], **changes))).components
    named = {name: held[name] for name in (*PARTS, *parts)}
    return kind(**named, **(more or {}))


def _adapter() -> Any:
    torch.manual_seed(6)
    channels = list(tiny.SHALLOW["sd15"]["block_out_channels"])
    adapter = T2IAdapter(in_channels=3, channels=channels, num_res_blocks=1, downscale_factor=pipes.SCALE)
    more = {"adapter": adapter, "requires_safety_checker": False}
    return _of(StableDiffusionAdapterPipeline, *UNCHECKED, more=more)


def _consistency() -> Any:
    more = {"requires_safety_checker": False}
    made = _of(LatentConsistencyModelPipeline, *UNCHECKED, more=more, time_cond_proj_dim=8)
    made.scheduler = LCMScheduler.from_config(made.scheduler.config)
    return made


PICTURE = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
SMALLER = PICTURE[..., ::4, ::4]
MAP = torch.linspace(0, 1, 32 * 32).reshape(1, 32, 32)
DEPTH = {"depth_estimator": None, "feature_extractor": None}
OTHERS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "pix2pix": (
        partial(
            _of,
            StableDiffusionInstructPix2PixPipeline,
            *UNCHECKED,
            more={"requires_safety_checker": False},
            in_channels=8,
        ),
        {"image": PICTURE},
    ),
    "depth": (
        partial(_of, StableDiffusionDepth2ImgPipeline, more=DEPTH, in_channels=5),
        {"image": PICTURE, "depth_map": MAP, "strength": 0.7},
    ),
    "upscale": (
        partial(
            _of,
            StableDiffusionUpscalePipeline,
            more={"low_res_scheduler": DDPMScheduler()},
            in_channels=7,
            num_class_embeds=1000,
        ),
        {"image": SMALLER},
    ),
    "adapter": (_adapter, {"image": PICTURE, "height": 32, "width": 32}),
    "consistency": (_consistency, {"height": 32, "width": 32, "guidance_scale": 5.0}),
}
"""Name -> a pipeline beside `pipes.KINDS`, and what it is given besides a prompt."""
KINDS = (*pipes.KINDS, *OTHERS)
GROUPS = {"consistency": (), "pix2pix": (PROMPT, "image", "unconditional")}
"""Kind -> the groups of its rows, where they are not two halves."""


@cache
def pipe_of(kind: str) -> Any:
    made = OTHERS[kind][0]() if kind in OTHERS else pipes.shallow(kind)
    made.set_progress_bar_config(disable=True)
    return made


def latents(kind: str, steps: int = 8, count: int = 1, **settings: Any) -> Tensor:
    pipe = pipe_of(kind)
    if kind not in OTHERS:
        return draw(pipe, steps, count=count, **settings)
    given = {"prompt": ["a red fox", "two owls"][:count], "num_inference_steps": steps, "output_type": "latent"}
    pictures = {
        key: value.repeat(count, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) else value
        for key, value in OTHERS[kind][1].items()
    }
    noise = [torch.Generator().manual_seed(seed) for seed in range(count)]
    return pipe(**{**given, **pictures, **settings}, generator=noise).images


def with_rows(pipe: Any, work: Callable[[], Tensor]) -> tuple[Tensor, list[int]]:
    """What is drawn, and how many rows its UNet's calls compute."""
    seen: list[int] = []
    hook = pipe.unet.time_proj.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        return work(), seen
    finally:
        hook.remove()


def by_hand(pipe: Any, groups: Sequence[str], inside: range, outside: str, work: Callable[[], Tensor]) -> Tensor:
    """The plain loop, which computes all rows and puts others in the place of those that it should not have."""
    known: dict[str, Tensor] = {}
    calls: list[int] = []

    def replaced(_: Any, __: Any, output: Any) -> Any:
        call = len(calls)
        calls.append(call)
        parts = dict(zip(groups, output[0].chunk(len(groups)), strict=True))
        prompt = parts[PROMPT]
        for group in parts.keys() - {PROMPT}:
            if call in inside:
                known[group] = parts[group] if outside == "reuse" else parts[group] - prompt
            elif outside == "conditional" or group not in known:
                parts[group] = prompt
            else:
                parts[group] = known[group] + (0 if outside == "reuse" else prompt)
        whole = torch.cat([parts[group] for group in groups])
        return (whole,) if isinstance(output, tuple) else type(output)(sample=whole)

    hook = pipe.unet.register_forward_hook(replaced)
    try:
        return work()
    finally:
        hook.remove()
