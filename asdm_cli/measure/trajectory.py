"""Multiply-accumulates of a whole image, counted while it is really drawn.

Nothing is assumed of the sampler, the guidance or what a run-time plan skips: calls are those that were made, and
operators those that reached the dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from asdm_cli.measure.contestants import Contestant, blame
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
class Trajectory:
    """What drawing one image took: UNet calls, the latents in them, and the count of every component."""

    calls: int = 0
    rows: int = 0
    components: dict[str, Count] = field(default_factory=dict)

    @property
    def whole(self) -> Count:
        return sum(self.components.values(), Count())


def count_image(contestant: Contestant) -> Trajectory:
    """Draw one image under the counter; it doubles as the first warm-up."""
    return count(contestant.name, contestant.components, contestant.image_call(1))


def count(who: str, components: Mapping[str, torch.nn.Module], draw: Callable[[], object]) -> Trajectory:
    """What `draw`, which must end in decoding, takes of each component. RunError that names `who` if it fails."""
    seen = Trajectory()
    counter = mac_counter()
    with blame(who, "drawing an image to count its operations"), ExitStack() as hooks:
        for name, part in components.items():
            before, after = _meter(counter, seen, name)
            hooks.callback(part.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(part.register_forward_hook(after).remove)
        with counter:
            draw()
    seen.components[DECODER] = tally(counter) - seen.whole
    return seen


def mac_counter() -> FlopCounterMode:
    """torch's table of formulas lacks the CPU's fused kernel: without it the count would miss all attention there."""
    formulas = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops, **MIXING}
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


def tally(counter: FlopCounterMode) -> Count:
    """The counter counts a multiplication and an addition as two."""
    flops = counter.get_flop_counts().get("Global", {})
    attention = sum(count for operator, count in flops.items() if operator in ATTENTION)
    total = sum(flops.values())
    return Count(total // 2, (total - attention) // 2)


def _meter(counter: FlopCounterMode, seen: Trajectory, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """Hooks that give a component what is counted between entering and leaving it, and note the UNet's calls."""
    start = Count()

    def before(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal start
        start = tally(counter)
        if name == "unet":
            seen.calls += 1
            seen.rows += len(args[0] if args else kwargs["sample"])

    def after(*_: object) -> None:
        seen.components[name] = seen.components.get(name, Count()) + (tally(counter) - start)

    return before, after
