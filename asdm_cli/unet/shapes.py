"""What shapes a UNet's config promises: of its tensors, and of all that it is called with. No torch, but for tensors of
UNets that stand beside the Stable Diffusion family.
"""

from __future__ import annotations

from math import gcd
from typing import Any

from asdm_cli.unet.blocks import EXPERTS, Config, Layer, Transformer, per_level, read, read_blocks, time_width

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

USED = {
    *("in_channels", "out_channels", "block_out_channels", "layers_per_block", "cross_attention_dim"),
    *("down_block_types", "mid_block_type", "up_block_types", "attention_head_dim", "transformer_layers_per_block"),
    *("norm_num_groups", "use_linear_projection", "time_embedding_dim", "conv_in_kernel", "conv_out_kernel"),
    *("addition_embed_type", "projection_class_embeddings_input_dim", "sample_size"),
}
"""Settings that decide which tensors there are, and that are understood here."""
FREE = {
    *("center_input_sample", "flip_sin_to_cos", "freq_shift", "downsample_padding", "norm_eps"),
    *("mid_block_scale_factor", "upcast_attention", "resnet_out_scale_factor", "addition_time_embed_dim"),
    "addition_embed_type_num_heads",
}
"""Numbers that no tensor depends on."""
USUAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("encoder_hid_dim", "encoder_hid_dim_type", "num_attention_heads", "cross_attention_norm"), (None,)
    ),
    **dict.fromkeys(("class_embed_type", "num_class_embeds", "time_embedding_act_fn", "timestep_post_act"), (None,)),
    **dict.fromkeys(("dual_cross_attention", "only_cross_attention", "resnet_skip_time_act"), (False,)),
    "class_embeddings_concat": (False,),
    "dropout": (0.0,),
    **dict.fromkeys(("resnet_time_scale_shift", "attention_type"), ("default",)),
    "mid_block_only_cross_attention": (None, False),
    **dict.fromkeys(("time_cond_proj_dim", "reverse_transformer_layers_per_block"), (None,)),
    "time_embedding_type": ("positional",),
    "act_fn": ("silu", "swish"),
    EXPERTS: (None, {}),
}
"""What each of the rest says where a UNet is as those of SD 1.x, 2.x and XL are."""

HINT_CHANNELS, HINT_FACTOR = 4, 8
"""What a UNet with hints makes of a picture: channels of its own input, and pixels per latent."""
TIME_IDS = 6
"""Numbers that SDXL embeds beside the pooled text; the refiner embeds five, at the same cost."""
GLIGEN = {
    "gated": ("masks", "positive_embeddings"),
    "gated-text-image": ("masks", "phrases_masks", "image_masks", "phrases_embeddings", "image_embeddings"),
}
"""Attention type -> what a UNet of grounded generation takes in of every object, besides its box."""
GLIGEN_OBJECTS = 30
"""As many as GLIGEN's pipelines always give, empty ones among them."""


# --- of tensors ---


def tensor_shapes(config: Config) -> Shapes:
    """Name and shape of every tensor that the config promises. Raises ModelError where nobody can build it."""
    if not _usual(config):
        from asdm_cli.unet.flops import built_shapes  # importing diffusers takes seconds

        return built_shapes(config)
    first, time = per_level(config, "block_out_channels")[0], time_width(config)
    ends = config.get("conv_in_kernel", 3), config.get("conv_out_kernel", 3)
    found = _conv("conv_in", read(config, "in_channels"), first, ends[0]) | _norm("conv_norm_out", first)
    found |= _conv("conv_out", first, read(config, "out_channels"), ends[1])
    found |= _two_linear("time_embedding", first, time)
    if config.get("addition_embed_type") is not None:
        found |= _two_linear("add_embedding", config["projection_class_embeddings_input_dim"], time)
    for block in read_blocks(config):
        name = "mid_block" if block.kind == "mid" else f"{block.kind}_blocks.{block.index}"
        resnets = block.layers
        for index, layer in enumerate(resnets):
            found |= _resnet(f"{name}.resnets.{index}", layer, time)
            if layer.transformer:
                linear = bool(config.get("use_linear_projection"))
                found |= _transformer(f"{name}.attentions.{index}", layer.transformer, linear)
        if block.sampler:
            found |= _conv(f"{name}.{block.kind}samplers.0.conv", block.sampler, block.sampler, 3)
    return found


def _usual(config: Config) -> bool:
    """Whether all that it says is understood here, and diffusers will build it."""
    layers = [layer for block in read_blocks(config) for layer in block.layers]
    transformers = [layer.transformer for layer in layers if layer.transformer]
    said = {key: value for key, value in config.items() if not key.startswith("_")}
    kernels = (config.get("conv_in_kernel", 3), config.get("conv_out_kernel", 3))
    counts = [read(config, "in_channels"), read(config, "out_channels"), time_width(config), *kernels]
    if kind := config.get("addition_embed_type"):
        counts += [config.get("addition_time_embed_dim"), config.get("projection_class_embeddings_input_dim")]
    groups = read(config, "norm_num_groups")
    return (
        all(_one_of(USUAL.get(key, ()), value) for key, value in said.items() if key not in USED | FREE)
        and all(value is None or isinstance(value, int | float) for key, value in said.items() if key in FREE)
        and all(type(count) is int and count > 0 for count in counts)
        and kind in (None, "text_time")
        and groups is not None
        and all(gcd(groups, layer.inp, layer.out) == groups for layer in layers)
        and all(each.channels % each.heads == 0 and each.context for each in transformers)
    )


def _one_of(usual: tuple[Any, ...], value: Any) -> bool:
    """Where 0 is not False."""
    return any(type(value) is type(each) and value == each for each in usual)


def _conv(name: str, inp: int, out: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (out, inp, kernel, kernel), f"{name}.bias": (out,)}


def _linear(name: str, inp: int, out: int) -> Shapes:
    return {f"{name}.weight": (out, inp), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _two_linear(name: str, inp: int, out: int) -> Shapes:
    return _linear(f"{name}.linear_1", inp, out) | _linear(f"{name}.linear_2", out, out)


def _resnet(name: str, layer: Layer, time: int) -> Shapes:
    found = _norm(f"{name}.norm1", layer.inp) | _conv(f"{name}.conv1", layer.inp, layer.out, 3)
    found |= _linear(f"{name}.time_emb_proj", time, layer.out)
    found |= _norm(f"{name}.norm2", layer.out) | _conv(f"{name}.conv2", layer.out, layer.out, 3)
    return found if layer.inp == layer.out else found | _conv(f"{name}.conv_shortcut", layer.inp, layer.out, 1)


def _transformer(name: str, made: Transformer, linear: bool) -> Shapes:
    wide, found = made.channels, _norm(f"{name}.norm", made.channels)
    for each in ("proj_in", "proj_out"):
        found |= _linear(f"{name}.{each}", wide, wide) if linear else _conv(f"{name}.{each}", wide, wide, 1)
    for index in range(made.depth):
        inner = f"{name}.transformer_blocks.{index}"
        for number, context in ((1, wide), (2, made.context)):
            attention = f"{inner}.attn{number}"
            found |= {f"{attention}.to_{part}.weight": (wide, context if part != "q" else wide) for part in "qkv"}
            found |= _linear(f"{attention}.to_out.0", wide, wide)
        for number in (1, 2, 3):
            found |= _norm(f"{inner}.norm{number}", wide)
        found |= _linear(f"{inner}.ff.net.0.proj", wide, 8 * wide) | _linear(f"{inner}.ff.net.2", 4 * wide, wide)
    return found


# --- of what it is called with ---


def latent_size(config: Config) -> tuple[int, int]:
    """Height and width of the latents that a UNet was made for; SD's 64 where its config does not say."""
    size = config.get("sample_size") or 64
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def input_shapes(
    config: Config, batch: int = 1, size: int | tuple[int, int] | None = None, tokens: int = 77
) -> dict[str, Any]:
    """All arguments that a call of this UNet takes, as shapes; dictionaries and lists of them as it takes those."""
    height, width = (size, size) if isinstance(size, int) else size or latent_size(config)
    context = per_level(config, "cross_attention_dim")[0]
    encoded = config.get("encoder_hid_dim") or context  # before the UNet projects it
    hint = HINT_CHANNELS if config.get("addition_embed_type") == "image_hint" else 0
    told = context if config.get("encoder_hid_dim_type") == "ip_image_proj" else encoded
    arguments: dict[str, Any] = {
        "sample": (batch, config.get("in_channels", 4) - hint, height, width),
        "timestep": (batch,),
        "encoder_hidden_states": (batch, tokens, told),
    }
    added = _added(config, batch, context, encoded)
    if hint:
        added["hint"] = (batch, 3, HINT_FACTOR * height, HINT_FACTOR * width)
    if added:
        arguments["added_cond_kwargs"] = added
    if (kind := config.get("class_embed_type")) in ("projection", "simple_projection"):
        arguments["class_labels"] = (batch, config["projection_class_embeddings_input_dim"])
    elif kind == "identity":
        arguments["class_labels"] = (batch, time_width(config))
    elif kind == "timestep" or config.get("num_class_embeds") is not None:
        arguments["class_labels"] = (batch,)
    if config.get("time_cond_proj_dim") is not None:
        arguments["timestep_cond"] = (batch, config["time_cond_proj_dim"])
    if (grounded := config.get("attention_type")) in GLIGEN:
        each = {name: (context,) if name.endswith("embeddings") else () for name in GLIGEN[grounded]}
        objects = {name: (batch, GLIGEN_OBJECTS, *shape) for name, shape in {"boxes": (4,), **each}.items()}
        arguments["cross_attention_kwargs"] = {"gligen": objects}
    return arguments


def _added(config: Config, batch: int, context: int, encoded: int) -> dict[str, Any]:
    """Conditions besides the text, `context` wide inside the UNet and `encoded` before it projects them."""
    kind, hidden_kind = config.get("addition_embed_type"), config.get("encoder_hid_dim_type")
    added: dict[str, Any] = {}
    if kind == "text_image":
        added["text_embeds"] = (batch, context)
    if kind == "text_time":
        # micro-conditioning of SDXL: numbers, each embedded; the rest of the projection's input is pooled text
        each, whole = config["addition_time_embed_dim"], config["projection_class_embeddings_input_dim"]
        numbers = min(TIME_IDS, whole // each)
        added |= {"text_embeds": (batch, whole - numbers * each), "time_ids": (batch, numbers)}
    if {kind, hidden_kind} & {"text_image", "text_image_proj"}:
        added["image_embeds"] = (batch, context)
    elif {kind, hidden_kind} & {"image", "image_hint", "image_proj"}:
        added["image_embeds"] = (batch, encoded)
    elif hidden_kind == "ip_image_proj":
        added["image_embeds"] = [(batch, 1, encoded)]
    return added
