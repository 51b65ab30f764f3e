"""Pictures with captions become the shards that training reads."""

from __future__ import annotations

from pathlib import Path

from asdm_cli.console import hand_over, is_first, note
from asdm_cli.data import packing
from asdm_cli.errors import ModelError
from asdm_cli.models.write import atomic_directory, refuse_existing, refuse_sources


def pack(folder: Path, out: Path, shard_size: int, shuffle_by: int | None, strict: bool, overwrite: bool) -> None:
    """`shuffle_by` is the seed of an order to mix the samples into; None keeps them by name."""
    if not is_first():
        return
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such directory; give the folder of pictures")
    refuse_existing(out, overwrite)
    refuse_sources(out, [folder])
    with atomic_directory(out.resolve(), overwrite) as partial:
        packed = packing.pack(folder, partial, shard_size, shuffle_by, strict)
    if packed.faults.total():
        note(f"{packed.faults.listed()}\nleft out: {packed.faults.summary()}")
    note(f"{packed.samples} samples in {packed.shards} shards")
    hand_over(out)
