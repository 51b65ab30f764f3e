"""Model directories: found by path or name, and checked, from small files and headers, before anything reads them.

No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from asdm_cli.console import note
from asdm_cli.errors import ModelError
from asdm_cli.experts.spec import specs
from asdm_cli.unet.blocks import read_blocks
from asdm_cli.unet.stock import EXPERT_CLASS as CLASS
from asdm_cli.unet.stock import EXPERTS, STOCK
from asdm_cli.unet.weights import (
    DIFFUSERS_STEM,
    TRANSFORMERS_STEM,
    UNSAFE,
    WeightFiles,
    check_text,
    find_weights,
    inside,
    read_headers,
    read_mapping,
)

INDEX = "model_index.json"
POCKET = "pocket"
EXTRAS = ("clip", "probe")
"""Folders that may stand beside the components; stock diffusers does not look at them."""
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
UNETS = "unets"
"""The folder of those UNets that take turns with the component `unet`; each has a folder of its own in it."""
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
class ModelDirectory:
    """A checked directory: either a diffusers pipeline or a bare UNet. `name` is how people know it."""

    path: Path
    name: str
    source: str
    """By what a recipe would name it again, without this machine's places."""
    revision: str = ""
    """The hub's commit, of a model from there."""

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
        return tuple(name for name in OPTIONAL if name in self.classes and not _is_there(self.path / name))

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
    return component == "unet" or component.startswith(f"{UNETS}/")


def find(source: str) -> ModelDirectory:
    """The model directory that `source` names, checked: a path, a model of the hub or `pocket` (see `models.sources`).

    Reads small JSON files and the headers of weights only; what is not on this machine yet is fetched first. Raises
    ModelError with the file and the way out, RunError where the network fails.
    """
    from asdm_cli.models.sources import locate  # which knows what a directory is

    directory = locate(source)
    _check(directory)
    if directory.left_out:
        _note_left_out(directory.name, directory.left_out)
    return directory


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
        if file.name == "adapter_config.json":
            raise ModelError(f"{file}: is of an adapter beside the weights; merge it into them and save the model anew")


def _check_unet(directory: ModelDirectory, name: str) -> None:
    """The index and the config of a UNet must agree on what it is, and it must be of the SD family."""
    file, config = directory.config_file(name), directory.config(name)
    kind = config.get("_class_name", STOCK)
    if kind not in (STOCK, CLASS):
        raise ModelError(f"{file}: is of the class {kind}; {ONLY}; give a UNet or a pipeline, copied as a whole")
    has_experts = {kind == CLASS, bool(config.get(EXPERTS))}
    if directory.is_pipeline and name == "unet":
        has_experts.add(directory.kind(name).endswith(CLASS))
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
