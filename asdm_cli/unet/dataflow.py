"""Which unit of a UNet reads which: the graph that tells what a call need not compute. No torch.

A unit is a resnet, a transformer or a resampler (design: `down.0.0.resnet`, `up.2.sampler`), or one of the three
parts outside the blocks. Sub-units live inside a transformer's residual stream: they are never dead alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from asdm_cli.errors import ModelError
from asdm_cli.unet.addresses import Anatomy

CONV_IN, TIME, CONV_OUT = "conv_in", "time", "conv_out"
OUTSIDE = {CONV_IN: ("conv_in",), TIME: ("time_embedding", "add_embedding"), CONV_OUT: ("conv_out",)}
"""Unit outside the blocks -> diffusers' names of its modules, where a UNet has them."""


@dataclass(frozen=True)
class Dataflow:
    """`reads`: unit -> units whose outputs it reads, in forward order; the first one is its residual path.

    `skips`: the outputs that cross from the down to the up blocks, outermost first, each with the unit that
    reads it there.
    """

    reads: Mapping[str, tuple[str, ...]]
    skips: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, anatomy: Anatomy) -> Dataflow:
        """The stream goes through all layers in order; up layers read the skips in reverse."""
        reads: dict[str, tuple[str, ...]] = {TIME: (), CONV_IN: ()}
        pending, skips, hidden = [CONV_IN], [], CONV_IN
        for block in anatomy.blocks:
            for number, layer in enumerate(block.layers):
                resnet = f"{block.address}.{number}.resnet"
                reads[resnet] = (hidden, TIME)
                if block.kind == "up":
                    skips.append((pending.pop(), resnet))
                    reads[resnet] = (hidden, skips[-1][0], TIME)
                hidden = resnet
                if layer.transformer is not None:
                    hidden = f"{block.address}.{number}.attn"
                    reads[hidden] = (resnet,)
                if block.kind == "down":
                    pending.append(hidden)
            if block.sampler is not None:
                reads[f"{block.address}.sampler"] = (hidden,)
                hidden = f"{block.address}.sampler"
                if block.kind == "down":
                    pending.append(hidden)
        reads[CONV_OUT] = (hidden,)
        return cls(reads, tuple(reversed(skips)))

    def live(self, inherited: Mapping[str, str]) -> frozenset[str]:
        """Units whose output somebody reads when `inherited` ones (unit -> `output` or `residual`) hand on old values.

        An inherited output needs nothing; an inherited residual branch needs what its unit adds it to.
        """
        found: set[str] = set()
        waiting = [CONV_OUT]
        while waiting:
            unit = waiting.pop()
            if unit not in found:
                found.add(unit)
                waiting.extend(self._needed(unit, inherited.get(unit)))
        return frozenset(found)

    def branch(self, number: int) -> str:
        """The unit whose output DeepCache keeps for `cache_branch_id` `number`: what flows, from below, into the up
        layer that reads skip `number`, counted from the outside (with two layers and a resampler per level:
        level number // 3). Raises ModelError where that is a skip itself.
        """
        if not 0 <= number < len(self.skips):
            raise ModelError(f"deepcache.{number}: this UNet has the branches 0 to {len(self.skips) - 1}")
        skip, reader = self.skips[number]
        below = self.reads[reader][0]
        if below == skip:
            raise ModelError(f"deepcache.{number}: nothing lies below this branch; the deepest is {number - 1}")
        return below

    def _needed(self, unit: str, cache: str | None) -> tuple[str, ...]:
        if cache is None:
            return self.reads[unit]
        return () if cache == "output" else tuple(read for read in self.reads[unit] if read != TIME)
