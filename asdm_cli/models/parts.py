"""What stands around a UNet held against its configs as UNets are: by headers alone, before anything slow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers

from asdm_cli.errors import AsdmError, ModelError
from asdm_cli.models.classes import refuse_code
from asdm_cli.models.source import CONFIGS, ModelDirectory
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.weights import (
    TRANSFORMERS_STEM,
    Checkpoint,
    Entry,
    inside,
    read_headers,
    read_mapping,
    require,
    weight_files,
)

Loaded = TypeVar("Loaded")

PARTS = ("vae", "text_encoder", "text_encoder_2", "image_encoder")
"""With weights, of the pipelines that are loaded."""
CLIP_FILES = (CONFIGS[0], "preprocessor_config.json")


def check_parts(directory: ModelDirectory) -> None:
    """Raises ModelError with all that do not hold what their configs promise: libraries fill in random numbers."""
    faults = []
    for name in PARTS:
        if name in directory.components:
            try:
                _check(directory.component(name), directory.kind(name), directory.weights(name))
            except ModelError as error:
                faults.append(str(error))
    if faults:
        raise ModelError("\n".join(faults))


def check_clip(folder: Path) -> None:
    """The same of a transformers CLIP directory, wherever it lies."""
    for file in CLIP_FILES:
        if not (folder / file).is_file():
            raise ModelError(f"{folder}: has no {file}; give a transformers CLIP directory as `clip`")
    refuse_code(folder, folder)
    _check(folder, "transformers.CLIPModel", weight_files(folder, stem=TRANSFORMERS_STEM))


def read_with(folder: Path, load: Callable[[], Loaded]) -> Loaded:
    """What `load` returns, without the libraries' own bars; their many ways to say that files do not fit become one
    ModelError."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        return load()
    except (torch.OutOfMemoryError, MemoryError, AsdmError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ModelError(f"{folder}: cannot be loaded ({reason}); fetch or write the model again") from error


def _check(folder: Path, kind: str, files: list[Path]) -> None:
    checkpoint = read_headers(files)
    config = read_mapping(inside(folder.parent, folder / CONFIGS[0]))
    for key, count in _layers(config):
        if count > len(checkpoint.tensors):
            raise ModelError(
                f"{folder / CONFIGS[0]}: {key} is {count}, and the weights hold {len(checkpoint.tensors)} tensors; "
                "fetch config and weights again, from one place"
            )
    library, name = kind.split(".")
    if library == "diffusers":
        kept, promised = read_with(folder, lambda: _of_diffusers(getattr(diffusers, name), config, checkpoint.tensors))
    else:
        kept, promised = read_with(folder, lambda: _of_transformers(getattr(transformers, name), folder, checkpoint))
    require(Checkpoint(kept, checkpoint.digest), promised, folder)


def _layers(config: Config) -> Iterator[tuple[str, int]]:
    """Numbers of layers, of nested configs too: a library would build a billion of them first."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _layers(value)
        elif "layers" in key and type(value) is int:
            yield key, value


def _of_diffusers(
    kind: Any, config: Config, entries: Mapping[str, Entry]
) -> tuple[dict[str, Entry], dict[str, tuple[int, ...]]]:
    """The tensors under the names that the class has today, and the shapes that it promises."""
    with torch.device("meta"):
        model = kind.from_config(config)
    kept = dict(entries)
    model._fix_state_dict_keys_on_load(kept)
    return kept, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _of_transformers(
    kind: Any, folder: Path, checkpoint: Checkpoint
) -> tuple[dict[str, Entry], dict[str, tuple[int, ...]]]:
    """The same, only of those that do not fit: which names of old files are which of today's, the library knows."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        _, told = kind.from_pretrained(
            None,
            config=kind.config_class.from_pretrained(folder, local_files_only=True),
            state_dict={name: torch.empty(entry.shape, device="meta") for name, entry in checkpoint.tensors.items()},
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    kept = {name: checkpoint.tensors[name] for name in told["unexpected_keys"]}
    promised: dict[str, tuple[int, ...]] = dict.fromkeys(sorted(told["missing_keys"]), ())
    first = next(iter(checkpoint.tensors.values())).file if checkpoint.tensors else folder
    for name, held, wanted in told["mismatched_keys"]:
        kept[name] = Entry(first, "", tuple(held), 0, 0)
        promised[name] = tuple(wanted)
    return kept, promised
