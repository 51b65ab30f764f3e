"""A model's UNets held against their configs, from small files and the headers of weights alone."""

from __future__ import annotations

from typing import Any

from asdm_cli.errors import ModelError
from asdm_cli.models.source import ModelDirectory
from asdm_cli.unet.weights import Checkpoint, open_checkpoint, require

FEEDS = {
    "StableDiffusionPipeline": {"timestep_cond"},
    "StableDiffusionXLPipeline": {"timestep_cond", "text_embeds", "time_ids"},
}
"""Pipelines that draw from a text -> what they feed their UNet besides latents, timestep and encoded text."""
NOT_NEEDED = {"cross_attention_kwargs"}
"""What a UNet may be called with and does without."""
TIME_IDS = 6
"""Sizes and crops that a StableDiffusionXLPipeline feeds."""
MADE_FOR = {
    5: "depth to image",
    7: "upscaling",
    8: "editing a picture (InstructPix2Pix) or estimates of it",
    9: "inpainting",
}
"""Channels that a UNet takes in where they are more than a latent's."""
ENCODERS = ("text_encoder", "text_encoder_2")
"""SDXL's pipeline needs the second one."""
CLIP_WIDTH = 512
"""Of a text encoder whose config leaves it out."""


def check_drawing(directory: ModelDirectory, training: bool = False) -> None:
    """ModelError unless this is a pipeline that draws from a text, and feeds its UNet what that takes in: as many
    channels as the VAE's latents have, text of the width that the encoders give, all other inputs.

    With `training`, what training feeds.
    """
    kind = directory.index.get("_class_name")
    if not directory.is_pipeline or kind not in FEEDS:
        what = f"a {kind}" if directory.is_pipeline else "a bare UNet"
        raise ModelError(f"{directory.path}: is {what}; whole pictures need a {' or '.join(FEEDS)} directory")
    faults = [*_unlike_latents(directory), *_unfed(directory, str(kind), training)]
    if not faults:
        faults = _unlike_text(directory, str(kind))
    if faults:
        raise ModelError("\n".join(faults))


def _unlike_latents(directory: ModelDirectory) -> list[str]:
    vae, config = directory.component("vae") / "config.json", directory.config("unet")
    channels, faults = directory.config("vae").get("latent_channels", 4), []
    if (takes := config.get("in_channels", 4)) != channels:
        use = f", as UNets for {MADE_FOR[takes]} do: use a text-to-image model" if takes in MADE_FOR else ""
        faults.append(f"takes in {takes} channels where the latents of {vae} have {channels}{use}")
    if (gives := config.get("out_channels", 4)) != channels:
        faults.append(f"gives {gives} channels where the latents of {vae} have {channels}")
    return [f"{directory.component('unet') / 'config.json'}: the UNet {fault}" for fault in faults]


def _unfed(directory: ModelDirectory, kind: str, training: bool) -> list[str]:
    """Inputs of the UNet that nobody gives it."""
    taken, place = _inputs(directory), directory.component("unet") / "config.json"
    wanted = {*taken, *taken.get("added_cond_kwargs", {})} - {"sample", "timestep", "encoder_hidden_states"}
    wanted -= NOT_NEEDED | {"added_cond_kwargs"}
    who, fed = (f"a {kind}", FEEDS[kind]) if not training else ("training", FEEDS[kind] - {"timestep_cond"})
    faults = [f"{place}: the UNet takes in {name}, which {who} does not feed" for name in sorted(wanted - fed)]
    if "timestep_cond" in wanted - fed:
        faults.append("it was distilled to be told of the guidance; train with the model that it was distilled from")
    if missing := fed - wanted - {"timestep_cond"}:
        faults.append(f"{place}: the UNet takes in no {', '.join(sorted(missing))}, which {who} feeds")
    return ["; ".join(faults)] if faults else []


def _unlike_text(directory: ModelDirectory, kind: str) -> list[str]:
    """Where what the text encoders give is not what the UNet takes in."""
    taken, xl = _inputs(directory), kind == "StableDiffusionXLPipeline"
    names = [name for name in ENCODERS if xl and name in directory.components] or [ENCODERS[xl]]
    configs = {name: directory.config(name) for name in names}
    if not all(str(config.get("model_type", "")).startswith("clip") for config in configs.values()):
        return []  # what another encoder gives, its config says in words of its own
    places = " and ".join(str(directory.component(name) / "config.json") for name in names)
    wide, place = taken["encoder_hidden_states"].shape[-1], directory.component("unet") / "config.json"
    faults = []
    widths = [_clip(config).get("hidden_size", CLIP_WIDTH) for config in configs.values()]
    if not all(isinstance(width, int) for width in widths) or sum(widths) != wide:
        wide_told = " + ".join(map(str, widths))
        faults.append(f"{places}: text is {wide_told} wide (hidden_size), and the UNet of {place} takes in {wide}")
    if xl and not faults:
        pooled = _clip(configs[names[-1]]).get("projection_dim", CLIP_WIDTH)
        added = taken["added_cond_kwargs"]
        numbers = directory.config("unet")["addition_time_embed_dim"]
        whole = added["text_embeds"].shape[-1] + added["time_ids"].shape[-1] * numbers
        if pooled != whole - TIME_IDS * numbers:
            faults.append(
                f"{places}: pooled text is {pooled} wide (projection_dim), and beside {TIME_IDS} sizes and crops the "
                f"UNet of {place} takes in {whole - TIME_IDS * numbers}"
            )
    again = "fetch the model again, as a whole"
    return [f"{fault}; {again}" for fault in faults]


def _clip(config: dict[str, Any]) -> dict[str, Any]:
    """Of a text encoder that was saved as a part of its CLIP."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _inputs(directory: ModelDirectory) -> dict[str, Any]:
    from asdm_cli.unet.flops import inputs  # makes tensors without storage: that takes torch

    try:
        return inputs(directory.config("unet"))
    except Exception as error:  # settings may contradict each other in any way
        file = directory.component("unet") / "config.json"
        raise ModelError(f"{file}: says not what the UNet takes in ({error}); fetch the file again") from None


def check_unet(directory: ModelDirectory, component: str = "unet") -> Checkpoint:
    """The headers of a UNet's weights. Raises ModelError, with the file, unless they hold what its config promises."""
    from asdm_cli.unet.flops import shapes  # builds UNets without storage: that takes torch

    folder = directory.component(component)
    config = directory.config(component)
    try:
        promised = shapes(config)
    except ModelError as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from None
    checkpoint = open_checkpoint(folder, directory.path)
    require(checkpoint, promised, folder)
    return checkpoint
