"""The measurement of `asdm assemble` with `explore`: assemblies in memory, their times side by side, their pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from asdm_cli.measure.contestants import blame
from asdm_cli.measure.drawing import Share, Style, draw
from asdm_cli.measure.latency import Work, stopwatch, take_turns
from asdm_cli.measure.pictures import PictureSet
from asdm_cli.models.donors import Donor, Made
from asdm_cli.models.load import load_unet
from asdm_cli.models.metadata import Origin
from asdm_cli.unet.cost import inputs, meta_unet

Seconds = dict[str, list[float]]
"""Contestant -> seconds of a UNet call in each round."""


@dataclass(frozen=True)
class Candidate:
    """A combination that can be put together, and what it costs on paper: one UNet call on one picture."""

    name: str
    levels: tuple[str, ...]
    mid: str
    made: Made
    parameters: int
    macs: int


@dataclass(frozen=True)
class Timing:
    """How UNet calls are timed; `size` in pixels of the latent."""

    rows: int
    size: int
    tokens: int
    repeats: int
    warmups: int


def load_donors(pipe: Any, donors: Mapping[str, Donor], style: Style) -> dict[str, UNet2DConditionModel]:
    """Every donor's UNet; the first one's is the pipeline's own."""
    first, *others = donors
    return {first: pipe.unet} | {name: load_unet(donors[name].directory, style.device, style.dtype) for name in others}


def build(made: Made, unets: Mapping[str, UNet2DConditionModel]) -> UNet2DConditionModel:
    """The assembly of UNets in memory: it shares their tensors, so that many need no more room than the donors."""
    states = {name: unet.state_dict() for name, unet in unets.items()}
    keys = made.assembly.key_map(states)
    unet = meta_unet(made.assembly.config)
    unet.load_state_dict({new: states[donor][old] for new, (donor, old) in keys.items()}, assign=True)
    return unet.eval()


def time_calls(
    unets: Mapping[str, UNet2DConditionModel], timing: Timing, style: Style, origin: Origin, file: Path
) -> Seconds:
    """A UNet call with everybody, in turn; what an interrupted run of this `origin` has measured holds."""
    stamp = json.dumps(origin, sort_keys=True)
    known = json.loads(file.read_text()) if file.is_file() else {}
    if known.get("origin") == stamp:
        return dict(known["seconds"])
    works = {name: _call(unet, timing, style) for name, unet in unets.items()}
    seconds = take_turns(
        works,
        warmups=timing.warmups,
        rounds=timing.repeats,
        seconds=stopwatch(style.device),
        doing="timing UNet calls",
    )
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"origin": stamp, "seconds": seconds}))
    partial.replace(file)
    return seconds


def draw_share(
    pipe: DiffusionPipeline, name: str, prompts: Sequence[str], style: Style, target: PictureSet, share: Share
) -> None:
    """Draw this process's missing pictures of one contestant, whose UNet the pipeline has."""
    wanted = target.missing(share.of(range(target.count), style.batch))
    if not wanted:
        return
    with blame(name, "drawing"):
        for index, picture in draw(name, pipe, prompts, wanted, style):
            target.save(index, picture)


def _call(unet: UNet2DConditionModel, timing: Timing, style: Style) -> Work:
    arguments = inputs(dict(unet.config), timing.rows, timing.size, timing.tokens, style.device, style.dtype)

    @torch.inference_mode()
    def call() -> None:
        unet(**arguments, return_dict=False)

    return call
