"""The config of a UNet that is put together from layers of others, and where it does not describe them. No torch.

Pruning and assembling both end here: they say which pieces they would have, and this says whether diffusers would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

from asdm_cli.unet.addresses import Anatomy
from asdm_cli.unet.blocks import TYPES, Block, Config, Layer, per_level, read, read_blocks

LISTED = ("block_out_channels", "attention_head_dim", "cross_attention_dim", "only_cross_attention")
"""Settings that may be lists with one entry per level and say nothing about single layers."""
DEPTHS, UP_DEPTHS = "transformer_layers_per_block", "reverse_transformer_layers_per_block"
BY_BLOCKS = {*LISTED, DEPTHS, UP_DEPTHS, "layers_per_block", "down_block_types", "mid_block_type", "up_block_types"}
"""The settings that follow from the blocks; all others are about the UNet as a whole."""
EXPERTS = "experts"
"""A setting of ours: module name -> what `asdm_cli.experts` says of the convolution that stands there."""
STOCK, EXPERT_CLASS = "UNet2DConditionModel", "ExpertUNet"
"""The class of a config, without experts and with some."""
HARMLESS = {"sample_size", EXPERTS}
"""Says what a UNet is used for, not what its weights mean (the result has the first donor's), or is about single
layers."""
INPUTS = (
    "in_channels",
    "out_channels",
    "cross_attention_dim",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "class_embed_type",
    "num_class_embeds",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "time_cond_proj_dim",
)
"""Settings in which UNets must be alike to see the same inputs, one in another's place: switched, or as student and
teacher."""

Place = tuple[str, str]
"""A donor's name and an address, or a module or tensor, of that donor."""


@dataclass(frozen=True)
class Origin:
    """A layer of a donor's block, by its number, or its `sampler`."""

    donor: str
    config: Config
    block: Block
    word: str

    @property
    def address(self) -> str:
        return f"{self.block.address}.{self.word}"


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
class Grafted:
    """`config` of the result, its anatomy, and `sources`: module of the result -> donor and its module."""

    config: Config
    result: Anatomy
    sources: dict[str, Place]

    def key_map(self, keys: Mapping[str, Iterable[str]], outside: Callable[[str], str]) -> dict[str, Place]:
        """Tensor name in the result -> donor and its name there, from the names of each donor's tensors; `outside`
        names the donor of what stands in no block."""
        names: dict[Place, list[str]] = {}
        for new, place in self.sources.items():
            names.setdefault(place, []).append(new)
        mapped: dict[str, Place] = {}
        for donor, tensors in keys.items():
            for key in tensors:
                module = unit_of(key)
                if module is None:
                    mapped |= {key: (donor, key)} if donor == outside(key) else {}
                for new in names.get((donor, module or ""), ()):
                    mapped[new + key.removeprefix(module or "")] = (donor, key)
        return mapped


def unit_of(key: str) -> str | None:
    """`down_blocks.0.resnets.1.conv1.weight` -> `down_blocks.0.resnets.1`; None for what stands in no block."""
    words = key.split(".")
    length = {"down_blocks": 4, "mid_block": 3, "up_blocks": 4}.get(words[0])
    return ".".join(words[:length]) if length else None


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


def graft(config: Config, pieces: Sequence[Piece]) -> Grafted:
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
            for new, old in zip(result.node(address).modules, theirs, strict=False):  # a transformer may be gone
                sources[new] = (origin.donor, old)
                held = (origin.config.get(EXPERTS) or {}).items()
                experts |= {new + name.removeprefix(old): one for name, one in held if name.startswith(f"{old}.")}
    if any(EXPERTS in each for each in (made, *taken.values())):
        made = with_experts(made, experts)
    return Grafted(made, result, sources)


def with_experts(config: Config, experts: Mapping[str, Mapping[str, object]]) -> Config:
    """The config with these experts and no others, and of the class that this asks for."""
    rest = {key: value for key, value in config.items() if key not in (EXPERTS, "_class_name")}
    named = {"_class_name": EXPERT_CLASS, EXPERTS: dict(experts)} if experts else {"_class_name": STOCK}
    return {**rest, **named}


def stock_config(config: Config, pieces: Sequence[Piece]) -> Config:
    """`config` with only what the pieces (in forward order) change changed; settings keep their form, which is one
    value or a list."""
    down, mid, up = ([piece for piece in pieces if piece.block.kind == kind] for kind in ("down", "mid", "up"))
    levels = list(zip(down, reversed(up), strict=True))
    owners = [_owner(*level) for level in (*levels[:-1], (*levels[-1], *mid))]
    depths, up_depths = ([_depth(piece) for piece in side] for side in (down, up))
    pairs = zip(depths, up_depths[::-1], strict=True)
    follows = read(config, UP_DEPTHS) is None and all(a == b and not isinstance(a, list) for a, b in pairs)
    changed: Config = {key: _form(read(config, key), [_entry(each, key) for each in owners]) for key in LISTED}
    changed |= {
        "down_block_types": [TYPES["down", piece.block.attends] for piece in down],
        "up_block_types": [TYPES["up", piece.block.attends] for piece in up],
        "mid_block_type": TYPES["mid", mid[0].block.attends] if mid else None,
        "layers_per_block": _form(read(config, "layers_per_block"), [len(piece.block.layers) for piece in down]),
        DEPTHS: _form(read(config, DEPTHS), depths),
        UP_DEPTHS: None if follows else _form(read(config, UP_DEPTHS), up_depths),
    }
    return {**config, **{key: value for key, value in changed.items() if value != plain(read(config, key))}}


def plain(value: Any) -> Any:
    """Tuples as the lists that JSON makes of them."""
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def _owner(*pieces: Piece) -> Origin:
    """Whose settings a level has: those of a block with transformers, if there is one, as only these need them all."""
    return next((piece for piece in pieces if piece.block.attends), pieces[0]).layers[0]


def _entry(owner: Origin, key: str) -> Any:
    value = read(owner.config, key)
    return plain(value[owner.block.level]) if isinstance(value, list | tuple) else value


def _form(before: object, values: list[Any]) -> object:
    """One value where the donor had one and the levels agree, else a list."""
    single = not isinstance(before, list | tuple) and not isinstance(values[0], list)
    return values[0] if single and all(value == values[0] for value in values) else values


def _depth(piece: Piece) -> Any:
    """Transformer depth of a block; layer by layer where it was listed so, or where the layers differ in it."""
    depths, listed = [], False
    for origin in piece.layers:
        reverse = origin.block.kind == "up" and read(origin.config, UP_DEPTHS) is not None
        place = (UP_DEPTHS, origin.block.index) if reverse else (DEPTHS, origin.block.level)
        entry = per_level(origin.config, place[0])[place[1]]
        listed |= isinstance(entry, list | tuple)
        depths.append(entry[int(origin.word)] if isinstance(entry, list | tuple) else entry)
    return depths if listed or len(set(depths)) > 1 else depths[0]


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
                yield Misfit(number, index, what)


def _shape(layer: Layer) -> str:
    inside = layer.transformer
    tail = f" with {inside.depth} transformer block(s), {inside.heads} heads" if inside else " without transformer"
    return f"{layer.inp} -> {layer.out} channels{tail}"


def unlike(donors: Mapping[str, Config]) -> list[str]:
    """A sentence for every setting that must be one for the whole UNet, and in which the donors differ."""
    known = _defaults()
    keys = {key for config in donors.values() for key in config if not key.startswith("_")} | known.keys()
    wanted = ["cross_attention_dim", *sorted(keys - BY_BLOCKS - HARMLESS)]
    found = _differing(donors, wanted, known)
    return [f"donors: {key} must be the same everywhere: {each}" for key, each in found]


@cache
def _defaults() -> Config:
    """What diffusers assumes for every key that a config leaves out."""
    from diffusers import UNet2DConditionModel  # takes torch

    return {name: each.default for name, each in list(signature(UNet2DConditionModel.__init__).parameters.items())[1:]}


def unlike_inputs(unets: Mapping[str, Config]) -> list[str]:
    """A sentence for every setting by which these UNets could not stand in one another's place."""
    why = "must be the same in all UNets, which see the same inputs"
    return [f"{key} {why}: {each}" for key, each in _differing(unets, INPUTS, {})]


def _differing(unets: Mapping[str, Config], keys: Iterable[str], defaults: Config) -> Iterator[tuple[str, str]]:
    """Each key in which they differ, and in words what each has; a list of equal entries is one of them."""
    for key in keys:
        values = {name: plain(config.get(key, defaults.get(key, read(config, key)))) for name, config in unets.items()}
        for name, value in values.items():
            if isinstance(value, list) and value and all(each == value[0] for each in value):
                values[name] = value[0]
        first = next(iter(values.values()))
        if any(value != first for value in values.values()):
            yield key, ", ".join(f"{name} has {value!r}" for name, value in values.items())


def time_width(config: Config) -> Any:
    """Channels of the time embedding that every resnet takes in."""
    first = plain(read(config, "block_out_channels"))[0]
    wide = 2 if config.get("time_embedding_type") == "fourier" else 4
    return config.get("time_embedding_dim") or wide * first
