"""Removing addresses from a UNet, and grafting pieces of several: pure functions on configs and on names of tensors.

No torch. Survivors keep their order and are renumbered. What is made must be a UNet that a stock config describes;
that is decided by building the config and comparing, layer by layer, what it promises with the pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from asdm_cli.errors import ModelError
from asdm_cli.unet.addresses import DEPTH, Anatomy, Node, part_of, unit_of
from asdm_cli.unet.blocks import EXPERTS, TYPES, Block, Config, Layer, per_level, plain, read, read_blocks, with_experts

LISTED = ("block_out_channels", "attention_head_dim", "cross_attention_dim", "only_cross_attention")
"""Settings that may be lists with one entry per level and say nothing about single layers."""
DEPTHS, UP_DEPTHS = "transformer_layers_per_block", "reverse_transformer_layers_per_block"

ENDS = ("conv_in", "conv_norm_out", "conv_out")
"""Modules outside the blocks that work on pictures; all others outside embed time and conditions."""

LAST_DIGIT = 9

Place = tuple[str, str]
"""A donor's name and an address, or a module or tensor, of that donor."""


@dataclass(frozen=True)
class Origin:
    """A layer of a donor's block, by its number, or its `sampler`. `depth`: which blocks of its transformer, if it has
    one; None for all."""

    donor: str
    config: Config
    block: Block
    word: str
    depth: tuple[int, ...] | None = None

    @property
    def address(self) -> str:
        return f"{self.block.address}.{self.word}"

    @property
    def layer(self) -> Layer:
        """What is taken of it."""
        whole = self.block.layers[int(self.word)]
        if self.depth is None or whole.transformer is None:
            return whole
        return replace(whole, transformer=replace(whole.transformer, depth=len(self.depth)))


@dataclass(frozen=True)
class Piece:
    """A block as it would be, and where its layers and its resampler come from. Until `numbered`, its index is
    whatever it was."""

    block: Block
    layers: tuple[Origin, ...]
    sampler: Origin | None


class Misfit(NamedTuple):
    """Where pieces are not what a config would build: the piece's number, the layer's in it (None: not a layer)."""

    piece: int
    layer: int | None
    what: str


@dataclass(frozen=True)
class Graft:
    """`config` of the result, its anatomy, and `sources`: module of the result -> donor and its module, of units and
    of each block of a transformer's depth. `ends` and `embeddings` are the donors of what stands in no block."""

    config: Config
    result: Anatomy
    sources: dict[str, Place]
    ends: str = ""
    embeddings: str = ""

    def key_map(self, keys: Mapping[str, Iterable[str]]) -> dict[str, Place]:
        """Tensor name in the result -> donor and its name there, from the names of each donor's tensors."""
        names: dict[Place, list[str]] = {}
        for new, place in self.sources.items():
            names.setdefault(place, []).append(new)
        mapped: dict[str, Place] = {}
        for donor, tensors in keys.items():
            for key in tensors:
                if (module := part_of(key)) is None:
                    mapped |= {key: (donor, key)} if donor == self._outside(key) else {}
                    continue
                mapped |= {new + key.removeprefix(module): (donor, key) for new in names.get((donor, module), ())}
        return mapped

    def taken(self, keys: Iterable[str]) -> dict[str, list[str]]:
        """Donor -> what of the result is its: coarsest addresses in forward order, then modules outside the blocks.
        `keys` are the names of the result's tensors."""
        owners = {module: donor for module, (donor, _) in self.sources.items()}
        outside = sorted({key.split(".")[0] for key in keys if unit_of(key) is None})
        units = [node for node in self.result.nodes if node.kind in ("resnet", "attn", "sampler")]
        found = {}
        for donor in dict.fromkeys([*owners.values(), self.embeddings, self.ends]):
            own = closure(self.result, [node.address for node in units if owners[node.modules[0]] == donor])
            found[donor] = [*brief(self.result, own), *(each for each in outside if self._outside(each) == donor)]
        return found

    def _outside(self, key: str) -> str:
        return self.ends if key.split(".")[0] in ENDS else self.embeddings


def with_depth(config: Config, sources: Mapping[str, Place]) -> dict[str, Place]:
    """`sources` as older asdm.json have them, of units alone: a transformer's whole depth comes with it."""
    found = dict(sources)
    for node in Anatomy.of(config).nodes if not any(DEPTH in each for each in sources) else ():
        if node.kind == "depth":
            unit, _, number = node.modules[0].rpartition(f".{DEPTH}.")
            donor, old = sources[unit]
            found[node.modules[0]] = (donor, f"{old}.{DEPTH}.{number}")
    return found


def misfits(config: Config, pieces: Sequence[Piece]) -> list[Misfit]:
    """What keeps the pieces, in forward order and of as many up as down blocks, from being one stock UNet."""
    down = {piece.block.level: piece.block for piece in pieces if piece.block.kind == "down"}
    odd = []
    for number, block in enumerate(piece.block for piece in pieces):
        if block.kind == "up" and len(block.layers) != len((other := down[block.level]).layers) + 1:
            counts = f"{len(block.layers)} layer(s) and {other.address} {len(other.layers)}"
            rule = "an up block has one layer more than the down block of its level"
            odd.append(Misfit(number, None, f"{block.address} would have {counts}; {rule}"))
    if odd:
        return odd
    promised = read_blocks(stock_config(config, pieces))
    return list(_differences([piece.block for piece in pieces], promised))


def graft(config: Config, pieces: Sequence[Piece], ends: str = "", embeddings: str = "") -> Graft:
    """The result of pieces that have no misfits; experts come along with the convolutions that they are in."""
    made = stock_config(config, pieces)
    result, sources = Anatomy.of(made), {}
    experts: dict[str, Any] = {}
    taken = {origin.donor: origin.config for piece in pieces for origin in (*piece.layers, piece.sampler) if origin}
    trees = {donor: Anatomy.of(each) for donor, each in taken.items()}
    for block, piece in zip(result.blocks, pieces, strict=True):
        origins = {f"{block.address}.{i}": origin for i, origin in enumerate(piece.layers)}
        if piece.sampler:
            origins[f"{block.address}.sampler"] = piece.sampler
        for address, origin in origins.items():
            theirs = trees[origin.donor].node(origin.address).modules
            pairs = list(zip(result.node(address).modules, theirs, strict=False))  # a transformer may be gone
            for new, old in pairs[1:]:
                kept = origin.depth if origin.depth is not None else range(len(_depth_of(result, address)))
                pairs += [(f"{new}.{DEPTH}.{to}", f"{old}.{DEPTH}.{of}") for to, of in enumerate(kept)]
            for new, old in pairs:
                sources[new] = (origin.donor, old)
            for new, old in pairs[:2]:
                held = (origin.config.get(EXPERTS) or {}).items()
                experts |= {new + name.removeprefix(old): one for name, one in held if name.startswith(f"{old}.")}
    if any(EXPERTS in each for each in (made, *taken.values())):
        made = with_experts(made, experts)
    return Graft(made, result, sources, ends, embeddings)


def stock_config(config: Config, pieces: Sequence[Piece]) -> Config:
    """`config` with only what the pieces (in forward order) change changed; settings keep their form, which is one
    value or a list."""
    down, mid, up = ([piece for piece in pieces if piece.block.kind == kind] for kind in ("down", "mid", "up"))
    levels = list(zip(down, reversed(up), strict=True))
    owners = [_owner(*level) for level in (*levels[:-1], (*levels[-1], *mid))]
    depths, up_depths = _depths(down, up, mid)
    pairs = zip(depths, up_depths[::-1], strict=True)
    follows = read(config, UP_DEPTHS) is None and all(a == b and not isinstance(a, list) for a, b in pairs)
    changed: Config = {
        key: _form(read(config, key), [plain(per_level(each.config, key)[each.block.level]) for each in owners])
        for key in LISTED
    }
    changed |= {
        "down_block_types": [TYPES["down", piece.block.attends] for piece in down],
        "up_block_types": [TYPES["up", piece.block.attends] for piece in up],
        "mid_block_type": TYPES["mid", mid[0].block.attends] if mid else None,
        "layers_per_block": _form(read(config, "layers_per_block"), [len(piece.block.layers) for piece in down]),
        DEPTHS: _form(read(config, DEPTHS), depths),
        UP_DEPTHS: None if follows else up_depths,
    }
    return {**config, **{key: value for key, value in changed.items() if value != plain(read(config, key))}}


def _owner(*pieces: Piece) -> Origin:
    """Whose settings a level has: those of a block with transformers, if there is one, as only these need them all."""
    return next((piece for piece in pieces if piece.block.attends), pieces[0]).layers[0]


def _form(before: object, values: list[Any]) -> object:
    """One value where the donor had one and the levels agree, else a list."""
    single = not isinstance(before, list | tuple) and not isinstance(values[0], list)
    return values[0] if single and all(value == values[0] for value in values) else values


def _depths(down: Sequence[Piece], up: Sequence[Piece], mid: Sequence[Piece]) -> tuple[list[Any], list[Any]]:
    """Transformer depths of the down and of the up blocks, each in forward order. Diffusers reads the mid block's where
    it reads that of the coarsest down block's first layer."""
    depths, up_depths = [_depth(piece) for piece in down], [_depth(piece) for piece in up][::-1]
    if mid and mid[0].block.attends and not down[-1].block.attends:
        depths[-1] = _depth(mid[0])
    for level, (below, above) in enumerate(zip(down, reversed(up), strict=True)):
        used = below.block.attends or (below is down[-1] and bool(mid) and mid[0].block.attends)
        if above.block.attends and not used and not isinstance(up_depths[level], list):
            depths[level] = up_depths[level]
        elif used and not above.block.attends and not isinstance(depths[level], list):
            up_depths[level] = depths[level]
    return depths, up_depths[::-1]


def _depth(piece: Piece) -> Any:
    """Transformer depth of a block; layer by layer where it was listed so, or where the layers differ in it. Of layers
    without transformers what their config says, which nobody reads."""
    depths, listed = [], False
    for origin, layer in zip(piece.layers, piece.block.layers, strict=True):
        reverse = origin.block.kind == "up" and read(origin.config, UP_DEPTHS) is not None
        place = (UP_DEPTHS, origin.block.index) if reverse else (DEPTHS, origin.block.level)
        entry = per_level(origin.config, place[0])[place[1]]
        listed |= isinstance(entry, list | tuple)
        said = entry[int(origin.word)] if isinstance(entry, list | tuple) else entry
        depths.append(layer.transformer.depth if layer.transformer else said)
    if piece.block.kind == "mid":  # its second layer has none
        depths = depths[:1]
    return depths if listed or len(set(depths)) > 1 else depths[0]


def _depth_of(anatomy: Anatomy, layer: str) -> list[Node]:
    """The blocks of a layer's transformer."""
    return [node for node in anatomy.nodes if node.kind == "depth" and node.parent == f"{layer}.attn"]


def _differences(pieces: Iterable[Block], promised: Iterable[Block]) -> Iterator[Misfit]:
    for number, (left, built) in enumerate(zip(pieces, promised, strict=True)):
        here = left.address
        if len(left.layers) != len(built.layers):
            what = f"{here} would keep {len(left.layers)} layer(s) where {len(built.layers)} are needed"
            yield Misfit(number, None, what)
            continue
        if left.sampler != built.sampler:
            what = f"the resampler of {here} is made for {left.sampler} channels where {built.sampler} are needed"
            if not left.sampler or not built.sampler:
                need = "lacks" if built.sampler else "keeps"
                what = f"{here} {need} the resampler that the other levels' resolutions do not fit"
            yield Misfit(number, None, what)
        for index, (layer, other) in enumerate(zip(left.layers, built.layers, strict=True)):
            if layer != other:
                what = f"in {here} a layer made for {_shape(layer)} would stand where {_shape(other)} is needed"
                if left.kind == "mid" and layer.transformer and other.transformer:
                    what += "; a config has one depth for mid and for the first layer of the coarsest down block"
                yield Misfit(number, index, what)


def _shape(layer: Layer) -> str:
    inside = layer.transformer
    tail = f" with {inside.depth} transformer block(s), {inside.heads} heads" if inside else " without transformer"
    return f"{layer.inp} -> {layer.out} channels{tail}"


@dataclass(frozen=True)
class Surgery:
    """What is left of `donor`, and what it loses, as the coarsest addresses, in forward order."""

    left: Graft
    removed: tuple[str, ...]
    donor: Anatomy

    @property
    def config(self) -> Config:
        return self.left.config

    @property
    def sources(self) -> dict[str, str]:
        """Module of the result -> module of the donor that it comes from."""
        return {new: old for new, (_, old) in self.left.sources.items()}

    def key_map(self, keys: Iterable[str]) -> dict[str, str]:
        """Tensor name in the result -> its name in the donor, for the donor's `keys`; removed ones are left out."""
        return {new: old for new, (_, old) in self.left.key_map({"": keys}).items()}


def remove(config: Config, patterns: str | Iterable[str]) -> Surgery:
    """What is left of a UNet without the addresses that `patterns` name.

    Raises ModelError for patterns that name nothing, and where no stock config describes the result.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    donor = Anatomy.of(config)
    gone = closure(donor, donor.match(patterns))
    pieces = _pieces(config, donor, gone)
    if faults := _inside_out(donor, gone) or _unpaired(pieces) or [each.what for each in misfits(config, pieces)]:
        what = f"no stock UNet lacks just that: {'; '.join(faults)}"
        raise ModelError(f"remove {', '.join(patterns)}: {what}; asdm prune with a budget finds what can go")
    return Surgery(graft(config, pieces), brief(donor, gone), donor)


Tensor = TypeVar("Tensor")


def apply(
    config: Config, tensors: Mapping[str, Tensor], patterns: str | Iterable[str]
) -> tuple[Config, dict[str, Tensor]]:
    """Config and state dict without the named addresses; the tensors themselves are shared, not copied."""
    surgery = remove(config, patterns)
    return surgery.config, {new: tensors[old] for new, old in surgery.key_map(tensors).items()}


def closure(anatomy: Anatomy, addresses: Iterable[str]) -> frozenset[str]:
    """The addresses, all that is inside them, and layers and blocks of which nothing is left."""
    gone = set().union(*(anatomy.inside(address) for address in addresses))
    for node in reversed(anatomy.nodes):
        if node.kind in ("layer", "block") and gone >= anatomy.inside(node.address) - {node.address}:
            gone.add(node.address)
    return frozenset(gone)


def brief(anatomy: Anatomy, addresses: frozenset[str]) -> tuple[str, ...]:
    """The same set in fewer words: nothing inside of something else, `down.0.*.attn` for all of a block's, and
    `down.2.*.attn.[6-9]` for what goes of the depth of all transformers of a block, or of one."""
    below = frozenset().union(*(anatomy.inside(address) for address in addresses))
    words: dict[str, None] = {}
    for node in anatomy.nodes:
        if node.address not in addresses or node.parent in below:
            continue
        block, own = anatomy.block(node.address).address, node.address
        if node.kind == "attn":
            alike = anatomy.match(f"{block}.*.attn")
            own = f"{block}.*.attn" if len(alike) > 1 and alike <= below else own
        elif node.kind == "depth" and node.parent:
            of = [other.address for other in anatomy.nodes if other.kind == "depth" and other.parent == node.parent]
            digits = _digits([k for k, each in enumerate(of) if each in below], len(of), of.index(own))
            alike = anatomy.match(f"{block}.*.attn.{digits}")
            several = len({anatomy.node(each).parent for each in alike} - below) > 1 and alike <= below
            own = f"{block}.*.attn.{digits}" if several else f"{node.parent}.{digits}"
        words[own] = None
    return tuple(words)


def _digits(numbers: Sequence[int], count: int, one: int) -> str:
    """A pattern of these numbers of so many; where none stands for them, `one` of them."""
    if len(numbers) == count:
        return "*"
    if len(numbers) == 1 or numbers[-1] > LAST_DIGIT:
        return str(one)
    run = list(range(numbers[0], numbers[-1] + 1)) == list(numbers)
    return f"[{numbers[0]}-{numbers[-1]}]" if run else f"[{''.join(map(str, numbers))}]"


def _pieces(config: Config, donor: Anatomy, gone: frozenset[str]) -> list[Piece]:
    """The blocks as they would be left, with their old indices."""
    pieces = []
    for block in donor.blocks:
        if block.address in gone:
            continue
        left = [i for i in range(len(block.layers)) if f"{block.address}.{i}" not in gone]
        origins = tuple(Origin("", config, block, str(i), _kept(block, i, gone)) for i in left)
        layers = tuple(
            replace(origin.layer, transformer=None) if f"{origin.address}.attn" in gone else origin.layer
            for origin in origins
        )
        sampler = None if f"{block.address}.sampler" in gone else block.sampler
        own = Origin("", config, block, "sampler") if sampler else None
        pieces.append(Piece(replace(block, layers=layers, sampler=sampler), origins, own))
    return pieces


def _kept(block: Block, layer: int, gone: frozenset[str]) -> tuple[int, ...] | None:
    inside = block.layers[layer].transformer
    kept = (k for k in range(inside.depth) if f"{block.address}.{layer}.attn.{k}" not in gone) if inside else ()
    return tuple(kept) if inside else None


def _inside_out(donor: Anatomy, gone: frozenset[str]) -> list[str]:
    """Parts that cannot go without what they are parts of."""
    faults = []
    for node in donor.nodes:
        if node.address not in gone or node.parent in gone:
            continue
        if node.kind in ("self", "cross", "ff"):
            faults.append(f"{node.address} cannot leave its transformer {node.parent}")
        if node.kind == "resnet":
            faults.append(f"the transformer of {node.parent} cannot stand without its resnet")
    return faults


def _unpaired(pieces: list[Piece]) -> list[str]:
    down, up = ([each.block.level for each in pieces if each.block.kind == kind] for kind in ("down", "up"))
    if down != up[::-1]:
        return ["down and up block of a level go together"]
    if not down:
        return ["nothing would be left"]
    bare = [piece.block.address for piece in pieces if not piece.layers]
    return [f"{address} would keep no layer" for address in bare]
