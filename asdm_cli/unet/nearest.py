"""Near a set of addresses that cannot be removed, the sets that can. Knows trees and a yes-or-no question."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, islice

from asdm_cli.unet.anatomy import Anatomy, Node
from asdm_cli.unet.masks import surplus_layers

MOST_MOVES = 3
Possible = Callable[[frozenset[str]], bool]
Moves = list[frozenset[str]]


def nearest(anatomy: Anatomy, wanted: frozenset[str], possible: Possible) -> list[tuple[str, ...]]:
    """Up to three removable sets, as coarse addresses: with a little more than `wanted`, with a little less, and
    where neither exists the smallest ones on the same levels.

    Every level is mended by itself (levels rarely depend on each other) and the whole is tried again.
    """
    parts = _by_level(anatomy, wanted)
    more = [_first(_more(anatomy, level, part, possible)) for level, part in parts.items()]
    less = [_first(_less(part, possible)) for part in parts.values()]
    mended = [frozenset().union(*more)] if all(more) else []
    found = [addresses for addresses in (*mended, frozenset().union(*less)) if addresses and possible(addresses)]
    if not found:
        found = [one for level in parts for one in islice(_others(anatomy, level, possible), 2)]
    return [brief(anatomy, addresses) for addresses in dict.fromkeys(found)][:3]


def _by_level(anatomy: Anatomy, wanted: frozenset[str]) -> dict[int, frozenset[str]]:
    """The wanted nodes, coarsest only, by the level they are mended with."""
    parts: dict[int, frozenset[str]] = {}
    for node in anatomy.nodes:
        if node.address in wanted and node.parent not in wanted:
            level = _home(node)
            parts[level] = parts.get(level, frozenset()) | {node.address}
    return parts


def _home(node: Node) -> int:
    """The mid block is its own level, -1; a downsampler goes with the coarser level that it leads to."""
    if node.address.split(".")[0] == "mid":
        return -1
    return node.level + (node.kind == "sampler" and node.address.startswith("down"))


def _first(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return next(iter(sets), frozenset())


def _more(anatomy: Anatomy, level: int, part: frozenset[str], possible: Possible) -> Iterator[frozenset[str]]:
    covered = frozenset().union(*(anatomy.inside(address) for address in part))
    moves = [move for move in _moves(anatomy, level) if not move <= covered]
    for size in range(MOST_MOVES + 1):
        for extra in combinations(moves, size):
            bigger = part.union(*extra)
            if possible(bigger):
                yield bigger


def _less(part: frozenset[str], possible: Possible) -> Iterator[frozenset[str]]:
    for size in range(len(part), 0, -1):
        for kept in combinations(sorted(part), size):
            if possible(frozenset(kept)):
                yield frozenset(kept)


def _others(anatomy: Anatomy, level: int, possible: Possible) -> Iterator[frozenset[str]]:
    """Pairs of layers that the level can do without, those of the named set base first."""
    layers = [node.address for node in anatomy.nodes if node.kind == "layer" and _home(node) == level]
    usual = surplus_layers(anatomy.blocks)
    pairs = sorted(combinations(layers, 2), key=lambda pair: -len(usual.intersection(pair)))
    return (frozenset(pair) for pair in pairs if possible(frozenset(pair)))


def _moves(anatomy: Anatomy, level: int) -> Moves:
    """What may be removed in one go when a level is mended: a layer, a sampler, all transformers of a block, a block.

    Small moves come first, so that the first set found takes little away.
    """
    here = [node for node in anatomy.nodes if _home(node) == level]
    single = [frozenset({n.address}) for kind in ("layer", "sampler") for n in here if n.kind == kind]
    blocks = [node for node in here if node.kind == "block"]
    transformers = [
        frozenset(n.address for n in here if n.kind == "attn" and n.address.startswith(f"{block.address}."))
        for block in blocks
    ]
    return [*single, *filter(None, transformers), *(frozenset({block.address}) for block in blocks)]


def brief(anatomy: Anatomy, addresses: frozenset[str]) -> tuple[str, ...]:
    """The same set in fewer words: nothing inside of something else, and `down.0.*.attn` for all of a block's."""
    below = frozenset().union(*(anatomy.inside(address) for address in addresses))
    coarse = [node for node in anatomy.nodes if node.address in addresses and node.parent not in below]
    return tuple(dict.fromkeys(_group(anatomy, node, below) for node in coarse))


def _group(anatomy: Anatomy, node: Node, gone: frozenset[str]) -> str:
    if node.kind != "attn":
        return node.address
    pattern = f"{node.address.rsplit('.', 2)[0]}.*.attn"
    alike = anatomy.match(pattern)
    return pattern if len(alike) > 1 and alike <= gone else node.address
