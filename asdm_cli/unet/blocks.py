"""What a UNet config says: layers, channels and transformers, as diffusers would build them, and experts of ours.

No torch. Two configs with equal layers take each other's tensors, so this is what surgery compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from asdm_cli.errors import ModelError

Config = dict[str, Any]

TYPES = {
    ("down", False): "DownBlock2D",
    ("down", True): "CrossAttnDownBlock2D",
    ("mid", False): "UNetMidBlock2D",
    ("mid", True): "UNetMidBlock2DCrossAttn",
    ("up", False): "UpBlock2D",
    ("up", True): "CrossAttnUpBlock2D",
}
"""(kind, with transformers) -> block type."""
ATTENDS = {name: attends for (_, attends), name in TYPES.items()}
DEFAULTS: Config = {
    "in_channels": 4,
    "out_channels": 4,
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
PRESETS: dict[str, Config] = {
    "sd15": {"cross_attention_dim": 768, "sample_size": 64},
    "sd21": {
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "sample_size": 96,
        "upcast_attention": True,
        "use_linear_projection": True,
    },
    "sdxl": {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    },
}
"""Stable Diffusion 1.x, 2.1 (768 px) and XL base, where they differ from that."""
RANGES = {
    "block_out_channels": (1, 1 << 16, False),
    "layers_per_block": (1, 100, False),
    "attention_head_dim": (1, 1 << 16, False),
    "cross_attention_dim": (1, 1 << 16, True),
    "transformer_layers_per_block": (0, 1000, False),
    "reverse_transformer_layers_per_block": (0, 1000, True),
    "norm_num_groups": (1, 1 << 16, True),
    "sample_size": (1, 1 << 16, True),
}
"""Least and most of what a setting holds, and whether it may be null. Building a UNet of a damaged config that says
far more would take all memory. A transformer of no blocks is two projections."""
MOST = 10**9
"""Of any number in a config."""
EXPERTS = "experts"
"""A setting of ours: module name -> what `asdm_cli.experts` says of the convolution that stands there."""
STOCK, EXPERT_CLASS = "UNet2DConditionModel", "ExpertUNet"
"""The class of a config, without experts and with some."""
TIMESTEPS = 1000
"""As many as all models of the family were trained with."""
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

    @property
    def attends(self) -> bool:
        return any(layer.transformer for layer in self.layers)


def preset(name: str) -> Config:
    """The config of a model at its real size, so that costs can be measured without any download."""
    if name in PRESETS:
        held = {"_class_name": STOCK, **DEFAULTS, **PRESETS[name]}
        return {key: plain(value) for key, value in held.items()}
    raise ModelError(f"{name}: no such UNet preset; use one of {', '.join(PRESETS)}")


def read(config: Config, key: str) -> Any:
    """Its value, diffusers' default, or None for what neither gives."""
    return config.get(key, DEFAULTS.get(key))


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
    """All blocks in forward order: down blocks, the mid block if there is one, up blocks. ModelError for what is no
    UNet of the Stable Diffusion family."""
    _check(config)
    widths, layers = per_level(config, "block_out_channels"), per_level(config, "layers_per_block")
    depths = per_level(config, "transformer_layers_per_block")
    up_depths = depths[::-1]
    if read(config, "reverse_transformer_layers_per_block") is not None:
        up_depths = per_level(config, "reverse_transformer_layers_per_block")
    last = len(widths) - 1
    blocks = []
    for level, kind in enumerate(per_level(config, "down_block_types")):
        inputs = [widths[max(level - 1, 0)]] + [widths[level]] * (layers[level] - 1)
        made = _layers(config, level, inputs, depths[level], ATTENDS[kind])
        blocks.append(Block("down", level, level, made, None if level == last else widths[level]))
    if (kind := read(config, "mid_block_type")) is not None:
        first = _layers(config, last, [widths[last]], depths[last], ATTENDS[kind])
        second = (Layer(widths[last], widths[last], None),) if ATTENDS[kind] else ()
        blocks.append(Block("mid", 0, last, (*first, *second), None))
    for index, kind in enumerate(per_level(config, "up_block_types")):
        level = last - index
        count = layers[level] + 1
        before = [widths[min(level + 1, last)]] + [widths[level]] * (count - 1)
        skips = [widths[level]] * (count - 1) + [widths[max(level - 1, 0)]]
        inputs = [hidden + skip for hidden, skip in zip(before, skips, strict=True)]
        made = _layers(config, level, inputs, up_depths[index], ATTENDS[kind])
        blocks.append(Block("up", index, level, made, None if level == 0 else widths[level]))
    return tuple(blocks)


def _layers(
    config: Config, level: int, inputs: list[int], depths: int | Iterable[int], attends: bool
) -> tuple[Layer, ...]:
    """One layer for each entry of `inputs`; like diffusers, surplus entries of listed `depths` are ignored."""
    keys = ("block_out_channels", "attention_head_dim", "cross_attention_dim")
    width, heads, context = (per_level(config, key)[level] for key in keys)
    depths = (depths,) * len(inputs) if isinstance(depths, int) else tuple(depths)[: len(inputs)]
    if len(depths) < len(inputs):
        raise ModelError(
            f"UNet config: transformer depths {list(depths)} are too few for {len(inputs)} layers; give {len(inputs)}"
        )
    pairs = zip(inputs, depths, strict=True)
    return tuple(
        Layer(inp, width, Transformer(width, depth, heads, context) if attends else None) for inp, depth in pairs
    )


def _check(config: Config) -> None:
    for kind in ("down", "mid", "up"):
        key, known = f"{kind}_block_type" + "s" * (kind != "mid"), [TYPES[kind, False], TYPES[kind, True]]
        value = read(config, key)
        for name in value if isinstance(value, list | tuple) and kind != "mid" else [value]:
            if name not in known and not (kind == "mid" and name is None):
                raise ModelError(f"UNet config: {key} {name!r} is not supported; it must be of {', '.join(known)}")
    if not isinstance(widths := read(config, "block_out_channels"), list | tuple) or not widths:
        raise ModelError(f"UNet config: block_out_channels is {widths!r}; a list of whole numbers is expected")
    if config.get("dual_cross_attention"):
        raise ModelError("UNet config: dual_cross_attention is not supported; use a model without it")
    _check_numbers(config)


def _check_numbers(config: Config) -> None:
    for key, (least, most, maybe_null) in RANGES.items():
        held = read(config, key)
        if held is None and maybe_null:
            continue
        by_level = held if key == "sample_size" and isinstance(held, list | tuple) else per_level(config, key)
        for value in (each for level in by_level for each in (level if isinstance(level, list | tuple) else [level])):
            if not isinstance(value, int) or not least <= value <= most:
                wanted = f"whole numbers from {least} to {most} are expected"
                raise ModelError(f"UNet config: {key} holds {value!r}; {wanted}")
    for key, value in config.items():
        if isinstance(value, int | float) and not abs(value) <= MOST:  # not a number is not at most anything
            wrong = f"{key} is {value!r}, which no setting of a UNet can be"
            raise ModelError(f"UNet config: {wrong}; fetch the file again")


@dataclass(frozen=True)
class Spec:
    """How one convolution is made of experts: each of them serves an equal stretch of the `timesteps` that the model
    was trained with, the first one those nearest to the picture."""

    experts: int
    timesteps: int = TIMESTEPS

    def serving(self, timestep: float) -> int:
        """The expert of this timestep, counted from 0."""
        return min(max(int(timestep * self.experts // self.timesteps), 0), self.experts - 1)


def specs(config: Config) -> dict[str, Spec]:
    """Module name -> spec; ModelError for entries that are none."""
    held = config.get(EXPERTS) or {}
    if isinstance(held, dict) and any(isinstance(entry, dict) and "router" in entry for entry in held.values()):
        what = "a router mixes them, as an earlier version of asdm had it, and this one has experts by timestep alone"
        raise ModelError(f"UNet config: {EXPERTS}: {what}; expand the plain model again: asdm condconv-expand")
    try:
        found = {str(name): Spec(**entry) for name, entry in dict(held).items()}
    except (TypeError, ValueError) as error:
        raise ModelError(f"UNet config: {EXPERTS} cannot be read ({error}); write the model again") from None
    for name, spec in found.items():
        for what, count in vars(spec).items():
            if type(count) is not int or count < 1:
                raise ModelError(f"UNet config: {EXPERTS}: {name} has {count!r} {what}; write the model again")
    return found


def with_experts(config: Config, experts: Mapping[str, Mapping[str, object]]) -> Config:
    """The config with these experts and no others, and of the class that this asks for."""
    rest = {key: value for key, value in config.items() if key not in (EXPERTS, "_class_name")}
    named = {"_class_name": EXPERT_CLASS, EXPERTS: dict(experts)} if experts else {"_class_name": STOCK}
    return {**rest, **named}


def stated(config: Config) -> Config:
    """The config without what diffusers notes of its file, which changes no UNet."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def plain(value: Any) -> Any:
    """Tuples as the lists that JSON makes of them."""
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def unlike_inputs(unets: Mapping[str, Config]) -> list[str]:
    """A sentence for every setting by which these UNets could not stand in one another's place."""
    why = "must be the same in all UNets, which see the same inputs"
    return [f"{key} {why}: {each}" for key, each in differing(unets, INPUTS, {})]


def differing(unets: Mapping[str, Config], keys: Iterable[str], defaults: Config) -> Iterator[tuple[str, str]]:
    """Each key in which they differ, and in words what each has; a list of equal entries is one of them, and what is
    null is false where that is what diffusers assumes."""
    for key in keys:
        values = {name: plain(config.get(key, defaults.get(key, read(config, key)))) for name, config in unets.items()}
        for name, value in values.items():
            if value is None and defaults.get(key) is False:
                values[name] = False
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
