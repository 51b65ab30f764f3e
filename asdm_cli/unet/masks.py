"""Named sets of layers: BK-SDM's base, small and tiny, as rules for any UNet. No torch.

Source: BK-SDM (arXiv 2305.15798), reference configs of SD 1.x; the rules give those sets there.
"""

from __future__ import annotations

from collections.abc import Iterable

from asdm_cli.errors import ModelError
from asdm_cli.unet.blocks import Block


def named_set(blocks: Iterable[Block], name: str) -> frozenset[str]:
    """The addresses of a named set on these blocks; ModelError where nothing of it is there."""
    blocks = tuple(blocks)
    found = _RULES[name](blocks)
    if not found:
        raise ModelError(f"{name}: this UNet lacks all of it already; name other addresses")
    return found


def surplus_layers(blocks: tuple[Block, ...]) -> frozenset[str]:
    """Down blocks keep their first layer. Up blocks keep the first (it takes the coarser level's width) and the
    last (it takes the finer level's skip): only the layers between them are alike."""
    last = {"down": 0, "up": 1}
    return frozenset(
        f"{block.address}.{i}"
        for block in blocks
        if block.kind in last
        for i in range(1, len(block.layers) - last[block.kind])
    )


def _small(blocks: tuple[Block, ...]) -> frozenset[str]:
    return surplus_layers(blocks) | {block.address for block in blocks if block.kind == "mid"}


def _tiny(blocks: tuple[Block, ...]) -> frozenset[str]:
    deepest = max(block.level for block in blocks)
    if deepest == 0:
        raise ModelError("tiny: this UNet has one level only; nothing would be left of it")
    gone = {block.address for block in blocks if block.level == deepest}
    left = tuple(block for block in blocks if block.level < deepest)
    return surplus_layers(left) | gone | {f"down.{deepest - 1}.sampler"}


_RULES = {"base": surplus_layers, "small": _small, "tiny": _tiny}
NAMED = tuple(_RULES)
