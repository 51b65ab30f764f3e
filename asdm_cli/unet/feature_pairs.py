"""Which node of a teacher answers to which node of a student. No torch.

A pruned UNet's layers take over for the removed ones behind them, so within a block layers are paired from the end: the
last with the last (BK-SDM pairs its Tiny like that), and so are the blocks of a transformer's depth. Blocks are paired
by kind and level, and need no history: a student of anybody's making will do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from asdm_cli.errors import ModelError
from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import Block

BRANCH_END = "proj_out"


@dataclass(frozen=True)
class FeaturePair:
    """Two addresses, and the modules whose outputs are compared, one by one (several inside deep transformers)."""

    student: str
    teacher: str
    student_modules: tuple[str, ...]
    teacher_modules: tuple[str, ...]


def feature_pairs(student: Anatomy, teacher: Anatomy, patterns: str | Iterable[str]) -> list[FeaturePair]:
    """One pair for each address of the student that `patterns` name, in forward order.

    A block that ends without the resampler that the teacher's has (the deepest one of Tiny) is compared where the
    last transformer of both ends its residual branch, as BK-SDM does (its `proj_out`; papers: Kim et al. 2023); where
    one of them has none there, at the output of the last layers.
    Raises ModelError where the teacher has nothing that answers, or something of another shape.
    """
    named = student.match(patterns)
    return [_pair(student, teacher, address) for address in student.addresses if address in named]


def _pair(student: Anatomy, teacher: Anatomy, address: str) -> FeaturePair:
    block = student.block(address)
    twin = next((b for b in teacher.blocks if (b.kind, b.level) == (block.kind, block.level)), None)
    if twin is None:
        raise ModelError(f"{address}: the teacher has no {block.kind} block of level {block.level}; name other nodes")
    widths = [each.layers[-1].out for each in (block, twin)]
    if widths[0] != widths[1]:
        wrong = f"is {widths[0]} channels wide and the teacher's {twin.address} {widths[1]}"
        raise ModelError(f"{address}: {wrong}; name other nodes")
    if address == block.address:
        return _block_pair(student, teacher, block, twin)
    number, *rest = address.removeprefix(f"{block.address}.").split(".")
    if number.isdigit():
        number = str(int(number) + len(twin.layers) - len(block.layers))
        if int(number) < 0:
            raise ModelError(
                f"{address}: the teacher's {twin.address} has {len(twin.layers)} layer(s), and layers are paired "
                "from the end; name other nodes"
            )
    if len(rest) == 2 and f"{twin.address}.{number}.attn" in teacher:
        depths = [_depth(block, int(address.split(".")[-3])), _depth(twin, int(number))]
        rest[1] = str(int(rest[1]) + depths[1] - depths[0])
        if depths[1] - depths[0] + int(address.rpartition(".")[2]) < 0:
            raise ModelError(
                f"{address}: the teacher's {twin.address}.{number}.attn has {depths[1]} block(s), and they are paired "
                "from the end; name other nodes"
            )
    inside = ".".join([number, *rest])
    if (other := f"{twin.address}.{inside}") not in teacher:
        raise ModelError(f"{address}: the teacher's {twin.address} has no {inside}; name other nodes")
    ours, theirs = _ends(student, address), _ends(teacher, other)
    if len(ours) > len(theirs):
        counts = f"has {len(ours)} transformer blocks where the teacher has {len(theirs)}"
        raise ModelError(f"{address}: {counts}; name its transformer instead")
    return FeaturePair(address, other, ours, theirs[-len(ours) :])


def _depth(block: Block, layer: int) -> int:
    inside = block.layers[layer].transformer
    return inside.depth if inside else 0


def _block_pair(student: Anatomy, teacher: Anatomy, block: Block, twin: Block) -> FeaturePair:
    mine, other, end = block.address, twin.address, ""
    if (block.sampler is None) != (twin.sampler is None):
        mine, other = (f"{each.address}.{len(each.layers) - 1}" for each in (block, twin))
        if all(layer.transformer is not None for layer in (block.layers[-1], twin.layers[-1])):
            mine, other, end = f"{mine}.attn", f"{other}.attn", f".{BRANCH_END}"
    ends = [tuple(f"{m}{end}" for m in _ends(tree, at)) for tree, at in ((student, mine), (teacher, other))]
    return FeaturePair(mine, other, *ends)


def _ends(tree: Anatomy, address: str) -> tuple[str, ...]:
    """The modules whose outputs are the node's output: a layer's is that of its transformer, if it has one."""
    node = tree.node(address)
    return node.modules[-1:] if node.kind == "layer" else node.modules
