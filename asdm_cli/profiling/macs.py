"""Multiply-accumulates of a whole image, counted while it is really drawn.

Nothing is assumed of the sampler, the guidance or what a patch skips: calls are those that were made, and operators
those that reached the dispatcher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from asdm_cli.errors import blame
from asdm_cli.unet.flops import ATTENTION


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


OURS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
"""What torch's table lacks; without the fused kernel of CPUs there would be no attention in the count there."""
FORMULAS = FlopCounterMode(display=False, custom_mapping=OURS).flop_registry
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


class MacCounter(TorchDispatchMode):
    """Counts what reaches the dispatcher, by torch's own table of formulas.

    torch's FlopCounterMode also asks which module each operator is of, and of each whether it is made of others: that
    takes twice as long as the drawing itself.
    """

    def __init__(self, weights: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.flops: Counter[Any] = Counter()
        self.weights = {weight.untyped_storage().data_ptr() for weight in weights}
        self.whole: set[Any] = set()
        """Operators that are made of no others."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        named, formula = kwargs or {}, FORMULAS.get(func._overloadpacket)
        if formula is None and func not in self.whole:
            with self:
                found = func.decompose(*args, **named)
            if found is not NotImplemented:
                return found
            self.whole.add(func)
        found = func(*args, **named)
        if formula is not None:
            operator = torch.ops.aten.mm if self.projects(func, args) else func._overloadpacket
            self.flops[operator] += formula(*args, **named, out_val=found)
        return found

    def projects(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Whether these are products with weights: a linear layer of an input that does not lie in one piece takes the
        operator that attention takes, if its weights do not learn."""
        return func._overloadpacket is torch.ops.aten.bmm and (
            args[1].untyped_storage().data_ptr() in self.weights or args[1].stride(0) == 0
        )

    def tally(self) -> Count:
        """So far; the formulas count a multiplication and an addition as two."""
        total, attention = self.flops.total(), sum(self.flops[operator] for operator in ATTENTION)
        return Count(total // 2, (total - attention) // 2)


def count(name: str, components: Mapping[str, torch.nn.Module], draw: Callable[[], object]) -> Counts:
    """What `draw`, which must end in decoding, takes of each component. RunError that names the set-up if it fails."""
    weights = (weight for component in components.values() for weight in component.parameters())
    seen, counter, started = Counts(), MacCounter(weights), list[Count]()

    def before(*_: object) -> None:
        started.append(counter.tally())

    def computes(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
        seen.calls += 1
        seen.rows += len(args[0])

    def after(component: str, *_: object) -> None:
        taken = counter.tally() - started.pop()
        seen.components[component] = seen.components.get(component, Count()) + taken

    with blame(name, "drawing an image to count its operations"), ExitStack() as hooks:
        for component, part in components.items():
            hooks.callback(part.register_forward_pre_hook(before).remove)
            hooks.callback(part.register_forward_hook(partial(after, component)).remove)
        for unet in components["unet"].modules() if "unet" in components else ():
            # whatever is around UNets, and hooks of patches in them: each forward asks for the times of its rows
            if isinstance(unet, UNet2DConditionModel):
                hooks.callback(unet.time_proj.register_forward_pre_hook(computes).remove)
        with counter:
            draw()
    seen.components[DECODER] = counter.tally() - seen.whole
    return seen
