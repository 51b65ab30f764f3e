"""A model's parts held against their configs and against each other, from small files and the headers of weights alone.

Libraries fill in random numbers where weights lack something, so nothing is left to them. They are imported where they
are asked: torch, diffusers and transformers take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from asdm_cli.errors import AsdmError, ModelError
from asdm_cli.models.directory import CLASSES, CONFIG, INDEX, ModelDirectory, check_folder
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.weights import (
    TRANSFORMERS_STEM,
    Checkpoint,
    Entry,
    find_weights,
    inside,
    open_checkpoint,
    read_headers,
    read_mapping,
    require,
)

Loaded = TypeVar("Loaded")
Shapes = dict[str, tuple[int, ...]]

FEEDS = {
    "StableDiffusionPipeline": {"timestep_cond"},
    "StableDiffusionXLPipeline": {"timestep_cond", "text_embeds", "time_ids"},
}
"""Pipelines that draw from a text -> what they feed their UNet besides `ALWAYS`."""
ALWAYS = {"sample", "timestep", "encoder_hidden_states", "added_cond_kwargs", "cross_attention_kwargs"}
"""What every UNet is fed, or does without."""
MADE_FOR = {
    5: "depth to image",
    7: "upscaling",
    8: "editing a picture (InstructPix2Pix) or estimates of it",
    9: "inpainting",
}
"""Channels that a UNet takes in where they are more than a latent's."""
TIME_IDS = 6
"""Sizes and crops that a StableDiffusionXLPipeline feeds."""
CLIP_WIDTH = 512
"""Of a text encoder whose config leaves it out."""
PARTS = ("vae", "text_encoder", "text_encoder_2", "image_encoder")
"""With weights, of the pipelines that are loaded."""


def check_drawing(directory: ModelDirectory, training: bool = False) -> None:
    """ModelError unless this is a pipeline that draws from a text, and feeds its UNet what that takes in: as many
    channels as the VAE's latents have, text of the width that the encoders give, all other inputs.

    With `training`, what training feeds.
    """
    kind = directory.index.get("_class_name")
    if kind not in FEEDS:
        what = f"a {kind}" if directory.is_pipeline else "a bare UNet"
        whole = directory.path.parent
        way = f"; give {whole}" if not directory.is_pipeline and (whole / INDEX).is_file() else ""
        raise ModelError(f"{directory.path}: is {what}; whole pictures need a {' or '.join(FEEDS)} directory{way}")
    config, channels = directory.config("unet"), directory.config("vae").get("latent_channels", 4)
    faults = []
    for key, does in (("in_channels", "takes in"), ("out_channels", "gives")):
        if (count := config.get(key, 4)) != channels:
            made_for = MADE_FOR.get(count) if key == "in_channels" else None
            use = f", as UNets for {made_for} do: use a text-to-image model" if made_for else ""
            where = f"where the latents of {directory.config_file('vae')} have {channels}{use}"
            faults.append(f"{does} {count} channels {where}")
    inputs = _inputs(directory)
    taken = {*inputs, *inputs.get("added_cond_kwargs", {})} - ALWAYS
    who, fed = ("training", FEEDS[kind] - {"timestep_cond"}) if training else (f"a {kind}", FEEDS[kind])
    for name in sorted(taken - fed):
        distilled = "; it was distilled to be told of the guidance: train with the model that it was distilled from"
        faults.append(f"takes in {name}, which {who} does not feed{distilled if name == 'timestep_cond' else ''}")
    if missing := sorted(fed - taken - {"timestep_cond"}):
        faults.append(f"takes in no {', '.join(missing)}, which {who} feeds")
    faults = [f"{directory.config_file('unet')}: the UNet {fault}" for fault in faults]
    if faults := faults or _unlike_text(directory, inputs):
        raise ModelError("\n".join(faults))


def _inputs(directory: ModelDirectory) -> dict[str, Any]:
    from asdm_cli.unet.flops import inputs

    try:
        return inputs(directory.config("unet"))
    except Exception as error:  # settings may contradict each other in any way
        file = directory.config_file("unet")
        raise ModelError(f"{file}: says not what the UNet takes in ({error}); fetch the file again") from None


def _unlike_text(directory: ModelDirectory, inputs: dict[str, Any]) -> list[str]:
    """Where what the text encoders give is not what the UNet takes in."""
    xl = directory.index["_class_name"] == "StableDiffusionXLPipeline"
    both = [name for name in ("text_encoder", "text_encoder_2") if xl and name in directory.components]
    names = both or ["text_encoder_2" if xl else "text_encoder"]  # SDXL's pipeline needs the second one
    configs = [directory.config(name) for name in names]
    if not all(str(config.get("model_type", "")).startswith("clip") for config in configs):
        return []  # what another encoder gives, its config says in words of its own
    # a text encoder that was saved as a part of its CLIP has its settings one level deeper
    configs = [config["text_config"] if isinstance(config.get("text_config"), dict) else config for config in configs]
    places = " and ".join(str(directory.config_file(name)) for name in names)
    unet, again = directory.config_file("unet"), "fetch the model again, as a whole"
    wide = inputs["encoder_hidden_states"].shape[-1]
    widths = [config.get("hidden_size", CLIP_WIDTH) for config in configs]
    if not all(isinstance(width, int) for width in widths) or sum(widths) != wide:
        given = " + ".join(map(str, widths))
        return [f"{places}: text is {given} wide (hidden_size), and the UNet of {unet} takes in {wide}; {again}"]
    if not xl:
        return []
    added, numbers = inputs["added_cond_kwargs"], directory.config("unet")["addition_time_embed_dim"]
    wanted = added["text_embeds"].shape[-1] + (added["time_ids"].shape[-1] - TIME_IDS) * numbers
    if (pooled := configs[-1].get("projection_dim", CLIP_WIDTH)) == wanted:
        return []
    beside = f"beside {TIME_IDS} sizes and crops the UNet of {unet} takes in {wanted}"
    return [f"{places}: pooled text is {pooled} wide (projection_dim), and {beside}; {again}"]


def check_unet(directory: ModelDirectory, component: str = "unet") -> Checkpoint:
    """The headers of a UNet's weights. Raises ModelError, with the file, unless they hold what its config promises."""
    from asdm_cli.unet.flops import shapes

    folder = directory.component(component)
    try:
        promised = shapes(directory.config(component))
    except ModelError as error:
        raise ModelError(f"{directory.config_file(component)}: {error}") from None
    checkpoint = open_checkpoint(folder, directory.path)
    require(checkpoint, promised, folder)
    return checkpoint


def check_parts(directory: ModelDirectory) -> None:
    """The same of what stands around the UNet. Raises ModelError with all that do not hold what they promise."""
    faults = []
    for name in PARTS:
        if name in directory.components:
            try:
                _check_part(directory.component(name), directory.kind(name), directory.weights(name))
            except ModelError as error:
                faults.append(str(error))
    if faults:
        raise ModelError("\n".join(faults))


def check_clip(folder: Path) -> None:
    """The same of a transformers CLIP directory, wherever it lies."""
    for file in (CONFIG, "preprocessor_config.json"):
        if not (folder / file).is_file():
            raise ModelError(f"{folder}: has no {file}; give a transformers CLIP directory as `clip`")
    check_folder(folder, folder)
    _check_part(folder, CLASSES["clip"][0], find_weights(folder, stem=TRANSFORMERS_STEM).files)


def _check_part(folder: Path, kind: str, files: list[Path]) -> None:
    checkpoint = read_headers(files)
    config = read_mapping(inside(folder.parent, folder / CONFIG))
    for key, count in _layers(config):
        if count > len(checkpoint.tensors):
            raise ModelError(
                f"{folder / CONFIG}: {key} is {count}, and the weights hold {len(checkpoint.tensors)} tensors; "
                "fetch config and weights again, from one place"
            )
    library, name = kind.split(".")
    promise = _promised_by_diffusers if library == "diffusers" else _promised_by_transformers
    tensors, promised = read_with(folder, lambda: promise(name, folder, config, checkpoint))
    require(Checkpoint(tensors, checkpoint.digest), promised, folder)


def _layers(config: Config) -> Iterator[tuple[str, int]]:
    """Numbers of layers, of nested configs too: a library would build a billion of them first."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _layers(value)
        elif "layers" in key and type(value) is int:
            yield key, value


def _promised_by_diffusers(
    name: str, _: Path, config: Config, checkpoint: Checkpoint
) -> tuple[dict[str, Entry], Shapes]:
    """The tensors under the names that the class has today, and the shapes that it promises."""
    import diffusers
    import torch

    with torch.device("meta"):
        model = getattr(diffusers, name).from_config(config)
    tensors = dict(checkpoint.tensors)
    model._fix_state_dict_keys_on_load(tensors)
    return tensors, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _promised_by_transformers(
    name: str, folder: Path, _: Config, checkpoint: Checkpoint
) -> tuple[dict[str, Entry], Shapes]:
    """The same, only of those that do not fit: which names of old files are which of today's, the library knows."""
    import torch
    import transformers

    kind, entries = getattr(transformers, name), checkpoint.tensors
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        _, found = kind.from_pretrained(
            None,
            config=kind.config_class.from_pretrained(folder, local_files_only=True),
            state_dict={name: torch.empty(entry.shape, device="meta") for name, entry in entries.items()},
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    tensors = {name: entries[name] for name in found["unexpected_keys"]}
    promised: Shapes = dict.fromkeys(sorted(found["missing_keys"]), ())
    for name, held, wanted in found["mismatched_keys"]:
        tensors[name] = Entry(next(iter(entries.values())).file, "", tuple(held), 0, 0)
        promised[name] = tuple(wanted)
    return tensors, promised


def read_with(folder: Path, load: Callable[[], Loaded]) -> Loaded:
    """What `load` returns, without the libraries' own bars; their many ways to say that files do not fit become one
    ModelError."""
    import diffusers
    import torch
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        return load()
    except (torch.OutOfMemoryError, MemoryError, AsdmError):
        raise
    except Exception as error:
        raise ModelError(f"{folder}: cannot be loaded ({reason(error)}); fetch or write the model again") from error


def reason(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
