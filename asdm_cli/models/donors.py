"""Model directories that parts are taken from: opened together, and what is made of them written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asdm_cli.errors import ModelError
from asdm_cli.models.check import check_unet
from asdm_cli.models.directory import ModelDirectory, find
from asdm_cli.models.metadata import history, record
from asdm_cli.models.patched import one_unet
from asdm_cli.models.write import assemble_directory, carried_size, write_unet
from asdm_cli.unet.assembly import Assembly, Choice, assemble
from asdm_cli.unet.blocks import Config
from asdm_cli.unet.weights import Checkpoint, Entry

AROUND: tuple[tuple[str, str, Any], ...] = (
    ("vae", "latent_channels", 4),
    ("vae", "scaling_factor", 0.18215),
    ("text_encoder", "hidden_size", None),
    ("scheduler", "prediction_type", "epsilon"),
)
"""Component, setting and its default: UNets that were trained in pipelines which differ here speak other languages."""


@dataclass(frozen=True)
class Donor:
    """One model, its UNet's config and the headers of its UNet's weights."""

    name: str
    directory: ModelDirectory
    config: Config
    checkpoint: Checkpoint

    @property
    def origin(self) -> dict[str, Any]:
        """For the history of what is made of it."""
        origin = {"source": self.directory.name, "unet_header_sha256": self.checkpoint.digest}
        before = history(self.directory)
        return {**origin, "history": before} if before else origin


@dataclass(frozen=True)
class Made:
    """An assembly and where its tensors lie; `donors` are all that the recipe names, the first gives the pipeline."""

    donors: Mapping[str, Donor]
    assembly: Assembly
    tensors: dict[str, Entry]

    @property
    def first(self) -> Donor:
        return next(iter(self.donors.values()))

    @property
    def taken(self) -> dict[str, list[str]]:
        """Donor -> what of the result is its, donors in the recipe's order."""
        own = self.assembly.taken(self.tensors)
        return {name: own[name] for name in self.donors if name in own}

    @property
    def size(self) -> int:
        """Bytes of the UNet's tensors."""
        return sum(entry.size for entry in self.tensors.values())

    @property
    def carried(self) -> int:
        """Bytes of what the written model has from the first donor as it is."""
        return carried_size(self.first.directory, {"unet"})

    @property
    def formats(self) -> list[str]:
        """Number formats of the weights, as safetensors calls them."""
        return sorted({entry.dtype for entry in self.tensors.values()})


def open_donors(sources: Mapping[str, str]) -> dict[str, Donor]:
    """Raises ModelError with all that are missing or broken, or that belong to unlike pipelines."""
    found: dict[str, Donor] = {}
    faults: list[str] = []
    for name, source in sources.items():
        try:
            directory = one_unet(find(source))
            found[name] = Donor(name, directory, directory.config("unet"), check_unet(directory))
        except ModelError as error:
            faults.append(f"donors.{name}: {error}")
    unlike = unlike_pipelines({name: donor.directory for name, donor in found.items()})
    if faults := faults + [f"donors: {each}" for each in unlike]:
        raise ModelError("\n".join(faults))
    return found


def make(donors: Mapping[str, Donor], choice: Choice) -> Made:
    """What the choice gives, from configs and headers. Raises ModelError with all that does not fit."""
    assembly = assemble({name: donor.config for name, donor in donors.items()}, choice)
    keys = assembly.key_map({name: donor.checkpoint.tensors for name, donor in donors.items()})
    return Made(donors, assembly, {new: donors[name].checkpoint.tensors[old] for new, (name, old) in keys.items()})


def write(made: Made, target: Path, link: bool = False) -> None:
    """The model directory, anew: an interrupted run may have left a part of it."""
    shutil.rmtree(target, ignore_errors=True)
    first = made.first.directory
    assemble_directory(first, target, {"unet"}, link)
    write_unet(made.assembly.config, made.tensors, target / "unet" if first.is_pipeline else target)
    taken = made.taken
    record(first, target, "assemble", taken=taken, donors={name: made.donors[name].origin for name in taken})


def unlike_pipelines(models: Mapping[str, ModelDirectory]) -> list[str]:
    """In words: what VAE, text encoder and scheduler say that is not the same in all of them. Raises ModelError where
    no scheduler can be made."""
    from asdm_cli.models.schedulers import own_scheduler, unlike_noise  # their noise is computed: that takes torch

    whole = {name: each for name, each in models.items() if "scheduler" in each.components}
    faults = unlike_noise({name: own_scheduler(each) for name, each in whole.items()})
    for component, key, default in AROUND:
        having = {name: model for name, model in models.items() if component in model.components}
        values = {name: model.config(component).get(key, default) for name, model in having.items()}
        settings = list(values.values())  # of any kind: who broke the file decides
        if any(other != settings[0] for other in settings):
            each = ", ".join(f"{name} has {value!r}" for name, value in values.items())
            faults.append(f"{key} of the {component} must be the same everywhere: {each}")
    return faults
