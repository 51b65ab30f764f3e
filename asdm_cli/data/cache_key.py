"""What a cache is made of, in words, and the SHA-256 of that: another ingredient is another cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from asdm_cli.data.encoder import PARTS
from asdm_cli.data.faults import Faults
from asdm_cli.data.images import CROP
from asdm_cli.data.shards import DATA_FORMAT
from asdm_cli.data.sources import Shard
from asdm_cli.errors import ModelError
from asdm_cli.models.source import TEXTS, ModelDirectory
from asdm_cli.recipe import MOST
from asdm_cli.unet.weight_files import read_mapping

CACHE_FORMAT = 1
"""Counts changes of the files below."""
DONE = "cache.json"
COLUMNS = ("key", "caption", "offset", "size")
"""What is noted of every sample."""


@dataclass(frozen=True)
class Wanted:
    """What a cache is to hold: `shards` as `model` encodes them, computing in `dtype`.

    Without a model: what the shards hold and where, nothing encoded.
    """

    shards: Sequence[Shard]
    model: ModelDirectory | None
    resolution: int
    flip: bool = False
    dtype: torch.dtype = torch.float32

    @cached_property
    def ingredients(self) -> dict[str, Any]:
        """Hashes whole weight files: seconds for gigabytes. Two fine-tuned VAEs differ in nothing else."""
        made: dict[str, Any] = {"cache_format": CACHE_FORMAT, "data_format": DATA_FORMAT}
        if self.model:
            empty = bool(self.model.index.get("force_zeros_for_empty_prompt"))
            made |= {"resolution": self.resolution, "crop": CROP, "flip": self.flip, "stored": "float16"}
            made |= {"computed": str(self.dtype).removeprefix("torch."), "empty_prompt_is_zero": empty}
            made |= {"parts": _contents(self.model)}
        else:
            made |= {"parts": "none: an index of samples"}
        return {**made, "shards": [shard.identity for shard in self.shards]}

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.ingredients, sort_keys=True).encode()).hexdigest()

    def folder(self, root: Path) -> Path:
        return root / self.key[:16]


@dataclass(frozen=True)
class State:
    """How far a cache is: `shards_done` of `shards`; `samples` and `faults` once it is complete."""

    folder: Path
    shards: int
    shards_done: int
    complete: bool
    samples: int = 0
    faults: int = 0

    def __str__(self) -> str:
        if self.complete:
            return f"{self.folder}: complete, {self.samples} samples"
        done = f"{self.shards_done} of {self.shards} shards are there" if self.shards_done else "to be made"
        return f"{self.folder}: {done}"


def cache_state(wanted: Wanted, root: Path) -> State:
    """Reads names and one small file; the key costs a pass over the weights of VAE and text encoder."""
    folder, shards = wanted.folder(root), len(wanted.shards)
    if (folder / DONE).is_file():
        counts, faults = read_done(folder)
        return State(folder, shards, shards, True, sum(counts), faults.total())
    done = sum(note_file(folder, number).is_file() for number in range(shards))
    return State(folder, shards, done, False)


def note_file(folder: Path, number: int) -> Path:
    """The shard's keys, captions and faults; written after its tensors, so it says that they are whole."""
    return folder / f"{number:05}.json"


def read_done(folder: Path) -> tuple[list[int], Faults]:
    """Samples of each shard, and what was left out, as a complete cache tells. ModelError where it is damaged."""
    about = read_mapping(folder / DONE)
    counts = about.get("samples")
    if not isinstance(counts, list) or not all(type(count) is int and 0 <= count <= MOST for count in counts):
        raise _damaged(folder / DONE)
    return counts, _faults(folder / DONE, about)


def read_note(folder: Path, number: int) -> tuple[dict[str, list[Any]], Faults]:
    """What was noted of each sample of a shard, by column, and what was left out. ModelError like `read_done`."""
    file = note_file(folder, number)
    about = read_mapping(file)
    columns = {name: about.get(name) for name in COLUMNS}
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns.values()}
    if len(lengths) > 1 or -1 in lengths or not all(isinstance(caption, str) for caption in about["caption"]):
        raise _damaged(file)
    return columns, _faults(file, about)  # type: ignore[return-value]


def _faults(file: Path, about: dict[str, Any]) -> Faults:
    try:
        return Faults.from_json(about)
    except (KeyError, TypeError, AttributeError):
        raise _damaged(file) from None


def _damaged(file: Path) -> ModelError:
    return ModelError(f"{file}: is not what was written there; remove {file.parent} and let it be made again")


def tensor_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.safetensors"


def _contents(model: ModelDirectory) -> dict[str, str]:
    """SHA-256 of every file that says what VAE and text encoders compute."""
    found: dict[str, str] = {}
    for part in PARTS:
        if part not in model.components:
            continue
        folder = model.component(part)
        files = [file for file in sorted(folder.iterdir()) if file.suffix in TEXTS]
        files += [] if part.startswith("tokenizer") else model.weights(part)
        for file in files:
            with file.open("rb") as opened:
                found[f"{part}/{file.name}"] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found
