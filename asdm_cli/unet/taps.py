"""Which node of a teacher answers to which node of a student. No torch.

A pruned UNet's layers take over for the removed ones behind them, so within a block layers are paired from the end:
the last with the last (BK-SDM pairs its Tiny like that). Blocks are paired by kind and level, and need no history:
a student of anybody's making will do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from asdm_cli.errors import ModelError
from asdm_cli.unet.anatomy import Anatomy
from asdm_cli.unet.blocks import Block

BRANCH_END = "proj_out"


@dataclass(frozen=True)
class Tap:
    """Two addresses, and the modules whose outputs are compared, one by one (several inside deep transformers)."""

    student: str
    teacher: str
    student_modules: tuple[str, ...]
    teacher_modules: tuple[str, ...]


def taps(student: Anatomy, teacher: Anatomy, patterns: str | Iterable[str]) -> list[Tap]:
    """One tap for each address of the student that `patterns` name, in forward order.

    A block that ends without the resampler that the teacher's has (the deepest one of Tiny) is compared where the
    last transformer of both ends its residual branch, as BK-SDM does (its `proj_out`; papers: Kim et al. 2023).
    Raises ModelError where the teacher has nothing that answers, or something of another shape.
    """
    named = student.match(patterns)
    found = [_tap(student, teacher, address) for address in student.addresses if address in named]
    if not found:
        raise ModelError(f"{patterns}: names no node of the student; leave the loss out or name others")
    return found


def _tap(student: Anatomy, teacher: Anatomy, address: str) -> Tap:
    block = _block(student, address)
    twin = next((b for b in teacher.blocks if (b.kind, b.level) == (block.kind, block.level)), None)
    if twin is None:
        raise ModelError(f"{address}: the teacher has no {block.kind} block of level {block.level}; name other nodes")
    _check_widths(address, block, twin)
    if address == block.address:
        return _block_tap(student, teacher, block, twin)
    rest = address.removeprefix(f"{block.address}.").split(".")
    if rest[0].isdigit():
        number = int(rest[0]) + len(twin.layers) - len(block.layers)
        if number < 0:
            raise ModelError(
                f"{address}: the teacher's {twin.address} has {len(twin.layers)} layer(s), and layers are paired "
                "from the end; name other nodes"
            )
        rest[0] = str(number)
    other = ".".join([twin.address, *rest])
    if other not in teacher:
        raise ModelError(f"{address}: the teacher's {twin.address} has no {'.'.join(rest)}; name other nodes")
    return Tap(address, other, *_paired(_ends(student, address), _ends(teacher, other), address))


def _block_tap(student: Anatomy, teacher: Anatomy, block: Block, twin: Block) -> Tap:
    if (block.sampler is None) == (twin.sampler is None):
        return Tap(block.address, twin.address, _ends(student, block.address), _ends(teacher, twin.address))
    last = [f"{each.address}.{len(each.layers) - 1}" for each in (block, twin)]
    pair = [layer.transformer for layer in (block.layers[-1], twin.layers[-1])]
    if all(pair):
        ends = [
            f"{tree.module(f'{layer}.attn')}.{BRANCH_END}" for tree, layer in zip((student, teacher), last, strict=True)
        ]
        return Tap(f"{last[0]}.attn", f"{last[1]}.attn", (ends[0],), (ends[1],))
    if any(pair):
        raise ModelError(f"{block.address}: ends with a transformer on one side only; name its layers instead")
    return Tap(last[0], last[1], _ends(student, last[0]), _ends(teacher, last[1]))


def _ends(tree: Anatomy, address: str) -> tuple[str, ...]:
    """The modules whose outputs are the node's output: a layer's is that of its transformer, if it has one."""
    node = tree.node(address)
    return node.modules[-1:] if node.kind == "layer" else node.modules


def _paired(ours: tuple[str, ...], theirs: tuple[str, ...], address: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if len(ours) == len(theirs):
        return ours, theirs
    raise ModelError(
        f"{address}: has {len(ours)} transformer blocks where the teacher has {len(theirs)}; "
        "name its transformer instead"
    )


def _block(tree: Anatomy, address: str) -> Block:
    return next(b for b in tree.blocks if address == b.address or address.startswith(f"{b.address}."))


def _check_widths(address: str, block: Block, twin: Block) -> None:
    if block.layers[-1].out != twin.layers[-1].out:
        raise ModelError(
            f"{address}: is {block.layers[-1].out} channels wide and the teacher's {twin.address} "
            f"{twin.layers[-1].out}; name other nodes"
        )
