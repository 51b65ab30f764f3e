"""Named sets of layers: BK-SDM's base, small and tiny, as rules for any UNet. No torch.

Source: BK-SDM (arXiv 2305.15798), reference configs of SD 1.x; the rules give those sets there.
"""

from __future__ import annotations

from asdm_cli.errors import ModelError
from asdm_cli.unet.blocks import Block

NAMED = ("base", "small", "tiny")


def named_set(blocks: tuple[Block, ...], name: str) -> frozenset[str]:
    """The addresses of a named set on these blocks; ModelError where nothing of it is there.

    Down blocks keep their first layer. Up blocks keep the first (it takes the coarser level's width) and the last (it
    takes the finer level's skip): only the layers between them are alike. Small lacks the mid block as well, and tiny
    the whole deepest level.
    """
    deepest = max(block.level for block in blocks)
    gone: set[str] = set()
    if name == "small":
        gone = {block.address for block in blocks if block.kind == "mid"}
    if name == "tiny":
        if deepest == 0:
            raise ModelError("tiny: this UNet has one level only; nothing would be left of it")
        gone = {block.address for block in blocks if block.level == deepest} | {f"down.{deepest - 1}.sampler"}
    kept_at_the_end = {"down": 0, "up": 1}
    for block in blocks:
        if block.kind != "mid" and not (name == "tiny" and block.level == deepest):
            between = range(1, len(block.layers) - kept_at_the_end[block.kind])
            gone |= {f"{block.address}.{i}" for i in between}
    if not gone:
        raise ModelError(f"{name}: this UNet lacks all of it already; name other addresses")
    return frozenset(gone)
