"""Rules in short, and UNets to switch between."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from asdm_cli.patches.feature_cache import FeatureCache
from asdm_cli.patches.unet_schedule import UNetSchedule
from asdm_cli.recipe.patches import CachePlan, Segment, Switching
from tests import tiny
from tests.patches.pipes import _unet

XL = {"text": "sd15", "image": "sd15", "inpaint": "sd15", "xl": "sdxl"}
"""Kind of pipeline -> shape of its UNets."""


def rules(by: str, *parts: str) -> Switching:
    """`rules("step", "a 3", "b")`: a until 3, then b."""
    split = [part.split() for part in parts]
    return Switching(by=by, parts=[Segment(unet=name, until=float(end[0]) if end else None) for name, *end in split])


def small(kind: str = "text", shallow: bool = False) -> UNet2DConditionModel:
    """Another UNet for that kind of pipeline: one layer per block, other weights, the same ones each time; with two
    levels only if it is `shallow`."""
    return copy.deepcopy(_small(XL[kind], shallow))


@cache
def _small(shape: str, shallow: bool) -> UNet2DConditionModel:
    torch.manual_seed(5)
    changes = tiny.SHALLOW[shape] if shallow else {}
    return tiny.unet(tiny.shape(shape, layers_per_block=1, **changes), seed=5)


def twin(kind: str = "text") -> UNet2DConditionModel:
    """The UNet of that kind of pipeline, with weights of its own."""
    return copy.deepcopy(_unet(XL[kind]))


def scheduled(
    unets: dict[str, UNet2DConditionModel], switch: Switching, plans: dict[str, CachePlan] | None = None
) -> UNetSchedule:
    """UNets that take turns, each with its plan on it, without a pipeline."""
    for name, plan in (plans or {}).items():
        FeatureCache(unets[name], plan)
    return UNetSchedule(unets, switch)


@contextmanager
def timesteps_of(*unets: UNet2DConditionModel) -> Iterator[list[list[float]]]:
    """The timestep of every call that each of these UNets answers."""
    seen: list[list[float]] = [[] for _ in unets]

    def note(times: list[float]) -> Any:
        return lambda _, args: times.append(float(args[1]))

    hooks = [unet.register_forward_pre_hook(note(times)) for unet, times in zip(unets, seen, strict=True)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
