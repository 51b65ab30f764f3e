"""What a UNet config says about its blocks: layers, channels and transformers, as diffusers would build them.

No torch. Two configs with equal layers take each other's tensors, so this is what surgery compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from asdm_cli.errors import ModelError

Config = dict[str, Any]

DOWN_TYPES = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
UP_TYPES = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
MID_TYPES = {"UNetMidBlock2D": False, "UNetMidBlock2DCrossAttn": True}
"""Block type -> does it hold transformers."""
DEFAULTS: Config = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1280,
    "attention_head_dim": 8,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "only_cross_attention": False,
    "norm_num_groups": 32,
    "sample_size": None,
}
"""What diffusers assumes for a key that a config leaves out."""


LARGEST = {
    "block_out_channels": 1 << 16,
    "layers_per_block": 100,
    "attention_head_dim": 1 << 16,
    "cross_attention_dim": 1 << 16,
    "transformer_layers_per_block": 1000,
    "reverse_transformer_layers_per_block": 1000,
    "norm_num_groups": 1 << 16,
    "sample_size": 1 << 16,
}
"""Far more than any UNet has: a config that says more is damaged, and building it would take all memory."""
MOST = 10**9
"""Of any number in a config."""
MAYBE_NOTHING = ("cross_attention_dim", "reverse_transformer_layers_per_block", "norm_num_groups", "sample_size")
MAYBE_NONE_AT_ALL = ("transformer_layers_per_block", "reverse_transformer_layers_per_block")
"""A level without transformers has none, and a transformer of no blocks is two projections."""


@dataclass(frozen=True)
class Transformer:
    """`channels` in and out, `depth` transformer blocks of `heads` heads, text features `context` wide."""

    channels: int
    depth: int
    heads: int
    context: int


@dataclass(frozen=True)
class Layer:
    """A resnet from `inp` to `out` channels (in an up block `inp` counts the skip as well) and what follows it."""

    inp: int
    out: int
    transformer: Transformer | None


@dataclass(frozen=True)
class Block:
    """One diffusers block. Level 0 is the finest resolution; `sampler` is the resampler's channels, if it has one."""

    kind: str
    index: int
    level: int
    layers: tuple[Layer, ...]
    sampler: int | None

    @property
    def address(self) -> str:
        return self.kind if self.kind == "mid" else f"{self.kind}.{self.index}"


def read(config: Config, key: str) -> Any:
    return config.get(key, DEFAULTS[key])


def levels(config: Config) -> int:
    return len(read(config, "block_out_channels"))


def per_level(config: Config, key: str) -> tuple[Any, ...]:
    """The setting for each level, from fine to coarse, whether the config gives one value or a list."""
    value, count = read(config, key), levels(config)
    if not isinstance(value, list | tuple):
        return (value,) * count
    if len(value) != count:
        raise ModelError(f"UNet config: {key} has {len(value)} entries for {count} levels; give one for each")
    return tuple(value)


def read_blocks(config: Config) -> tuple[Block, ...]:
    """All blocks in forward order: down blocks, the mid block if there is one, up blocks."""
    _check(config)
    down, up = _down_blocks(config), _up_blocks(config)
    return (*down, *_mid_block(config), *up)


def _down_blocks(config: Config) -> list[Block]:
    widths, last = per_level(config, "block_out_channels"), levels(config) - 1
    blocks = []
    for level, kind in enumerate(per_level(config, "down_block_types")):
        count = per_level(config, "layers_per_block")[level]
        inputs = [widths[max(level - 1, 0)]] + [widths[level]] * (count - 1)
        depths = _depths(per_level(config, "transformer_layers_per_block")[level], count)
        layers = _layers(config, level, inputs, depths, DOWN_TYPES[kind])
        blocks.append(Block("down", level, level, layers, None if level == last else widths[level]))
    return blocks


def _up_blocks(config: Config) -> list[Block]:
    widths, last = per_level(config, "block_out_channels"), levels(config) - 1
    blocks = []
    for index, kind in enumerate(per_level(config, "up_block_types")):
        level = last - index
        count = per_level(config, "layers_per_block")[level] + 1
        before = [widths[min(level + 1, last)]] + [widths[level]] * (count - 1)
        skips = [widths[level]] * (count - 1) + [widths[max(level - 1, 0)]]
        inputs = [hidden + skip for hidden, skip in zip(before, skips, strict=True)]
        layers = _layers(config, level, inputs, _depths(_up_depth(config, index), count), UP_TYPES[kind])
        blocks.append(Block("up", index, level, layers, None if level == 0 else widths[level]))
    return blocks


def _mid_block(config: Config) -> list[Block]:
    kind, level = read(config, "mid_block_type"), levels(config) - 1
    if kind is None:
        return []
    width = per_level(config, "block_out_channels")[level]
    if not MID_TYPES[kind]:
        return [Block("mid", 0, level, (Layer(width, width, None),), None)]
    depths = _depths(per_level(config, "transformer_layers_per_block")[level], 1)
    first = _layers(config, level, [width], depths, True)
    return [Block("mid", 0, level, (*first, Layer(width, width, None)), None)]


def _layers(
    config: Config, level: int, inputs: list[int], depths: tuple[int, ...], transformers: bool
) -> tuple[Layer, ...]:
    width = per_level(config, "block_out_channels")[level]
    heads = per_level(config, "attention_head_dim")[level]
    context = per_level(config, "cross_attention_dim")[level]
    return tuple(
        Layer(inp, width, Transformer(width, depth, heads, context) if transformers else None)
        for inp, depth in zip(inputs, depths, strict=True)
    )


def _up_depth(config: Config, index: int) -> Any:
    reverse = read(config, "reverse_transformer_layers_per_block")
    if reverse is None:
        return per_level(config, "transformer_layers_per_block")[::-1][index]
    return per_level(config, "reverse_transformer_layers_per_block")[index]


def _depths(value: int | Iterable[int], count: int) -> tuple[int, ...]:
    """Transformer depth of each of `count` layers; like diffusers, surplus entries of a list are ignored."""
    if isinstance(value, int):
        return (value,) * count
    depths = tuple(value)[:count]
    if len(depths) < count:
        raise ModelError(f"UNet config: transformer depths {list(depths)} are too few for {count} layers; give {count}")
    return depths


def _numbers(config: Config, key: str) -> Iterator[Any]:
    """All that a setting holds, of each level, and of each layer where they differ."""
    held = read(config, key)
    for value in held if key == "sample_size" and isinstance(held, list | tuple) else per_level(config, key):
        yield from value if isinstance(value, list | tuple) else [value]


def _check(config: Config) -> None:
    """ModelError for what is no UNet of the Stable Diffusion family."""
    known = {"down_block_types": DOWN_TYPES, "up_block_types": UP_TYPES, "mid_block_type": MID_TYPES}
    for key, types in known.items():
        value = read(config, key)
        for kind in value if isinstance(value, list | tuple) and key != "mid_block_type" else [value]:
            if (not isinstance(kind, str) or kind not in types) and not (key == "mid_block_type" and kind is None):
                raise ModelError(f"UNet config: {key} {kind!r} is not supported; it must be of {', '.join(types)}")
    if not isinstance(widths := read(config, "block_out_channels"), list | tuple) or not widths:
        raise ModelError(f"UNet config: block_out_channels is {widths!r}; a list of whole numbers is expected")
    if config.get("dual_cross_attention"):
        raise ModelError("UNet config: dual_cross_attention is not supported; use a model without it")
    _check_numbers(config)


def _check_numbers(config: Config) -> None:
    for key, most in LARGEST.items():
        if key in MAYBE_NOTHING and read(config, key) is None:
            continue
        least = 0 if key in MAYBE_NONE_AT_ALL else 1
        bad = [value for value in _numbers(config, key) if not isinstance(value, int) or not least <= value <= most]
        if bad:
            raise ModelError(f"UNet config: {key} holds {bad[0]!r}; whole numbers from {least} to {most} are expected")
    for key, value in config.items():
        if isinstance(value, int | float) and not abs(value) <= MOST:  # not a number is not at most anything
            raise ModelError(
                f"UNet config: {key} is {value!r}, which no setting of a UNet can be; fetch the file again"
            )
    if config.get("dual_cross_attention"):
        raise ModelError("UNet config: dual_cross_attention is not supported; use a model without it")
