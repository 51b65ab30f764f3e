"""Where a model comes from: a directory found by path or name and checked before anything reads it. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from asdm_cli.console import note
from asdm_cli.errors import ModelError
from asdm_cli.models.classes import check_class, refuse_code, stem
from asdm_cli.unet.blocks import read_blocks
from asdm_cli.unet.checkpoint import read_headers
from asdm_cli.unet.expert_config import CLASS, EXPERTS, STOCK, specs
from asdm_cli.unet.weight_files import UNSAFE, check_text, inside, plain_name, read_mapping, weight_files

INDEX = "model_index.json"
POCKET = "pocket"
EXTRAS = ("clip", "probe")
"""Folders that may stand beside the components; stock diffusers does not look at them."""
OPTIONAL = ("safety_checker", "feature_extractor")
UNETS = "unets"
"""The folder of those UNets that take turns with the component `unet`; each has a folder of its own in it."""
LIBRARIES = {"diffusers", "transformers", "stable_diffusion"}
"""Where component classes may come from; the last is diffusers' own module of the safety checker."""
OURS = "asdm_cli"
"""The library that an index names for UNets with expert convolutions: without it, loading fails."""
TOKENS = 77
"""Prompt length that costs are stated for where the model has no text encoder of its own."""
PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What a UNet may have learnt to tell."""
MOST_TOKENS = 100_000
"""A thousand times what SD's encoders read."""
MOST_TIMESTEPS = 100_000
"""A hundred times what anybody trained with; schedulers keep tables of them."""
SETTINGS = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
"""Components without weights, and the file without which libraries would take settings of another model."""
ONLY = f"only {STOCK}, as SD 1.x, 2.x and XL have it, is supported: no DiT (SD 3, FLUX, PixArt), no cascade, no video"
DENOISERS = {"transformer", "transformer_2", "prior", "decoder"}
"""Components of pipelines that have no UNet."""
TEXTS = {".json", ".txt", ".model"}
"""What stands beside weights: configurations and vocabularies."""
CONFIGS = ("config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class ModelDirectory:
    """A checked directory: either a diffusers pipeline or a bare UNet. `name` is how people know it."""

    path: Path
    name: str

    @cached_property
    def index(self) -> dict[str, Any]:
        """model_index.json of a pipeline; a bare UNet gets the index of a pipeline with nothing but it."""
        if not self.is_pipeline:
            return {"unet": ["diffusers", "UNet2DConditionModel"]}
        return read_mapping(inside(self.path, self.path / INDEX))

    @property
    def is_pipeline(self) -> bool:
        return (self.path / INDEX).is_file()

    @cached_property
    def components(self) -> dict[str, Path]:
        """Folder of every component that the index names, of the extra folders that exist, and of `unets/NAME`."""
        if not self.is_pipeline:
            return {"unet": self.path}
        named = [
            name
            for name, entry in self.index.items()
            if _is_component(entry) and entry[1] is not None and name not in self.left_out
        ]
        extras = [name for name in EXTRAS if (self.path / name).is_dir()]
        unets = [f"{UNETS}/{folder.name}" for folder in sorted((self.path / UNETS).glob("*")) if folder.is_dir()]
        return {name: self.path / name for name in [*named, *extras, *unets]}

    @cached_property
    def left_out(self) -> tuple[str, ...]:
        """Components that the index names, that drawing does without, and that were not downloaded."""
        entries = {name: self.index[name] for name in OPTIONAL if name in self.index}
        named = [name for name, entry in entries.items() if _is_component(entry) and entry[1] is not None]
        return tuple(name for name in named if not _is_there(self.path / name))

    def component(self, name: str) -> Path:
        if name in self.components:
            return self.components[name]
        have = ", ".join(self.components)
        place = self.path / INDEX if self.is_pipeline else self.path
        raise ModelError(f"{place}: has no component {name!r} (it has {have}); use a model that has one")

    def config(self, name: str) -> dict[str, Any]:
        """The component's configuration file as it stands."""
        folder = self.component(name)
        for file in CONFIGS:
            if (folder / file).is_file():
                return read_mapping(inside(self.path, folder / file))
        raise ModelError(f"{folder}: has no {CONFIGS[0]}; fetch the component again")

    @property
    def tokens(self) -> int:
        """How many tokens the text encoder hands to the UNet."""
        if "text_encoder" not in self.components:
            return TOKENS
        length: int = self.config("text_encoder").get("max_position_embeddings", TOKENS)
        return length

    def weights(self, name: str) -> list[Path]:
        """The component's safetensors files: one, or its shards."""
        return weight_files(self.component(name), self.path, stem(self.kind(name)))

    def kind(self, name: str) -> str:
        """A component's library and class."""
        if name in EXTRAS:
            return "transformers.CLIPModel"
        return ".".join(map(str, self.index["unet" if name.startswith(f"{UNETS}/") else name]))


def find(source: str) -> ModelDirectory:
    """The model directory that `source` names: a directory, a run directory (its `model/`), or `pocket`.

    Reads small JSON files and the headers of weights only. Raises ModelError with the file and the way out.
    """
    directory = _pocket() if source == POCKET else _locate(source)
    _check(directory)
    if directory.left_out:
        _tell_left_out(directory.path, directory.left_out)
    return directory


@cache
def _tell_left_out(path: Path, names: tuple[str, ...]) -> None:
    """Once, however often a model is looked at."""
    note(f"{path}: {' and '.join(names)}: not downloaded; left out of what is drawn and of what is written")


def _locate(source: str) -> ModelDirectory:
    path = Path(source)
    if not path.exists():
        raise ModelError(f"{source}: no such directory; give a model directory, a run directory or `{POCKET}`")
    if path.is_file():
        raise ModelError(
            f"{source}: is a file; give the diffusers directory. One file becomes a directory in Python: "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIRECTORY)"
        )
    name = path.resolve().name
    for folder in (path, path / "model"):
        if (folder / INDEX).is_file() or (folder / "config.json").is_file():
            return ModelDirectory(folder, name)
    raise ModelError(f"{source}: has neither {INDEX} nor config.json nor a model/ that has; is it a model directory?")


def _pocket() -> ModelDirectory:
    path = Path(str(resources.files("asdm_cli") / "pocket" / "weights"))
    if (path / INDEX).is_file():
        return ModelDirectory(path, POCKET)
    raise ModelError(f"{path}: the model that ships with the package is not there; install again, or run `make pocket`")


def _is_component(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2


def _is_there(folder: Path) -> bool:
    """Whether a component was downloaded: a network's config without any weights is none."""
    files = [file for file in folder.glob("*") if file.is_file()]
    weights = any(file.suffix in {".safetensors", *UNSAFE} for file in files)
    return bool(files) and (weights or not (folder / CONFIGS[0]).is_file())


def _check(directory: ModelDirectory) -> None:
    if directory.is_pipeline:
        _check_index(directory)
        _check_class(directory)
        _check_classes(directory)
    elif directory.config("unet").get("_class_name", STOCK) not in (STOCK, CLASS):
        kind = directory.config("unet")["_class_name"]
        raise ModelError(f"{directory.path}: its config.json is of the class {kind}; {ONLY}; give a UNet or a pipeline")
    refuse_code(directory.path, directory.path)
    for name, folder in directory.components.items():
        if not inside(directory.path, folder).is_dir():
            raise ModelError(f"{folder}: {INDEX} names this component but its folder is missing; fetch it again")
        _check_files(directory.path, folder)
        refuse_code(folder, directory.path)
        if (folder / CONFIGS[0]).is_file():
            read_headers(directory.weights(name))
        elif any(folder.glob("*.safetensors")) or (name in SETTINGS and not (folder / SETTINGS[name]).is_file()):
            raise ModelError(f"{folder / SETTINGS.get(name, CONFIGS[0])}: no such file; fetch the component again")
    _check_settings(directory)
    _check_unets(directory)


def _check_files(root: Path, folder: Path) -> None:
    """Of what libraries open by themselves: nothing that is no file, leads nowhere, or never ends."""
    for file in sorted(folder.iterdir()):
        if file.suffix not in TEXTS:
            continue
        try:
            check_text(inside(root, file))
        except OSError as error:
            raise ModelError(f"{file}: cannot be read ({error.strerror}); fetch the component again") from None
        if file.name in CONFIGS:
            read_mapping(file)


def _check_settings(directory: ModelDirectory) -> None:
    """What loading does not look at, and drawing would stumble over."""
    if "scheduler" in directory.components:
        file = directory.component("scheduler") / SETTINGS["scheduler"]
        found = directory.config("scheduler").get("prediction_type", PREDICTIONS[0])
        if found not in PREDICTIONS:
            raise ModelError(f"{file}: prediction_type is {found!r}; it must be one of {', '.join(PREDICTIONS)}")
        timesteps = directory.config("scheduler").get("num_train_timesteps", 1)
        if type(timesteps) is not int or not 1 <= timesteps <= MOST_TIMESTEPS:
            wanted = f"a whole number from 1 to {MOST_TIMESTEPS} is expected"
            raise ModelError(f"{file}: num_train_timesteps is {timesteps!r}; {wanted}")
    if type(directory.tokens) is not int or not 1 <= directory.tokens <= MOST_TOKENS:
        file = directory.component("text_encoder") / CONFIGS[0]
        wanted = f"a whole number from 1 to {MOST_TOKENS} is expected"
        raise ModelError(f"{file}: max_position_embeddings is {directory.tokens!r}; {wanted}")


def _check_unets(directory: ModelDirectory) -> None:
    """What each config says of its UNet can be a UNet of the SD family."""
    for name, folder in directory.components.items():
        if name.split("/")[0] not in ("unet", UNETS):
            continue
        config = directory.config(name)
        if config.get("_class_name", STOCK) not in (STOCK, CLASS):
            kind = config["_class_name"]
            raise ModelError(
                f"{folder / CONFIGS[0]}: is of the class {kind}; {ONLY}; copy a model directory as a whole"
            )
        try:
            read_blocks(config)
            specs(config)
        except ModelError as error:
            raise ModelError(f"{folder / CONFIGS[0]}: {error}") from None


def _check_class(directory: ModelDirectory) -> None:
    """The index and the UNet's own config must agree on what is loaded."""
    if "unet" not in directory.components:
        if directory.components.keys() & DENOISERS:
            kind = directory.index["_class_name"]
            raise ModelError(f"{directory.path / INDEX}: a {kind} has no UNet; {ONLY}; give a model of those")
        return
    if (kind := directory.index["unet"][1]) not in (STOCK, CLASS):
        raise ModelError(f"{directory.path / INDEX}: its UNet is of the class {kind}; {ONLY}; give a model of those")
    config = directory.config("unet")
    held = {"index": directory.index["unet"][1] == CLASS, "class": config.get("_class_name") == CLASS}
    if len({*held.values(), bool(config.get(EXPERTS))}) > 1:
        raise ModelError(
            f"{directory.path / INDEX}: is not of the UNet beside it (one of the two knows expert convolutions, the "
            "other does not); copy a model directory as a whole"
        )


def _check_classes(directory: ModelDirectory) -> None:
    for name, entry in directory.index.items():
        if _is_component(entry) and entry[1] is not None:
            check_class(name, ".".join(map(str, entry)), directory.path / INDEX)


def _check_index(directory: ModelDirectory) -> None:
    file = directory.path / INDEX
    if not isinstance(directory.index.get("_class_name"), str):
        raise ModelError(f"{file}: `_class_name` names no diffusers pipeline; custom pipelines are never run")
    for name, entry in directory.index.items():
        if not _is_component(entry):
            continue
        plain_name(name, file)
        library, kind = entry
        if (library, kind) == (OURS, CLASS):
            continue
        if kind is not None and (not isinstance(library, str) or library not in LIBRARIES):
            raise ModelError(
                f"{file}: {name} is a class of {library!r}; only diffusers and transformers classes are loaded, "
                "because code from a model directory is never run"
            )
