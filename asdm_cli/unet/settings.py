"""What a UNet config says about the whole UNet: parts of UNets that differ in it do not work together. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from asdm_cli.unet.blocks import Config
from asdm_cli.unet.expert_config import EXPERTS
from asdm_cli.unet.stock import BY_BLOCKS, plain, setting

WHOLE: Config = {
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "use_linear_projection": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "upcast_attention": False,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
    "addition_embed_type_num_heads": 64,
}
"""What diffusers assumes for a key that a config leaves out."""
TEXT_WIDTH = "cross_attention_dim"
ALIKE = (
    "in_channels",
    "out_channels",
    TEXT_WIDTH,
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
HARMLESS = {"sample_size", EXPERTS}
"""Says what a UNet is used for, not what its weights mean (the result has the first donor's), or is about single
layers."""


def unlike(donors: Mapping[str, Config]) -> list[str]:
    """A sentence for every setting that must be one for the whole UNet, and in which the donors differ."""
    keys = {key for config in donors.values() for key in config if not key.startswith("_")} | set(WHOLE)
    wanted = [TEXT_WIDTH, *sorted(keys - set(BY_BLOCKS) - HARMLESS)]
    return [f"donors: {key} must be the same everywhere: {each}" for key, each in _differing(donors, wanted)]


def unlike_inputs(unets: Mapping[str, Config]) -> list[str]:
    """A sentence for every setting by which these UNets could not stand in one another's place."""
    why = "must be the same in all UNets, which see the same inputs"
    return [f"{key} {why}: {each}" for key, each in _differing(unets, ALIKE)]


def _differing(unets: Mapping[str, Config], keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each key in which they differ, and in words what each has."""
    for key in keys:
        values = {name: _value(config, key) for name, config in unets.items()}
        first = next(iter(values.values()))
        if any(value != first for value in values.values()):
            yield key, ", ".join(f"{name} has {value!r}" for name, value in values.items())


def time_width(config: Config) -> Any:
    """Channels of the time embedding that every resnet takes in."""
    first = plain(setting(config, "block_out_channels"))[0]
    wide = 2 if config.get("time_embedding_type") == "fourier" else 4
    return config.get("time_embedding_dim") or wide * first


def _value(config: Config, key: str) -> Any:
    value = plain(config.get(key, WHOLE.get(key)) if key in WHOLE else setting(config, key))
    alike = isinstance(value, list) and value and all(each == value[0] for each in value)
    return value[0] if alike else value
