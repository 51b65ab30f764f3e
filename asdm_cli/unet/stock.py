"""The stock config of a UNet that is put together from blocks, and where its promise differs from them. No torch.

Pruning and assembling both end here: they say which blocks they would have, and this says whether diffusers would.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from asdm_cli.unet.blocks import DEFAULTS, Block, Config, Layer, per_level, read

TYPES = {
    ("down", True): "CrossAttnDownBlock2D",
    ("down", False): "DownBlock2D",
    ("up", True): "CrossAttnUpBlock2D",
    ("up", False): "UpBlock2D",
    ("mid", True): "UNetMidBlock2DCrossAttn",
    ("mid", False): "UNetMidBlock2D",
}
"""(kind, with transformers) -> block type."""
LISTED = ("block_out_channels", "attention_head_dim", "cross_attention_dim", "only_cross_attention")
"""Settings that may be lists with one entry per level and say nothing about single layers."""
DEPTHS, UP_DEPTHS = "transformer_layers_per_block", "reverse_transformer_layers_per_block"
BY_BLOCKS = (*LISTED, DEPTHS, UP_DEPTHS, "layers_per_block", "down_block_types", "mid_block_type", "up_block_types")
"""The settings that follow from the blocks; all others are about the UNet as a whole."""


class Origin(NamedTuple):
    """Layer `number` of a donor's block."""

    config: Config
    block: Block
    number: int


@dataclass(frozen=True)
class Piece:
    """A block as it would be, its index whatever it was, and where each of its layers comes from."""

    block: Block
    origins: tuple[Origin, ...]


class Difference(NamedTuple):
    """Where pieces are not what a config would build: the piece's number, the layer's in it (None: not a layer)."""

    piece: int
    layer: int | None
    what: str


def stock_config(config: Config, pieces: Sequence[Piece]) -> Config:
    """`config` with only what the pieces (in forward order) change changed; settings keep their form, which is one
    value or a list."""
    down, mid, up = ([piece for piece in pieces if piece.block.kind == kind] for kind in ("down", "mid", "up"))
    levels = list(zip(down, reversed(up), strict=True))
    owners = [_owner(*level) for level in (*levels[:-1], (*levels[-1], *mid))]
    changed: Config = {key: _entries(config, key, owners) for key in LISTED}
    depths, up_depths = ([_depth(piece) for piece in side] for side in (down, up))
    follows = setting(config, UP_DEPTHS) is None and all(
        _same(*pair) for pair in zip(depths, up_depths[::-1], strict=True)
    )
    changed |= {
        "down_block_types": [_type(piece.block) for piece in down],
        "up_block_types": [_type(piece.block) for piece in up],
        "mid_block_type": _type(mid[0].block) if mid else None,
        "layers_per_block": _form(read(config, "layers_per_block"), [len(piece.block.layers) for piece in down]),
        DEPTHS: _form(read(config, DEPTHS), depths),
        UP_DEPTHS: None if follows else _form(setting(config, UP_DEPTHS), up_depths),
    }
    return {**config, **{key: value for key, value in changed.items() if value != plain(setting(config, key))}}


def differences(pieces: Iterable[Block], promised: Iterable[Block]) -> Iterator[Difference]:
    """In words: where the pieces are not what the config would build."""
    for number, (left, built) in enumerate(zip(pieces, promised, strict=True)):
        if len(left.layers) != len(built.layers):
            what = f"{left.address} would keep {len(left.layers)} layer(s) where {len(built.layers)} are needed"
            yield Difference(number, None, what)
            continue
        if left.sampler != built.sampler:
            yield Difference(number, None, _sampler_differs(left, built))
        for index, (layer, other) in enumerate(zip(left.layers, built.layers, strict=True)):
            if layer != other:
                what = f"in {left.address} a layer made for {_shape(layer)} would stand where {_shape(other)} is needed"
                yield Difference(number, index, what)


def setting(config: Config, key: str) -> object:
    """Its value, diffusers' default, or None for what neither gives."""
    return config.get(key, DEFAULTS.get(key))


def plain(value: Any) -> Any:
    """Tuples as the lists that JSON makes of them."""
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def _owner(*pieces: Piece) -> Origin:
    """Whose settings a level has: those of a block with transformers, if there is one, as only these need them all."""
    return next((piece for piece in pieces if _has_transformers(piece.block)), pieces[0]).origins[0]


def _has_transformers(block: Block) -> bool:
    return any(layer.transformer for layer in block.layers)


def _type(block: Block) -> str:
    return TYPES[block.kind, _has_transformers(block)]


def _entries(config: Config, key: str, owners: Sequence[Origin]) -> object:
    return _form(setting(config, key), [_entry(owner.config, key, owner.block.level) for owner in owners])


def _entry(config: Config, key: str, level: int) -> Any:
    value = setting(config, key)
    return plain(value[level]) if isinstance(value, list | tuple) else value


def _form(before: object, values: list[Any]) -> object:
    """One value where the donor had one and the levels agree, else a list."""
    single = not isinstance(before, list | tuple) and not isinstance(values[0], list)
    return values[0] if single and all(value == values[0] for value in values) else values


def _depth(piece: Piece) -> Any:
    """Transformer depth of a block; layer by layer where it was listed so, or where the layers differ in it."""
    entries = [_depths_of(origin) for origin in piece.origins]
    depths = [
        entry[origin.number] if isinstance(entry, list | tuple) else entry
        for entry, origin in zip(entries, piece.origins, strict=True)
    ]
    listed = any(isinstance(entry, list | tuple) for entry in entries) or len(set(depths)) > 1
    return depths if listed else depths[0]


def _depths_of(origin: Origin) -> Any:
    if origin.block.kind == "up" and setting(origin.config, UP_DEPTHS) is not None:
        return per_level(origin.config, UP_DEPTHS)[origin.block.index]
    return per_level(origin.config, DEPTHS)[origin.block.level]


def _same(down: Any, up: Any) -> bool:
    """Whether diffusers can take an up block's depths from the down block of its level."""
    return bool(down == up) and not isinstance(down, list)


def _sampler_differs(left: Block, built: Block) -> str:
    if left.sampler and built.sampler:
        return f"the resampler of {left.address} is made for {left.sampler} channels where {built.sampler} are needed"
    need = "lacks" if built.sampler else "keeps"
    return f"{left.address} {need} the resampler that the other levels' resolutions do not fit"


def _shape(layer: Layer) -> str:
    inside = layer.transformer
    tail = f" with {inside.depth} transformer block(s), {inside.heads} heads" if inside else " without transformer"
    return f"{layer.inp} -> {layer.out} channels{tail}"
