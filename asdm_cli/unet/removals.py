"""What may be taken out of a UNet so that a stock config describes the rest, unit by unit; and which units together
save enough with the least sum of their errors. Pure functions on configs and numbers; no torch.

A config gives every level as many down layers as it likes and one more up layer, a block transformers or none, and
each transformer a depth of its own; the mid block's depth is that of the coarsest down block's first layer. So
choices at different levels are independent, and a knapsack over levels is exact: what two parts of a UNet can save
together, and at which error, is the sum of what each can, and of these sums only those matter that no other beats in
both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product

from asdm_cli.errors import ModelError
from asdm_cli.unet.addresses import DEPTH, Anatomy
from asdm_cli.unet.blocks import Block, Config
from asdm_cli.unet.surgery import Surgery, brief, closure, remove

Unit = tuple[str, ...]
"""Addresses that go together, as nothing less can."""
MOST_LAYERS = 4
"""Of a level's down block, all of whose subsets are looked at."""
FINEST = 20_000
"""Points on a front, beyond which those that save nearly the same are one."""
NOTHING: Unit = ()


@dataclass(frozen=True)
class Point:
    """What a choice saves and errs; `units` is a tree of those that go."""

    saved: float
    error: float
    units: tuple[object, ...] = ()

    @property
    def flat(self) -> list[Unit]:
        found: list[Unit] = []
        waiting: list[object] = [self.units]
        while waiting:
            each = waiting.pop()
            if isinstance(each, tuple) and each and all(isinstance(word, str) for word in each):
                found.append(each)
            elif isinstance(each, tuple):
                waiting.extend(each)
        return sorted(found)


@dataclass(frozen=True)
class Removals:
    """Everything that may go of one UNet. `units` are all that is measured alone; `drops` those of them that are whole
    levels (or none), of which one is chosen."""

    config: Config
    anatomy: Anatomy
    units: tuple[Unit, ...]
    drops: tuple[Unit, ...] = (NOTHING,)
    alone: frozenset[Unit] = field(default_factory=frozenset)
    """Units that a stock config can lack with nothing else missing."""

    @classmethod
    def of(cls, config: Config) -> Removals:
        anatomy = Anatomy.of(config)
        depths = [(node.address,) for node in anatomy.nodes if node.kind == "depth"]
        drops = [unit for unit in _levels(anatomy) if _fits(config, unit)]
        others = [*_pairs(anatomy), *_mids(anatomy), *_transformers(anatomy)]
        units = [unit for unit in dict.fromkeys(others) if _fits(config, unit)]
        alone = frozenset([*drops, *units, *(unit for unit in depths if _fits(config, unit))])
        return cls(config, anatomy, (*drops, *units, *depths), (NOTHING, *drops), alone)

    def name(self, units: Iterable[Unit]) -> str:
        """In as few words as say it."""
        gone = frozenset(address for unit in units for address in unit)
        return ", ".join(brief(self.anatomy, closure(self.anatomy, gone))) if gone else "nothing"

    def surgery(self, units: Iterable[Unit]) -> Surgery:
        """Raises ModelError where no stock config lacks just these."""
        return remove(self.config, [address for unit in units for address in unit])

    def best(
        self, errors: Mapping[Unit, float], costs: Mapping[Unit, Mapping[str, float]], most: float
    ) -> list[tuple[Point, list[Unit]]]:
        """Of each choice of levels that can, the least sum of `errors` at which the rest costs at most `most`: the
        points, best first, and their units.

        `errors` of units that may go; others stay. `costs[drop]`: module -> what it costs in the UNet without these
        levels, and '' -> what all that stands in no block costs there.
        """
        found = []
        for drop in self.drops:
            if drop in errors or drop == NOTHING:
                rest = sum(costs[drop].values())
                fronts = self.front(drop, errors, costs[drop])
                enough = [point for point in fronts if rest - point.saved <= most * (1 + 1e-9)]
                if enough:
                    point = min(enough, key=lambda each: (each.error, -each.saved))
                    own = errors.get(drop, 0.0)
                    units = [*([drop] if drop else []), *point.flat]
                    found.append((Point(point.saved, point.error + own), units))
        return sorted(found, key=lambda each: each[0].error)

    def front(self, drop: Unit, errors: Mapping[Unit, float], costs: Mapping[str, float]) -> list[Point]:
        """Of all that may go beside dropped levels."""
        blocks = {block.address: block for block in self.anatomy.blocks if block.address not in drop}
        levels = sorted({block.level for block in blocks.values() if block.kind == "down"})
        count = max(block.level for block in self.anatomy.blocks)
        whole = [Point(0.0, 0.0)]
        for level in levels:
            down, up = blocks[f"down.{level}"], blocks[f"up.{count - level}"]
            by_depth = self._level(down, up, errors, costs)
            if level == levels[-1]:
                mids: dict[int | None, list[Point]] = {None: [Point(0.0, 0.0)]}
                if "mid" in blocks:
                    mids = self._mid(blocks["mid"], errors, costs)
                pairs = ((one, other) for one, other in product(by_depth, mids) if None in (one, other) or one == other)
                fronts = [_merged(by_depth[one], mids[other]) for one, other in pairs]
            else:
                fronts = list(by_depth.values())
            whole = _merged(whole, _front([point for front in fronts for point in front]))
        return whole

    def _level(
        self, down: Block, up: Block, errors: Mapping[Unit, float], costs: Mapping[str, float]
    ) -> dict[int | None, list[Point]]:
        """By the depth of the first layer that is left in the down block; None where it has no transformer."""
        found: dict[int | None, list[Point]] = {}
        for pair in (NOTHING, *_pairs_of(down, up)):
            if pair and pair not in errors:
                continue
            saved = sum(self._cost(address, costs) for address in pair)
            start = Point(saved, errors[pair] if pair else 0.0, (pair,) if pair else ())
            above = _front([point for front in self._block(up, pair, errors, costs).values() for point in front])
            for depth, points in self._block(down, pair, errors, costs).items():
                found.setdefault(depth, []).extend(_merged(_merged([start], points), above))
        return {depth: _front(points) for depth, points in found.items()}

    def _mid(
        self, mid: Block, errors: Mapping[Unit, float], costs: Mapping[str, float]
    ) -> dict[int | None, list[Point]]:
        found = self._block(mid, NOTHING, errors, costs)
        for unit in _mids(self.anatomy):
            if unit in errors:
                point = Point(sum(self._cost(address, costs) for address in unit), errors[unit], (unit,))
                found.setdefault(None, []).append(point)
        return {depth: _front(points) for depth, points in found.items()}

    def _block(
        self, block: Block, gone: Unit, errors: Mapping[Unit, float], costs: Mapping[str, float]
    ) -> dict[int | None, list[Point]]:
        """What may go of the transformers of the layers that stay, by the depth of the first."""
        layers = [i for i in range(len(block.layers)) if f"{block.address}.{i}" not in gone]
        inside = [i for i in layers if block.layers[i].transformer]
        if not inside:
            return {None: [Point(0.0, 0.0)]}
        first, *others = ([*self._depths(block, i, errors, costs)] for i in inside)
        rest = [Point(0.0, 0.0)]
        for points in others:
            rest = _merged(rest, points)
        whole = block.layers[inside[0]].transformer
        found: dict[int | None, list[Point]] = {
            (whole.depth if whole else 0) - number: _merged([point], rest) for number, point in enumerate(first)
        }
        if (unit := _attns(block)) in errors:
            saved = sum(self._cost(f"{block.address}.{i}.attn", costs) for i in inside)
            found[None] = [Point(saved, errors[unit], (unit,))]
        return found

    def _depths(
        self, block: Block, layer: int, errors: Mapping[Unit, float], costs: Mapping[str, float]
    ) -> Iterator[Point]:
        """None, one, two, ... blocks of a depth gone: those that err least, as all of them cost the same."""
        inside = block.layers[layer].transformer
        units = [(f"{block.address}.{layer}.attn.{k}",) for k in range(inside.depth if inside else 0)]
        ranked = sorted((unit for unit in units if unit in errors), key=lambda unit: errors[unit])
        for count in range(len(ranked) + 1):
            gone = tuple(ranked[:count])
            saved = sum(self._cost(unit[0], costs) for unit in gone)
            yield Point(saved, sum(errors[unit] for unit in gone), gone)

    def _cost(self, address: str, costs: Mapping[str, float]) -> float:
        """Of all units below an address."""
        return sum(
            costs.get(module, 0.0)
            for inner in self.anatomy.inside(address)
            for node in [self.anatomy.node(inner)]
            if node.kind in ("resnet", "sampler", "depth", "attn")
            for module in node.modules
        )


def modules(anatomy: Anatomy) -> list[str]:
    """Those whose costs a choice adds up: resnets, resamplers, each block of a depth, and of transformers what stands
    around that."""
    return [node.modules[0] for node in anatomy.nodes if node.kind in ("resnet", "sampler", "depth", "attn")]


def split(costs: Mapping[str, float]) -> dict[str, float]:
    """Costs of modules, of which a transformer's count what is inside it, as disjoint ones."""
    found = dict(costs)
    for module, cost in costs.items():
        unit, inner, _ = module.rpartition(f".{DEPTH}.")
        if inner:
            found[unit] -= cost
    return found


def _fits(config: Config, unit: Unit) -> bool:
    try:
        remove(config, unit)
    except ModelError:
        return False
    return True


def _levels(anatomy: Anatomy) -> Iterator[Unit]:
    """Any levels, but not all; the coarsest one that is left has no resampler."""
    count = max(block.level for block in anatomy.blocks)
    for size in range(1, count + 1):
        for gone in combinations(range(count + 1), size):
            last = max(level for level in range(count + 1) if level not in gone)
            blocks = [address for level in gone for address in (f"down.{level}", f"up.{count - level}")]
            yield (*blocks, *([f"down.{last}.sampler"] if last < count else []))


def _pairs(anatomy: Anatomy) -> Iterator[Unit]:
    count = max(block.level for block in anatomy.blocks)
    blocks = {block.address: block for block in anatomy.blocks}
    for level in range(count + 1):
        yield from _pairs_of(blocks[f"down.{level}"], blocks[f"up.{count - level}"])


def _pairs_of(down: Block, up: Block) -> Iterator[Unit]:
    """As many layers of one as of the other; of very many only neighbours."""
    for gone in range(1, len(down.layers)):
        for each in product(_subsets(len(down.layers), gone), _subsets(len(up.layers), gone)):
            yield tuple(
                f"{block.address}.{i}" for block, numbers in zip((down, up), each, strict=True) for i in numbers
            )


def _subsets(count: int, size: int) -> Iterable[Sequence[int]]:
    if count <= MOST_LAYERS + 1:
        return combinations(range(count), size)
    return (range(start, start + size) for start in range(count - size + 1))


def _mids(anatomy: Anatomy) -> Iterator[Unit]:
    """All of it, or what leaves one resnet."""
    if "mid" in anatomy:
        yield ("mid",)
    if "mid.0.attn" in anatomy:
        yield ("mid.0",)
        yield ("mid.0.attn", "mid.1")


def _transformers(anatomy: Anatomy) -> Iterator[Unit]:
    yield from (_attns(block) for block in anatomy.blocks if block.attends and block.kind != "mid")


def _attns(block: Block) -> Unit:
    """All transformers of a block: a config says of a block that it has them, not of a layer."""
    return tuple(f"{block.address}.{i}.attn" for i, layer in enumerate(block.layers) if layer.transformer)


def _merged(one: Sequence[Point], other: Sequence[Point]) -> list[Point]:
    """Every point of one with every one of the other."""
    return _front([Point(a.saved + b.saved, a.error + b.error, (a.units, b.units)) for a in one for b in other])


def _front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both, from the one that saves most."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (-each.saved, each.error)):
        if not front or point.error < front[-1].error:
            front.append(point)
    if len(front) <= FINEST:
        return front
    reach = front[0].saved / FINEST
    return list({int(point.saved / reach): point for point in front}.values())
