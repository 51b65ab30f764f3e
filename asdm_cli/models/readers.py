"""Who can read a single file: diffusers, ComfyUI and A1111, from the configurations around it. No torch.

What each of them knows was read from its source: ComfyUI 0.3.64 recognises a UNet by its tensors, A1111 1.10 by a .yaml
of the file's name, or takes it for one of Stable Diffusion's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from asdm_cli.models.directory import ModelDirectory
from asdm_cli.models.families import configs
from asdm_cli.models.single_file import UNET, VAE, family
from asdm_cli.unet.assembly import BY_BLOCKS, HARMLESS
from asdm_cli.unet.blocks import Block, Config, per_level, read, read_blocks

LIKE = {"sdxl-refiner": "sdxl"}
"""Families whose VAE and second text encoder are those of another."""
NAMES = {"sd15": "SD 1.x", "sd21": "SD 2.x", "sdxl": "SDXL", "sdxl-refiner": "the refiner of SDXL"}
WIDTHS = {"sd15": (320, 768), "sd21": (320, 1024), "sdxl": (320, 2048), "sdxl-refiner": (384, 1280)}
"""Of the first level, and of the text that the UNet takes in."""
HEADS, HEAD_WIDTH = 8, 64
"""SD 1.x has so many heads everywhere, the others as many as are so wide."""
XL_DEPTHS = {
    "sdxl": ((0, 0, 2, 2, 10, 10), (0, 0, 2, 2, 4, 4), (0, 0, 1, 1, 2, 2), (0, 2, 5), (0, 2, 6)),
    "sdxl-refiner": ((0, 0, 4, 4, 4, 4, 0, 0),),
}
"""Transformer blocks of the layers on the way down, by which ComfyUI knows SDXL, SSD-1B, Vega, KOALA 700M and 1B."""
CHANNELS = {"sd15": (4, 8, 9), "sd21": (4, 9), "sdxl": (4, 8, 9), "sdxl-refiner": (4,)}
"""Into the UNet: text to image, InstructPix2Pix, inpainting."""
LOOK = ("vae", "text_encoder", "text_encoder_2")
COUNTED = {
    "vae": ("block_out_channels", "layers_per_block", "latent_channels", "scaling_factor"),
    **dict.fromkeys(LOOK[1:], ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act")),
}
"""What user interfaces take for granted: settings of a family that no file says."""
SHOWN = 2
"""Reasons that are told."""
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SILENT = {
    *BY_BLOCKS,
    *HARMLESS,
    "in_channels",
    "upcast_attention",
    "_class_name",
    "_diffusers_version",
    "_name_or_path",
}
"""Settings of a UNet that its tensors show, or that change only how it is computed."""


@dataclass
class Reader:
    """`name` reads the file unless there is something in `not_because`; `needs` is what else it takes."""

    name: str
    not_because: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if self.not_because:
            more = len(self.not_because) - SHOWN
            told = [*self.not_because[:SHOWN], *([f"and for {more} more reasons"] if more > 0 else [])]
            return f"{self.name}: cannot read it: {'; '.join(told)}"
        return f"{self.name}: reads it{''.join(f'; {each}' for each in self.needs)}"


def diffusers(directory: ModelDirectory) -> Reader:
    """`from_single_file`, with the configurations beside the file."""
    reader = Reader("diffusers")
    layers = directory.config(UNET).get("layers_per_block")
    if isinstance(layers, list):
        reader.not_because.append(
            f"its from_single_file counts on one layers_per_block for all levels, and this UNet has {layers}: "
            "load the directory instead (export --to diffusers)"
        )
    return reader


def comfyui(directory: ModelDirectory, whole: bool) -> Reader:
    of, config = family(directory), directory.config(UNET)
    reader, blocks = Reader("ComfyUI"), read_blocks(config)
    reader.not_because += _unlike_family(of, config, blocks)
    depths = tuple(layer.transformer.depth if layer.transformer else 0 for layer in _layers(blocks, "down"))
    if of in XL_DEPTHS and depths not in XL_DEPTHS[of]:
        known = ", ".join(str(list(each)) for each in XL_DEPTHS[of])
        what = f"it knows {NAMES[of]} by the transformers on the way down, which are {list(depths)} here"
        reader.not_because.append(f"{what} (known: {known})")
    if config.get("in_channels", 4) not in CHANNELS[of]:
        reader.not_because.append(f"it knows no {NAMES[of]} that takes in {config['in_channels']} channels")
    reader.not_because += _unlike_around(of, directory) if whole else []
    if not whole:
        reader.needs.append("put it into models/diffusion_models and take Load Diffusion Model, with a CLIP and a VAE")
    _noise(reader, of, directory, blocks)
    return reader


def _noise(reader: Reader, of: str, directory: ModelDirectory, blocks: tuple[Block, ...]) -> None:
    if "scheduler" not in directory.components:
        return
    noise = directory.config("scheduler")
    told = noise.get("prediction_type", "epsilon") == "v_prediction"
    # SD 2's own checkpoints are told apart by a tensor that stands in the twelfth layer on the way up
    guessed = of == "sd21" and len(list(_layers(blocks, "up"))) == 12
    if told and of != "sdxl" and not guessed:
        reader.needs.append("add ModelSamplingDiscrete with v_prediction: it takes this UNet for one that tells noise")
    elif told and guessed:
        reader.needs.append("if its images are noise, add ModelSamplingDiscrete with v_prediction: it guesses")
    if noise.get("rescale_betas_zero_snr") and of != "sdxl":
        reader.needs.append("add ModelSamplingDiscrete with zsnr")


def a1111(directory: ModelDirectory, whole: bool) -> tuple[Reader, dict[str, Any] | None]:
    """Also what its .yaml must hold, where it needs one."""
    of, config = family(directory), directory.config(UNET)
    reader, blocks = Reader("A1111"), read_blocks(config)
    if not whole:
        reader.not_because.append("it loads whole checkpoints only: export without --unet-only")
        return reader, None
    reader.not_because += _unlike_family(of, config, blocks) + _unlike_around(of, directory)
    noise = directory.config("scheduler") if "scheduler" in directory.components else {}
    told = noise.get("prediction_type", "epsilon") == "v_prediction"
    own = _shape(blocks) == _shape(read_blocks(_preset(of))) if of in _PRESETS else True
    guessed = own and (not told or of == "sd21")
    if config.get("in_channels", 4) not in (4, *CHANNELS[of]) or (config.get("in_channels", 4) != 4 and not own):
        reader.not_because.append("it knows inpainting and InstructPix2Pix UNets of Stable Diffusion's own shape only")
    if not guessed:
        reader.not_because += _not_in_yaml(of, blocks)
    if guessed or reader.not_because:
        return reader, None
    reader.needs.append("with the .yaml of the same name beside it")
    if noise.get("rescale_betas_zero_snr"):
        reader.needs.append("set its noise schedule to Zero Terminal SNR")
    return reader, _yaml(of, config, blocks, told)


def _unlike_family(of: str, config: Config, blocks: tuple[Block, ...]) -> list[str]:
    """What neither of them knows of a UNet."""
    width, context = WIDTHS[of]
    faults = []
    widths = per_level(config, "block_out_channels")
    if widths[0] != width or any(each % width for each in widths):
        faults.append(f"its UNets are {width} channels wide and multiples of that, and this one {list(widths)}")
    if (found := read(config, "cross_attention_dim")) != context:
        faults.append(f"{NAMES[of]} takes in text {context} wide, and this UNet {found}")
    heads = {(each.channels, each.heads) for each in _transformers(blocks)}
    if any(count != (HEADS if of == "sd15" else channels // HEAD_WIDTH) for channels, count in heads):
        wanted = f"{HEADS} heads" if of == "sd15" else f"heads {HEAD_WIDTH} wide"
        faults.append(f"{NAMES[of]} has {wanted}, and this UNet others")
    if not all(each.depth for each in _transformers(blocks)):
        faults.append("it knows no transformers without blocks, as this UNet has")
    own = _preset(of)
    others = [
        key for key, value in config.items() if key not in SILENT and _told(value) and value != own.get(key, value)
    ]
    unlike = [key for key in others if not (of == "sdxl-refiner" and key.startswith("projection_class"))]
    if unlike:
        faults.append(
            "it cannot be told of these settings of the UNet: " + ", ".join(f"{k}: {config[k]}" for k in unlike)
        )
    return faults


def _told(value: object) -> bool:
    return value not in (None, False)


def _unlike_around(of: str, directory: ModelDirectory) -> list[str]:
    """What VAE, text encoders and scheduler have that the family's own have not."""
    own = configs(LIKE.get(of, of))
    faults = []
    for part in LOOK:
        held = directory.config(part) if part in directory.components else {}
        wanted = own.get(f"{part}/config.json", {})
        unlike = [key for key in COUNTED[part] if key in held and key in wanted and held[key] != wanted[key]]
        faults += [f"{key} of the {part} is {held[key]}, and it takes {wanted[key]} for granted" for key in unlike]
    noise = directory.config("scheduler") if "scheduler" in directory.components else {}
    unlike = [key for key, value in NOISE.items() if noise.get(key, value) != value]
    return faults + [f"{key} of the scheduler is {noise[key]}, and it takes {NOISE[key]} for granted" for key in unlike]


def _not_in_yaml(of: str, blocks: tuple[Block, ...]) -> list[str]:
    """What the original code's UNet cannot be built as. A middle block it always has; without weights that does
    nothing."""
    faults = []
    by_level: dict[int, set[int]] = {}
    for block in blocks:
        if block.kind != "mid":
            depths = {layer.transformer.depth if layer.transformer else 0 for layer in block.layers}
            by_level.setdefault(block.level, set()).update(depths)
    if any(len(depths) > 1 for depths in by_level.values()):
        faults.append("it has the same transformers in all layers of a level, down and up, and this UNet has not")
    middle = next((block for block in blocks if block.kind == "mid"), None)
    inside = middle.layers[0].transformer if middle else None
    deepest = max(by_level.get(max(by_level), {0}))
    if of.startswith("sdxl") and (inside is None or inside.depth != deepest):
        faults.append("it takes an SDXL whose middle block is another for SSD-1B")
    return faults


def _yaml(of: str, config: Config, blocks: tuple[Block, ...], v_prediction: bool) -> dict[str, Any]:
    down = [block for block in blocks if block.kind == "down"]
    width, context = WIDTHS[of]
    depths = [
        max((layer.transformer.depth for layer in block.layers if layer.transformer), default=0) for block in down
    ]
    unet = {
        "in_channels": read(config, "in_channels"),
        "out_channels": read(config, "out_channels"),
        "model_channels": width,
        "attention_resolutions": [2**level for level, depth in enumerate(depths) if depth],
        "num_res_blocks": [len(block.layers) for block in down],
        "channel_mult": [each // width for each in per_level(config, "block_out_channels")],
        "context_dim": context,
        "use_checkpoint": False,
        **({"num_heads": HEADS} if of == "sd15" else {"num_head_channels": HEAD_WIDTH}),
        **({"use_linear_in_transformer": True} if of != "sd15" else {}),
    }
    if of.startswith("sdxl"):
        unet |= {"num_classes": "sequential", "adm_in_channels": config["projection_class_embeddings_input_dim"]}
        unet |= {"transformer_depth": [max(depth, 1) for depth in depths]}
        return {"model": _xl(unet, v_prediction)}
    unet |= {"image_size": 32, "use_spatial_transformer": True, "transformer_depth": 1, "legacy": False}
    text = "FrozenCLIPEmbedder" if of == "sd15" else "FrozenOpenCLIPEmbedder"
    params = {
        "linear_start": NOISE["beta_start"],
        "linear_end": NOISE["beta_end"],
        "timesteps": NOISE["num_train_timesteps"],
        "num_timesteps_cond": 1,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 64,
        "channels": 4,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "scale_factor": _scale(of),
        "use_ema": False,
        **({"parameterization": "v"} if v_prediction else {}),
        "unet_config": _target("ldm.modules.diffusionmodules.openaimodel.UNetModel", unet),
        "first_stage_config": _target("ldm.models.autoencoder.AutoencoderKL", AUTOENCODER),
        "cond_stage_config": _target(
            f"ldm.modules.encoders.modules.{text}", {"freeze": True, "layer": "penultimate"} if of == "sd21" else {}
        ),
    }
    return {"model": _target("ldm.models.diffusion.ddpm.LatentDiffusion", params)}


AUTOENCODER: dict[str, Any] = {
    "embed_dim": 4,
    "ddconfig": {
        **{"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128},
        **{"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0},
    },
    "lossconfig": {"target": "torch.nn.Identity"},
}


def _xl(unet: dict[str, Any], v_prediction: bool) -> dict[str, Any]:
    modules = "sgm.modules"
    denoiser, encoders = f"{modules}.diffusionmodules", f"{modules}.encoders.modules"
    text = {"is_trainable": False, "input_key": "txt"}
    clip = {"layer": "hidden", "layer_idx": 11}
    open_clip = {"arch": "ViT-bigG-14", "version": "laion2b_s39b_b160k", "freeze": True, "layer": "penultimate"}
    open_clip |= {"always_return_pooled": True, "legacy": False}
    sizes = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    embedders = [
        text | _target(f"{encoders}.FrozenCLIPEmbedder", clip),
        text | _target(f"{encoders}.FrozenOpenCLIPEmbedder2", open_clip),
        *(
            {"is_trainable": False, "input_key": key} | _target(f"{encoders}.ConcatTimestepEmbedderND", {"outdim": 256})
            for key in sizes
        ),
    ]
    scaling = "VScaling" if v_prediction else "EpsScaling"
    steps = {
        "num_idx": NOISE["num_train_timesteps"],
        "scaling_config": {"target": f"{denoiser}.denoiser_scaling.{scaling}"},
        "discretization_config": {"target": f"{denoiser}.discretizer.LegacyDDPMDiscretization"},
    }
    params = {
        "scale_factor": _scale("sdxl"),
        "disable_first_stage_autocast": True,
        "denoiser_config": _target(f"{denoiser}.denoiser.DiscreteDenoiser", steps),
        "network_config": _target(f"{denoiser}.openaimodel.UNetModel", unet),
        "conditioner_config": _target(f"{modules}.GeneralConditioner", {"emb_models": embedders}),
        "first_stage_config": _target("sgm.models.autoencoder.AutoencoderKL", AUTOENCODER),
    }
    return _target("sgm.models.diffusion.DiffusionEngine", params)


def _target(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return {"target": name, "params": dict(params)} if params else {"target": name}


def _scale(of: str) -> float:
    factor: float = configs(of)[f"{VAE}/config.json"].get("scaling_factor", 0.18215)
    return factor


_PRESETS = ("sd15", "sd21", "sdxl")


def _preset(of: str) -> Config:
    config: Config = configs(LIKE.get(of, of))["unet/config.json"]
    return config


def _shape(blocks: tuple[Block, ...]) -> list[object]:
    return [(block.kind, block.layers, block.sampler) for block in blocks]


def _layers(blocks: tuple[Block, ...], kind: str) -> list[Any]:
    return [layer for block in blocks if block.kind == kind for layer in block.layers]


def _transformers(blocks: tuple[Block, ...]) -> list[Any]:
    return [layer.transformer for block in blocks for layer in block.layers if layer.transformer]
