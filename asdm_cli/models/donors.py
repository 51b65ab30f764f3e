"""Model directories that parts are taken from: opened together, and what is made of them written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asdm_cli.errors import Faults
from asdm_cli.models.directory import ModelDirectory, check_unet, find
from asdm_cli.models.metadata import UNET_CONFIG, UNITS, one_unet, origin, record
from asdm_cli.models.schedulers import unlike_pipelines
from asdm_cli.models.write import assemble_directory, carried_size
from asdm_cli.unet.assembly import Choice, assemble
from asdm_cli.unet.blocks import Config, stated
from asdm_cli.unet.surgery import Graft
from asdm_cli.unet.weights import WEIGHTS, Checkpoint, Entry, copy_tensors


@dataclass(frozen=True)
class Donor:
    """One model, its UNet's config and the headers of its UNet's weights."""

    name: str
    directory: ModelDirectory
    config: Config
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Made:
    """An assembly and where its tensors lie; `donors` are all that the recipe names, the first gives the pipeline."""

    donors: Mapping[str, Donor]
    assembly: Graft
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
        return carried_size(self.first.directory)

    @property
    def formats(self) -> list[str]:
        """Number formats of the weights, as safetensors calls them."""
        return sorted({entry.dtype for entry in self.tensors.values()})


def open_donors(sources: Mapping[str, str]) -> dict[str, Donor]:
    """Raises ModelError with all that are missing or broken, or that belong to unlike pipelines."""
    found: dict[str, Donor] = {}
    faults = Faults()
    for name, source in sources.items():
        with faults.at(f"donors.{name}"):
            directory = one_unet(find(source))
            found[name] = Donor(name, directory, directory.config("unet"), check_unet(directory))
    unlike = unlike_pipelines({name: donor.directory for name, donor in found.items()})
    faults += [f"donors: {each}" for each in unlike]
    faults.raise_all()
    return found


def make(donors: Mapping[str, Donor], choice: Choice) -> Made:
    """What the choice gives, from configs and headers. Raises ModelError with all that does not fit."""
    assembly = assemble({name: donor.config for name, donor in donors.items()}, choice)
    keys = assembly.key_map({name: donor.checkpoint.tensors for name, donor in donors.items()})
    return Made(donors, assembly, {new: donors[name].checkpoint.tensors[old] for new, (name, old) in keys.items()})


def write(made: Made, target: Path, link: bool = False) -> None:
    """The model directory, anew."""
    first, taken = made.first.directory, made.taken
    copy_tensors(made.tensors, assemble_directory(first, target, link, made.assembly.config) / WEIGHTS)
    donors = {
        name: {**origin(donor.directory, donor.checkpoint), UNET_CONFIG: stated(donor.config)}
        for name, donor in made.donors.items()
        if name in taken
    }
    graft = made.assembly
    facts: dict[str, Any] = {UNITS: graft.sources, "ends": graft.ends, "embeddings": graft.embeddings}
    record(first, target, "assemble", taken=taken, donors=donors, **facts)
