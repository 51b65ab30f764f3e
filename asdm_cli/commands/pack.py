"""`asdm pack FOLDER`: pictures with captions become the shards that training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asdm_cli.commands.options import Overwrite, Quiet, Verbose, examples, set_verbosity
from asdm_cli.commands.ranks import is_first
from asdm_cli.errors import ModelError
from asdm_cli.recipe.schema import LARGEST_SEED, MOST

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Pictures, at any depth.", show_default=False)]
Target = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the shards go.", show_default=False)]
ShardSize = Annotated[int, typer.Option("--shard-size", min=1, max=MOST, help="Samples per shard.")]
Shuffle = Annotated[bool, typer.Option("--shuffle", help="Mix the samples instead of keeping them by name.")]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="The order that --shuffle mixes them into.")]
Strict = Annotated[bool, typer.Option("--strict", help="Write nothing if anything cannot be used.")]


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "asdm pack photos --out data/photos",
            "# then, in a recipe: train: data/photos/*.tar",
            "asdm pack photos --out data/photos --shard-size 500 --shuffle --strict",
        )
    )(pack)


def pack(
    folder: Folder,
    out: Target,
    shard_size: ShardSize = 2000,
    shuffle: Shuffle = False,
    seed: Seed = 0,
    strict: Strict = False,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Pack a folder of pictures with captions into shards.

    A caption is name.txt beside the picture, or a row of metadata.jsonl,
    metadata.csv or captions.csv (file_name, and text or caption). Writes
    00000.tar, 00001.tar, ... and pack.json, which lists what was left out.
    Pictures (png, jpg, jpeg, webp) keep their bytes.
    """
    set_verbosity(verbose, quiet)
    if not is_first():
        return
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such directory; give the folder of pictures")
    from asdm_cli.models.write import atomic_directory, refuse_existing, refuse_sources

    refuse_existing(out, overwrite)
    refuse_sources(out, [folder])
    from asdm_cli.data.pack import pack as pack_folder
    from asdm_cli.progress import hand_over, note

    with atomic_directory(out.resolve(), overwrite) as partial:
        packed = pack_folder(folder, partial, shard_size, seed if shuffle else None, strict)
    if packed.faults.total():
        note(f"{packed.faults.listed()}\nleft out: {packed.faults.summary()}")
    note(f"{packed.samples} samples in {packed.shards} shards")
    hand_over(out)
