"""`python -m asdm_cli.pocket`: from the drawings' packages to the shipped model, stage by stage."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from asdm_cli.errors import AsdmError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
Data = Annotated[Path, typer.Option(help="Folder of the shards that `data` writes.")]
Folder = Annotated[Path, typer.Option(help="Folder of checkpoints, logs and trained parts.")]
ORDER = ("vae", "clip", "unet")


@app.command()
def data(data: Data = Path("data")) -> None:
    """Fetch the drawings, render them, write the shards; then the ones that ship."""
    from asdm_cli.pocket.shards import build

    print(build(data))


@app.command()
def train(
    stages: Annotated[
        list[str] | None, typer.Argument(help="vae, clip, unet, decoder; the first three if none.")
    ] = None,
    data: Data = Path("data"),
    folder: Folder = Path("runs/pocket-training"),
    steps: Annotated[
        int | None,
        typer.Option(help="Train up to this step instead of the plan's; 0 only writes out the newest checkpoint."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads to use.")] = None,
    go_on: Annotated[bool, typer.Option(help="Start from the shipped weights instead of random ones.")] = False,
) -> None:
    """Train stages; killed at any moment, the same command goes on from the last checkpoint."""
    import torch

    from asdm_cli.pocket.stages import PLANS, Workshop, run_stage

    if threads:
        torch.set_num_threads(threads)
    unknown = set(stages or ()) - set(PLANS)
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: not one of {', '.join(PLANS)}")
    for stage in stages or ORDER:
        plan = PLANS[stage] if steps is None else dataclasses.replace(PLANS[stage], steps=steps)
        run_stage(Workshop(data, folder, go_on), stage, plan)


@app.command()
def export(data: Data = Path("data"), folder: Folder = Path("runs/pocket-training")) -> None:
    """Put the trained parts into the package as float16, with the shards that ship and the sample sheet."""
    from asdm_cli.pocket.export import export as write

    print(write(data, folder))


@app.command()
def card(
    run: Annotated[Path, typer.Argument(help="The run of recipes/eval-pocket-figures.yaml.")],
    hardware: Annotated[str, typer.Option(help="What the training ran on, in words.")],
    data: Data = Path("data"),
) -> None:
    """Renew the model card, its curves and the sample sheet."""
    from asdm_cli.pocket import card as page
    from asdm_cli.pocket.export import SHARDS
    from asdm_cli.pocket.pairs import read_pairs
    from asdm_cli.pocket.sheet import draw
    from asdm_cli.pocket.stages import WEIGHTS
    from asdm_cli.report.merge import read

    validation = SHARDS / "validation.tar.gz"
    draw("pocket", validation).save(WEIGHTS / "samples.png")
    pairs = len(read_pairs(data / "train.tar"))
    print(page.write(read(run), hardware, pairs, len(read_pairs(validation))))


def main() -> None:
    try:
        app()
    except AsdmError as error:
        print(f"pocket: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
