"""A pipeline's weights in one file, under the names of the original code: what CompVis and Stability published, and
what user interfaces read. No torch.

The tables have both names of everything; diffusers' own conversion is the inverse of what is done with them here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import prod

from asdm_cli.errors import ModelError
from asdm_cli.models.directory import ModelDirectory
from asdm_cli.unet.addresses import unit_of
from asdm_cli.unet.blocks import Config, read, read_blocks
from asdm_cli.unet.weights import Entry, Piece, as_it_is, read_headers

UNET, VAE = "unet", "vae"
CLIP, OPEN_CLIP = "clip", "open_clip"
"""How text encoders are written: as transformers does, or as open_clip."""
FAMILIES: dict[str, dict[str, tuple[str, str]]] = {
    "sd15": {"text_encoder": ("cond_stage_model.transformer.", CLIP)},
    "sd21": {"text_encoder": ("cond_stage_model.model.", OPEN_CLIP)},
    "sdxl": {
        "text_encoder": ("conditioner.embedders.0.transformer.", CLIP),
        "text_encoder_2": ("conditioner.embedders.1.model.", OPEN_CLIP),
    },
    "sdxl-refiner": {"text_encoder_2": ("conditioner.embedders.0.model.", OPEN_CLIP)},
}
"""Family -> text encoder -> what its tensors' names begin with, and how it is written. The rest is alike in all."""
PREFIXES = {UNET: "model.diffusion_model.", VAE: "first_stage_model."}
EMBEDDING = {"linear_1": "0", "linear_2": "2"}
UNET_MODULES = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    **{f"time_embedding.{ours}": f"time_embed.{theirs}" for ours, theirs in EMBEDDING.items()},
    **{f"add_embedding.{ours}": f"label_emb.0.{theirs}" for ours, theirs in EMBEDDING.items()},
    **{f"class_embedding.{ours}": f"label_emb.0.{theirs}" for ours, theirs in EMBEDDING.items()},
    "class_embedding": "label_emb",
}
"""Outside the blocks."""
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
VAE_ATTENTION |= {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}
"""Also as diffusers called them at first, which is how many files have them."""
VAE_MIDDLE = {"resnets.0": "block_1", "attentions.0": "attn_1", "resnets.1": "block_2"}
TEXT_MODEL = "text_model."
"""What newer versions of transformers leave out of the names of an encoder without a projection."""
OPEN_CLIP_MODULES = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
IN_PROJ = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")
"""Three tensors that open_clip has as one."""
NO_WEIGHT = "embeddings.position_ids"
"""Numbers from 0 on, which old files keep among an encoder's weights."""
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"
"""Empty tensors that say of an SDXL how it was trained."""
Names = Callable[[str], str | None]


def family(directory: ModelDirectory) -> str:
    """Whose layout a model's single file has, by its UNet: a key of `FAMILIES`."""
    config = directory.config(UNET)
    if read(config, "addition_embed_type") == "text_time":
        return "sdxl" if "text_encoder" in directory.components or not directory.is_pipeline else "sdxl-refiner"
    return "sd21" if config.get("use_linear_projection") else "sd15"


def pieces(directory: ModelDirectory, unet_only: bool = False) -> dict[str, Piece]:
    """The tensors of the file, by their names in it. Raises ModelError with all that the layout has no place for."""
    encoders = FAMILIES[family(directory)]
    made, faults = _renamed(directory, UNET, unet_names(directory.config(UNET)))
    for component in (VAE, *encoders) if not unet_only else ():
        if component not in directory.components:
            faults.append(f"{directory.path}: has no {component}, which such a file holds; export the UNet alone")
            continue
        if component == VAE:
            found, wrong = _renamed(directory, VAE, _vae_names(directory.config(VAE)))
            made |= {name: _as_convolution(name, each) for name, each in found.items()}
        elif encoders[component][1] == OPEN_CLIP:
            found, wrong = _open_clip(directory, component, encoders[component][0])
            made |= found
        else:
            found, wrong = _renamed(directory, component, clip_name, encoders[component][0])
            made |= found
        faults += wrong
    if faults:
        raise ModelError("\n".join(faults))
    return made | _marks(directory)


def _renamed(
    directory: ModelDirectory, component: str, names: Names, prefix: str = ""
) -> tuple[dict[str, Piece], list[str]]:
    """Tensors that only have other names there, and what has none."""
    made: dict[str, Piece] = {}
    faults = []
    for key, entry in _tensors(directory, component).items():
        if (name := names(key)) is None:
            faults.append(_no_place(entry, key))
        else:
            made[(prefix or PREFIXES[component]) + name] = as_it_is(entry)
    return made, faults


def _tensors(directory: ModelDirectory, component: str) -> dict[str, Entry]:
    tensors = read_headers(directory.weights(component)).tensors
    return {key: entry for key, entry in tensors.items() if not key.endswith(NO_WEIGHT)}


def _no_place(entry: Entry, key: str) -> str:
    return f"{entry.file}: {key} has no place in a single file of the original layout; export --to diffusers"


def unet_names(config: Config) -> Names:
    """By diffusers' name the original one; None where there is none."""
    units = dict(_unet_units(config))

    def name(key: str) -> str | None:
        unit = unit_of(key)
        if unit is None:
            return _replaced(key, UNET_MODULES)
        if (there := units.get(unit)) is None:
            return None
        rest = key.removeprefix(f"{unit}.")
        inner = (
            _replaced(rest, RESNET)
            if ".resnets." in unit
            else rest.removeprefix("conv.")
            if "sampler" in unit
            else rest
        )
        return None if inner is None else f"{there}.{inner}"

    return name


def _unet_units(config: Config) -> Iterator[tuple[str, str]]:
    """The original numbers layers through all blocks, and a resampler is one of them, or a part of one."""
    into, out = 1, 0
    for block in read_blocks(config):
        if block.kind == "mid":
            yield from ((f"mid_block.resnets.{i}", f"middle_block.{2 * i}") for i in range(len(block.layers)))
            yield "mid_block.attentions.0", "middle_block.1"
            continue
        name = f"{block.kind}_blocks.{block.index}"
        for number in range(len(block.layers)):
            there = f"input_blocks.{into}" if block.kind == "down" else f"output_blocks.{out}"
            yield f"{name}.resnets.{number}", f"{there}.0"
            yield f"{name}.attentions.{number}", f"{there}.1"
            into, out = into + (block.kind == "down"), out + (block.kind == "up")
        if block.sampler and block.kind == "down":
            yield f"{name}.downsamplers.0", f"input_blocks.{into}.0.op"
            into += 1
        elif block.sampler:
            yield f"{name}.upsamplers.0", f"output_blocks.{out - 1}.{2 if block.layers[-1].transformer else 1}.conv"


def _vae_names(config: Config) -> Names:
    levels = len(config.get("block_out_channels", ()))
    middle = re.compile(r"(encoder|decoder)\.mid_block\.(resnets\.\d+|attentions\.0)\.(.+)")
    block = re.compile(
        r"(?:encoder\.(down)|decoder\.(up))_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)"
    )

    def name(key: str) -> str | None:
        if found := middle.fullmatch(key):
            side, unit, rest = found.groups()
            inner = _replaced(rest, VAE_ATTENTION) if unit.startswith("att") else _shortcut(rest)
            there = VAE_MIDDLE.get(unit)
            return f"{side}.mid.{there}.{inner}" if there and inner else None
        if found := block.fullmatch(key):
            down, up, index, group, number, rest = found.groups()
            level = int(index) if down else levels - 1 - int(index)
            there = f"encoder.down.{level}" if down else f"decoder.up.{level}"
            if group != "resnets":
                return f"{there}.{down or up}sample.{rest}"
            return f"{there}.block.{number}.{_shortcut(rest)}"
        outside = ("encoder.conv_", "decoder.conv_", "quant_conv.", "post_quant_conv.")
        return key.replace("conv_norm_out", "norm_out") if key.startswith(outside) else None

    return name


def _shortcut(rest: str) -> str:
    return rest.replace("conv_shortcut", "nin_shortcut")


def _as_convolution(name: str, held: Piece) -> Piece:
    """The VAE's attention is made of 1 x 1 convolutions there."""
    if ".attn_1." not in name or len(held.shape) != 2:
        return held
    return Piece(held.parts, held.dtype, (*held.shape, 1, 1), held.size)


def clip_name(key: str) -> str:
    return key if key.startswith((TEXT_MODEL, "text_projection.")) else TEXT_MODEL + key


def _open_clip(directory: ModelDirectory, component: str, prefix: str) -> tuple[dict[str, Piece], list[str]]:
    tensors = {key.removeprefix(TEXT_MODEL): entry for key, entry in _tensors(directory, component).items()}
    made: dict[str, Piece] = {}
    faults = []
    for key, entry in tensors.items():
        if found := IN_PROJ.fullmatch(key):
            number, part, kind = found.groups()
            if part == "q":
                three = [tensors.get(key.replace(".q_proj.", f".{each}_proj.")) for each in "qkv"]
                joined = _joined([each for each in three if each])
                made[f"{prefix}transformer.resblocks.{number}.attn.in_proj_{kind}"] = joined
        elif (name := OPEN_CLIP_MODULES.get(key) or _resblock(key)) is None:
            faults.append(_no_place(entry, key))
        else:
            made[prefix + name] = _transposed(entry) if name == "text_projection" else as_it_is(entry)
    return made, faults


def _resblock(key: str) -> str | None:
    if not (found := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", key)):
        return None
    inner = _replaced(found[2], OPEN_CLIP_LAYER)
    return inner and f"transformer.resblocks.{found[1]}.{inner}"


def _replaced(key: str, names: Mapping[str, str]) -> str | None:
    """`key` with the module that it begins with, in front of its last word, under its other name."""
    module, _, word = key.rpartition(".")
    return f"{names[module]}.{word}" if module in names else None


def _joined(parts: list[Entry]) -> Piece:
    first = parts[0]
    rows = sum(part.shape[0] for part in parts)
    if len({part.dtype for part in parts}) > 1:
        formats = ", ".join(sorted({part.dtype for part in parts}))
        raise ModelError(
            f"{first.file}: tensors that become one are of several number formats ({formats}); give --dtype"
        )
    return Piece(tuple(parts), first.dtype, (rows, *first.shape[1:]), sum(part.size for part in parts))


def _transposed(entry: Entry) -> Piece:
    turned = partial(_transpose, shape=entry.shape)
    return Piece((entry,), entry.dtype, entry.shape[::-1], entry.size, turned)


def _transpose(held: bytes, shape: tuple[int, ...]) -> bytes:
    import numpy as np

    elements = np.frombuffer(held, f"V{len(held) // prod(shape)}")
    return elements.reshape(shape).T.tobytes()


def _marks(directory: ModelDirectory) -> dict[str, Piece]:
    """What an SDXL's file says of its training, where others leave it to be guessed."""
    if family(directory) != "sdxl" or "scheduler" not in directory.components:
        return {}
    config = directory.config("scheduler")
    marks: Iterable[str] = [V_PREDICTION] if config.get("prediction_type") == "v_prediction" else []
    marks = [*marks, ZERO_SNR] if config.get("rescale_betas_zero_snr") else marks
    return {mark: Piece((), "F32", (0,), 0) for mark in marks}
