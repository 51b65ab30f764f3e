"""Model directories: found by path or name, and checked, from small files and headers, before anything reads them.

Libraries fill in random numbers where weights lack something, so nothing is left to them: parts are held against their
configs and against each other here. They are imported where they are asked: torch, diffusers and transformers take
seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from asdm_cli.console import note
from asdm_cli.errors import AsdmError, Faults, ModelError, reason
from asdm_cli.models.pipelines import ALWAYS, PIPELINES, TRAINED, Kind
from asdm_cli.unet.blocks import EXPERT_CLASS, EXPERTS, STOCK, Config, read_blocks, specs
from asdm_cli.unet.shapes import TIME_IDS, input_shapes, tensor_shapes
from asdm_cli.unet.weights import (
    DIFFUSERS_STEM,
    TRANSFORMERS_STEM,
    UNSAFE,
    Checkpoint,
    Entry,
    WeightFiles,
    check_text,
    find_weights,
    inside,
    open_checkpoint,
    read_headers,
    read_mapping,
    require,
)

if TYPE_CHECKING:
    from asdm_cli.recipe.verbs import Adapter

INDEX = "model_index.json"
POCKET = "pocket"
EXTRAS = ("clip", "probe")
"""Folders that may stand beside the components; stock diffusers does not look at them."""
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
UNET, UNETS = "unet", "unets"
"""A component, and the folder of those UNets that take turns with it; each has a folder of its own in that."""
OURS = "asdm_cli"
"""The library that an index names for UNets with expert convolutions: without it, loading fails."""
TOKENS = 77
"""Prompt length that costs are stated for where the model has no text encoder of its own."""
MOST = 100_000
"""A hundred times the timesteps that anybody trained with (schedulers keep tables of them), and a thousand times the
tokens that SD's encoders read."""
COUNTS = (("scheduler", "num_train_timesteps"), ("text_encoder", "max_position_embeddings"))
PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What a UNet may have learnt to tell."""
CONFIG = "config.json"
SETTINGS = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
"""Components without weights, and the file without which libraries would take settings of another model."""
BESIDE_FILE = "config"
"""The folder beside a single file with the rest of its pipeline, as `asdm export` writes it."""
BESIDE_VAE = ".vae.safetensors"
"""What a VAE's name ends in that user interfaces take in the place of that of the file beside it."""
ADAPTER_CONFIG = "adapter_config.json"
"""What peft writes beside weights of its own."""
CONFIGS = (CONFIG, *SETTINGS.values(), "preprocessor_config.json")
TEXTS = {".json", ".txt", ".model"}
"""What stands beside weights: configurations and vocabularies."""

_TEXT = ("transformers.CLIPTextModel", "transformers.CLIPTextModelWithProjection")
_WORDS = ("transformers.CLIPTokenizer", "transformers.CLIPTokenizerFast")
_SEEN = ("transformers.CLIPVisionModelWithProjection",)
_PIXELS = (
    *("transformers.CLIPImageProcessor", "transformers.CLIPImageProcessorFast", "transformers.CLIPImageProcessorPil"),
    *("transformers.CLIPFeatureExtractor", "transformers.DPTImageProcessor", "transformers.DPTImageProcessorPil"),
    "transformers.DPTFeatureExtractor",
)
_NOISE = tuple(
    f"diffusers.{name}Scheduler"
    for name in (
        *("DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "UniPCMultistep", "UnCLIP"),
        *("DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep", "SASolver"),
        *("EDMDPMSolverMultistep", "EDMEuler", "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "IPNDM"),
        *("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM"),
        *("LMSDiscrete", "PNDM", "RePaint", "TCD"),
    )
)
CLASSES: Mapping[str, tuple[str, ...]] = {
    "unet": ("diffusers.UNet2DConditionModel", "asdm_cli.ExpertUNet"),
    "vae": ("diffusers.AutoencoderKL", "diffusers.AsymmetricAutoencoderKL", "diffusers.AutoencoderTiny"),
    "movq": ("diffusers.VQModel",),
    **dict.fromkeys(("text_encoder", "text_encoder_2", "prior_text_encoder"), _TEXT),
    **dict.fromkeys(("tokenizer", "tokenizer_2", "prior_tokenizer"), _WORDS),
    **dict.fromkeys(("image_encoder", "prior_image_encoder"), _SEEN),
    **dict.fromkeys(("feature_extractor", "prior_image_processor"), _PIXELS),
    **dict.fromkeys(("scheduler", "low_res_scheduler", "inverse_scheduler", "image_noising_scheduler"), _NOISE),
    "prior_scheduler": _NOISE,
    **dict.fromkeys(("prior", "prior_prior"), ("diffusers.PriorTransformer",)),
    "safety_checker": ("stable_diffusion.StableDiffusionSafetyChecker",),
    "image_normalizer": ("stable_diffusion.StableUnCLIPImageNormalizer",),
    "image_project": ("stable_diffusion.CLIPImageProjection",),
    "depth_estimator": ("transformers.DPTForDepthEstimation",),
    "processor": ("transformers.CLIPProcessor",),
    "controlnet": ("diffusers.ControlNetModel", "diffusers.ControlNetUnionModel"),
    "adapter": ("diffusers.T2IAdapter",),
    "motion_adapter": ("diffusers.MotionAdapter",),
    "clip": ("transformers.CLIPModel",),
}
"""Component -> the classes that it may be of: what pipelines around an SD UNet are made of, and nothing else. The last
stands beside an index, not in it."""
OTHERS = "no DiT (SD 3, FLUX, PixArt), no cascade, no video"
ONLY = f"only {STOCK}, as SD 1.x, 2.x and XL have it, is supported: {OTHERS}"


@dataclass(frozen=True)
class Fused:
    """A LoRA that is in a model's weights whenever they are read: by the names of `of`, a model that this one was made
    from, or itself. `name` is what reports call it, `told` what they say of it."""

    path: Path
    scale: float
    of: str
    name: str
    told: str


@dataclass(frozen=True)
class ModelDirectory:
    """A checked directory: either a diffusers pipeline or a bare UNet. `name` is how people know it."""

    path: Path
    name: str
    source: str
    """By what a recipe would name it again, without this machine's places."""
    revision: str = ""
    """The hub's commit, of a model from there."""
    adapters: tuple[Fused, ...] = ()

    @property
    def is_pipeline(self) -> bool:
        return (self.path / INDEX).is_file()

    @cached_property
    def index(self) -> dict[str, Any]:
        """model_index.json of a pipeline; a bare UNet gets the index of a pipeline with nothing but it."""
        return (
            read_mapping(inside(self.path, self.path / INDEX)) if self.is_pipeline else {"unet": ["diffusers", STOCK]}
        )

    @cached_property
    def classes(self) -> dict[str, str]:
        """Component -> library and class, as the index has them."""
        pairs = {name: entry for name, entry in self.index.items() if isinstance(entry, list) and len(entry) == 2}
        return {name: f"{library}.{kind}" for name, (library, kind) in pairs.items() if kind is not None}

    @cached_property
    def components(self) -> dict[str, Path]:
        """Folder of every component that the index names, of the extra folders that exist, and of `unets/NAME`."""
        if not self.is_pipeline:
            return {"unet": self.path}
        named = [name for name in self.classes if name not in self.left_out]
        extras = [name for name in EXTRAS if (self.path / name).is_dir()]
        unets = [f"{UNETS}/{folder.name}" for folder in sorted((self.path / UNETS).glob("*")) if folder.is_dir()]
        return {name: self.path / name for name in [*named, *extras, *unets]}

    @cached_property
    def left_out(self) -> tuple[str, ...]:
        """Components that the index names, that drawing does without, and that were not downloaded."""
        return tuple(name for name in self.optional if name in self.classes and not _is_there(self.path / name))

    @property
    def optional(self) -> tuple[str, ...]:
        """Components that such a pipeline does without."""
        known = PIPELINES.get(str(self.index.get("_class_name")))
        return tuple(name for name in OPTIONAL if known is None or name not in known.needs)

    def component(self, name: str) -> Path:
        if name in self.components:
            return self.components[name]
        have = ", ".join(self.components)
        place = self.path / INDEX if self.is_pipeline else self.path
        raise ModelError(f"{place}: has no component {name!r} (it has {have}); use a model that has one")

    def config_file(self, name: str) -> Path:
        folder = self.component(name)
        return next((folder / file for file in CONFIGS if (folder / file).is_file()), folder / CONFIG)

    def config(self, name: str) -> dict[str, Any]:
        """The component's configuration file as it stands."""
        return read_mapping(inside(self.path, self.config_file(name)))

    @property
    def tokens(self) -> int:
        """How many tokens the text encoder hands to the UNet."""
        config = self.config("text_encoder") if "text_encoder" in self.components else {}
        length: int = config.get("max_position_embeddings", TOKENS)
        return length

    def weights(self, name: str) -> list[Path]:
        """The component's safetensors files: one, or its shards."""
        return self.weight_files(name).files

    def weight_files(self, name: str) -> WeightFiles:
        """The same, and how they are called. Each library looks for one name alone."""
        theirs = self.kind(name).startswith(("transformers.", *CLASSES["safety_checker"]))
        return find_weights(self.component(name), self.path, TRANSFORMERS_STEM if theirs else DIFFUSERS_STEM)

    def kind(self, name: str) -> str:
        """A component's library and class."""
        return CLASSES["clip"][0] if name in EXTRAS else self.classes["unet" if _is_unet(name) else name]


def _is_unet(component: str) -> bool:
    return component == UNET or component.startswith(f"{UNETS}/")


def find(source: str, adapters: Sequence[Adapter] = ()) -> ModelDirectory:
    """The model directory that `source` names, checked: a path, a model of the hub or `pocket` (see `models.sources`);
    with LoRAs, as `models.adapters` has it.

    Reads small JSON files and the headers of weights only; what is not on this machine yet is fetched first. Raises
    ModelError with the file and the way out, RunError where the network fails.
    """
    from asdm_cli.models.sources import locate  # which knows what a directory is

    directory = locate(source)
    _check(directory)
    if directory.left_out:
        _note_left_out(directory.name, directory.left_out)
    if not adapters:
        return directory
    from asdm_cli.models.adapters import adapted  # that takes torch

    return adapted(directory, adapters)


def _is_there(folder: Path) -> bool:
    """Whether a component was downloaded: a network's config without any weights is none."""
    files = [file for file in folder.glob("*") if file.is_file()]
    weights = any(file.suffix in {".safetensors", *UNSAFE} for file in files)
    return bool(files) and (weights or not (folder / CONFIG).is_file())


@cache
def _note_left_out(model: str, names: tuple[str, ...]) -> None:
    """Once, however often a model is looked at."""
    note(f"{model}: {' and '.join(names)}: not downloaded; left out of what is drawn and of what is written")


def check_index(directory: ModelDirectory) -> None:
    """ModelError unless the index names a pipeline of diffusers, and only what Stable Diffusion is made of."""
    index = directory.path / INDEX
    if directory.is_pipeline and not isinstance(directory.index.get("_class_name"), str):
        raise ModelError(f"{index}: `_class_name` names no diffusers pipeline; custom pipelines are never run")
    for name, kind in directory.classes.items():
        if kind not in CLASSES.get(name, ()):
            known = ", ".join(CLASSES.get(name, ())) or "no component of this name is known"
            raise ModelError(
                f"{index}: {name} is a {kind}, and only what Stable Diffusion is made of is loaded (here: {known}): "
                f"{OTHERS}, and no code from a model directory; give the folder unet/ by itself to work on the UNet"
            )


def _check(directory: ModelDirectory) -> None:
    root = directory.path
    check_index(directory)
    check_folder(root, root)
    for name, folder in directory.components.items():
        if not inside(root, folder).is_dir():
            raise ModelError(f"{folder}: {INDEX} names this component but its folder is missing; fetch it again")
        check_folder(folder, root)
        if (folder / CONFIG).is_file():
            read_headers(directory.weights(name))
        elif any(folder.glob("*.safetensors")) or (name in SETTINGS and not (folder / SETTINGS[name]).is_file()):
            raise ModelError(f"{folder / SETTINGS.get(name, CONFIG)}: no such file; fetch the component again")
        if _is_unet(name):
            _check_unet(directory, name)
    _check_settings(directory)


def check_folder(folder: Path, root: Path) -> None:
    """Of what libraries open by themselves: nothing that is code, that makes them fetch other weights than those beside
    it, that leads out of `root`, or that never ends."""
    for file in sorted(folder.iterdir()):
        if file.suffix == ".py":
            why = "is code, and code from a model directory is never run; if the model works without it, take it away"
            raise ModelError(f"{file}: {why}")
        if file.suffix not in TEXTS:
            continue
        try:
            check_text(inside(root, file))
        except OSError as error:
            raise ModelError(f"{file}: cannot be read ({error.strerror}); fetch the component again") from None
        if not file.name.endswith(CONFIG):
            continue
        if "auto_map" in read_mapping(file):
            raise ModelError(
                f"{file}: `auto_map` names code, and code from a model directory is never run; save the model anew "
                "from a class of the library itself"
            )
        if file.name == ADAPTER_CONFIG:
            raise ModelError(f"{file}: is of an adapter beside the weights; merge it into them and save the model anew")


def _check_unet(directory: ModelDirectory, name: str) -> None:
    """The index and the config of a UNet must agree on what it is, and it must be of the SD family."""
    file, config = directory.config_file(name), directory.config(name)
    kind = config.get("_class_name", STOCK)
    if kind not in (STOCK, EXPERT_CLASS):
        around = directory.path.parent
        way = around if (around / INDEX).is_file() else "a UNet or a pipeline, copied as a whole"
        raise ModelError(f"{file}: is of the class {kind}; {ONLY}; give {way}")
    has_experts = {kind == EXPERT_CLASS, bool(config.get(EXPERTS))}
    if directory.is_pipeline and name == "unet":
        has_experts.add(directory.kind(name).endswith(EXPERT_CLASS))
    if len(has_experts) > 1:
        place = directory.path / INDEX if directory.is_pipeline else file
        raise ModelError(
            f"{place}: is not of the UNet beside it (one of the two knows expert convolutions, the other does not); "
            "copy a model directory as a whole"
        )
    try:
        read_blocks(config)
        specs(config)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from None


def _check_settings(directory: ModelDirectory) -> None:
    """What loading does not look at, and drawing would stumble over."""
    for component, key in COUNTS:
        config = directory.config(component) if component in directory.components else {}
        if type(count := config.get(key, 1)) is not int or not 1 <= count <= MOST:
            wanted = f"a whole number from 1 to {MOST} is expected"
            raise ModelError(f"{directory.config_file(component)}: {key} is {count!r}; {wanted}")
        if (found := config.get("prediction_type", PREDICTIONS[0])) not in PREDICTIONS:
            file = directory.config_file(component)
            raise ModelError(f"{file}: prediction_type is {found!r}; it must be one of {', '.join(PREDICTIONS)}")


# --- parts held against their configs and each other, from headers alone ---

Loaded = TypeVar("Loaded")
Shapes = dict[str, tuple[int, ...]]

MADE_FOR = {
    5: "depth to image",
    7: "upscaling",
    8: "editing a picture (InstructPix2Pix) or estimates of it",
    9: "inpainting",
}
"""Channels that a UNet takes in where they are more than a latent's."""
PAINTED = (4, 9)
"""Channels that diffusers' pipelines of inpainting know, whatever their VAE has."""
CLIP_WIDTH = 512
"""Of a text encoder whose config leaves it out."""
PARTS = ("vae", "text_encoder", "text_encoder_2", "image_encoder", "depth_estimator")
"""With weights, of the pipelines that are loaded."""


def check_drawing(directory: ModelDirectory, training: bool = False) -> None:
    """ModelError unless this is a pipeline that draws, and feeds its UNet what that takes in: as many channels as it
    makes of the VAE's latents, text of the width that the encoders give, all other inputs.

    With `training`, what training feeds.
    """
    kind = directory.index.get("_class_name")
    if kind not in (known := TRAINED if training else tuple(PIPELINES)):
        what = f"a {kind}" if directory.is_pipeline else "a bare UNet"
        whole = directory.path.parent
        way = f"; give {whole}" if not directory.is_pipeline and (whole / INDEX).is_file() else ""
        names = f"{', '.join(known[:-1])} or {known[-1]}" if directory.is_pipeline or training else "whole pipeline"
        raise ModelError(f"{directory.path}: is {what}; whole pictures need a {names} directory{way}")
    fed = PIPELINES[kind]
    faults = [*_unlike_channels(directory, fed)]
    inputs = _inputs(directory)
    taken = {*inputs, *inputs.get("added_cond_kwargs", {})} - ALWAYS
    who, may = ("training", frozenset[str]()) if training else (f"a {kind}", fed.may)
    for name in sorted(taken - fed.feeds - may):
        distilled = "; it was distilled to be told of the guidance: train with the model that it was distilled from"
        told = distilled if training and name == "timestep_cond" else ""
        faults.append(f"takes in {name}, which {who} does not feed{told}")
    if missing := sorted(fed.feeds - taken):
        faults.append(f"takes in no {', '.join(missing)}, which {who} feeds")
    faults = [f"{directory.config_file('unet')}: the UNet {fault}" for fault in faults]
    if faults := faults or _unlike_text(directory, inputs):
        raise ModelError("\n".join(faults))


def _unlike_channels(directory: ModelDirectory, fed: Kind) -> Iterator[str]:
    """Where the UNet takes in or gives another number of channels than its pipeline makes of latents."""
    config, latents = directory.config("unet"), directory.config("vae").get("latent_channels", 4)
    where = f"where the latents of {directory.config_file('vae')} have {latents}"
    made = [latents * each + planes for each, planes in fed.channels] if type(latents) is int else [latents]
    if (count := config.get("in_channels", 4)) not in made:
        feeds = f", and its pipeline feeds {' or '.join(map(str, made))}: fetch the model again"
        use = f", as UNets for {MADE_FOR.get(count)} do: use a text-to-image model" if count in MADE_FOR else ""
        yield f"takes in {count} channels {where}{feeds if fed.takes else use}"
    elif "mask" in fed.takes and count not in PAINTED:
        yield f"takes in {count} channels, and diffusers' inpainting draws with {' or '.join(map(str, PAINTED))} alone"
    if (count := config.get("out_channels", 4)) != latents:
        yield f"gives {count} channels {where}"


def _inputs(directory: ModelDirectory) -> dict[str, Any]:
    try:
        return input_shapes(directory.config("unet"))
    except Exception as error:  # settings may contradict each other in any way
        file = directory.config_file("unet")
        raise ModelError(f"{file}: says not what the UNet takes in ({error}); fetch the file again") from None


def _unlike_text(directory: ModelDirectory, inputs: dict[str, Any]) -> list[str]:
    """Where what the text encoders give is not what the UNet takes in."""
    kind = PIPELINES[directory.index["_class_name"]]
    xl = "text_embeds" in kind.feeds
    both = [name for name in ("text_encoder", "text_encoder_2") if xl and name in directory.components]
    names = both or ["text_encoder_2" if xl else "text_encoder"]  # SDXL's pipeline needs the second one
    configs = [directory.config(name) for name in names]
    if not all(str(config.get("model_type", "")).startswith("clip") for config in configs):
        return []  # what another encoder gives, its config says in words of its own
    # a text encoder that was saved as a part of its CLIP has its settings one level deeper
    configs = [config["text_config"] if isinstance(config.get("text_config"), dict) else config for config in configs]
    places = " and ".join(str(directory.config_file(name)) for name in names)
    unet, again = directory.config_file("unet"), "fetch the model again, as a whole"
    wide = inputs["encoder_hidden_states"][-1]
    widths = [config.get("hidden_size", CLIP_WIDTH) for config in configs]
    if not all(isinstance(width, int) for width in widths) or sum(widths) != wide:
        given = " + ".join(map(str, widths))
        return [f"{places}: text is {given} wide (hidden_size), and the UNet of {unet} takes in {wide}; {again}"]
    if not xl:
        return []
    added, numbers = inputs["added_cond_kwargs"], directory.config("unet")["addition_time_embed_dim"]
    fed = TIME_IDS - ("strength" in kind.takes and bool(directory.index.get("requires_aesthetics_score")))
    wanted = added["text_embeds"][-1] + (added["time_ids"][-1] - fed) * numbers
    if (pooled := configs[-1].get("projection_dim", CLIP_WIDTH)) == wanted:
        return []
    beside = f"beside {fed} sizes and crops the UNet of {unet} takes in {wanted}"
    return [f"{places}: pooled text is {pooled} wide (projection_dim), and {beside}; {again}"]


def check_unet(directory: ModelDirectory, component: str = "unet") -> Checkpoint:
    """The headers of a UNet's weights. Raises ModelError, with the file, unless they hold what its config promises."""
    folder = directory.component(component)
    try:
        promised = tensor_shapes(directory.config(component))
    except ModelError as error:
        raise ModelError(f"{directory.config_file(component)}: {error}") from None
    checkpoint = open_checkpoint(folder, directory.path)
    require(checkpoint, promised, folder)
    return checkpoint


def check_parts(directory: ModelDirectory) -> None:
    """The same of what stands around the UNet. Raises ModelError with all that do not hold what they promise."""
    faults = Faults()
    for name in PARTS:
        if name in directory.components:
            with faults.at():
                _check_part(directory.component(name), directory.kind(name), directory.weights(name))
    faults.raise_all()


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
