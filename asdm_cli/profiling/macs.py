"""Multiply-accumulates of a whole image, counted while it is really drawn.

Nothing is assumed of the sampler, the guidance or what a patch skips: calls are those that were made, and operators
those that reached the dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from asdm_cli.errors import blame
from asdm_cli.unet.flops import ATTENTION, MIXING

DECODER = "vae"
"""Gets what no other network's forward accounts for: decoding is a method of its own, which hooks do not see."""


@dataclass(frozen=True)
class Count:
    """Multiply-accumulates: all, and without the two matmuls of every attention (as most papers count)."""

    total: int = 0
    plain: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.total + other.total, self.plain + other.plain)

    def __sub__(self, other: Count) -> Count:
        return Count(self.total - other.total, self.plain - other.plain)


@dataclass
class Counts:
    """What drawing one image took: calls of UNets that computed something, the latents in them, and the count of every
    component."""

    calls: int = 0
    rows: int = 0
    components: dict[str, Count] = field(default_factory=dict)

    @property
    def whole(self) -> Count:
        return sum(self.components.values(), Count())


def count(name: str, components: Mapping[str, torch.nn.Module], draw: Callable[[], object]) -> Counts:
    """What `draw`, which must end in decoding, takes of each component. RunError that names the set-up if it fails."""
    seen, counter, started = Counts(), mac_counter(), list[Count]()

    def before(*_: object) -> None:
        started.append(tally(counter))

    def computes(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
        seen.calls += 1
        seen.rows += len(args[0])

    def after(component: str, *_: object) -> None:
        taken = tally(counter) - started.pop()
        seen.components[component] = seen.components.get(component, Count()) + taken

    with blame(name, "drawing an image to count its operations"), ExitStack() as hooks:
        for component, part in components.items():
            hooks.callback(part.register_forward_pre_hook(before).remove)
            hooks.callback(part.register_forward_hook(partial(after, component)).remove)
        for unet in _unets(components.get("unet")):
            # whatever hooks of patches lie around it and in it, every forward of its own asks for the times of its rows
            hooks.callback(unet.time_proj.register_forward_pre_hook(computes).remove)
        with counter:
            draw()
    seen.components[DECODER] = tally(counter) - seen.whole
    return seen


def _unets(part: torch.nn.Module | None) -> list[UNet2DConditionModel]:
    """Each once, whatever is around them."""
    return [] if part is None else [each for each in part.modules() if isinstance(each, UNet2DConditionModel)]


def mac_counter() -> FlopCounterMode:
    """torch's table of formulas lacks the CPU's fused kernel: without it the count would miss all attention there."""

    def attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
        return sdpa_flop_count(query, key, value)

    formulas = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention, **MIXING}
    return FlopCounterMode(display=False, custom_mapping=formulas)


def tally(counter: FlopCounterMode) -> Count:
    """The counter counts a multiplication and an addition as two."""
    flops = counter.get_flop_counts().get("Global", {})
    attention = sum(count for operator, count in flops.items() if operator in ATTENTION)
    total = sum(flops.values())
    return Count(total // 2, (total - attention) // 2)
