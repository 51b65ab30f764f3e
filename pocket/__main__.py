"""`python -m pocket`: from the drawings' packages to the shipped model, stage by stage."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from asdm_cli.errors import AsdmError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
Data = Annotated[Path, typer.Option(help="Folder of the shards that `data` writes.")]
Folder = Annotated[Path, typer.Option(help="Folder of checkpoints, logs and trained parts.")]


@app.command()
def data(data: Data = Path("data")) -> None:
    """Fetch the drawings, render them, write the shards; then the ones that ship."""
    from pocket.drawings import build
    from pocket.export import ship_shards

    print(build(data))
    ship_shards(data)


@app.command()
def train(
    stages: Annotated[list[str] | None, typer.Argument(help="vae, clip, score, probe, unet; all if none.")] = None,
    data: Data = Path("data"),
    folder: Folder = Path("runs/pocket"),
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Length of each stage's stretch.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="The same in steps, instead of the plan's.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads to use.")] = None,
    go_on: Annotated[bool, typer.Option(help="Start from the shipped weights instead of random ones.")] = False,
) -> None:
    """Train stages; killed at any moment, the same command goes on from the last checkpoint. A stage that is named and
    has finished learns for another stretch."""
    import torch

    from pocket.stages import ORDER, Shop, run_probe, run_stage

    if threads:
        torch.set_num_threads(threads)
    if minutes and steps:
        raise typer.BadParameter("--minutes and --steps both say how long; give one")
    if unknown := set(stages or ()) - set(ORDER):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: not one of {', '.join(ORDER)}")
    shop = Shop(data, folder, go_on)
    for stage in stages or ORDER:
        if stage == "probe":
            print(stage, run_probe(shop))
            continue
        plan = shop.plan(stage) if steps is None else dataclasses.replace(shop.plan(stage), steps=steps)
        print(stage, run_stage(shop, stage, plan, minutes, again=bool(stages)))


@app.command()
def chain(
    minutes: Annotated[float, typer.Option(min=0.1, help="Of everything, setting up and writing included.")] = 7,
    data: Data = Path("data"),
    folder: Folder = Path("runs/pocket"),
) -> None:
    """Autoencoder, both CLIPs and the UNet in one go and a given time: for a GPU."""
    from pocket.stages import Shop, run_chain

    for stage, figures in run_chain(Shop(data, folder), minutes).items():
        print(stage, figures)


@app.command()
def parts(
    stage: Literal["vae", "clip", "score", "unet"],
    data: Data = Path("data"),
    folder: Folder = Path("runs/pocket"),
) -> None:
    """Write what a stage has learnt so far, from its newest checkpoint, without training on."""
    from pocket.stages import Shop, parts_of_checkpoint

    print(stage, parts_of_checkpoint(Shop(data, folder), stage))


@app.command()
def export(
    what: Annotated[
        Literal["generator", "judges"],
        typer.Argument(help="VAE, text encoder and UNet, or what judges: CLIP for scores and probe."),
    ],
    folder: Folder = Path("runs/pocket"),
) -> None:
    """Put trained parts into the package as float16, with the records of their training."""
    from pocket.export import export as write

    print(write(folder, what))


@app.command()
def card(
    run: Annotated[Path, typer.Argument(help="The run of recipes/eval-pocket-figures.yaml.")],
    hardware: Annotated[str, typer.Option(help="What the training ran on, in words.")],
    remarks: Annotated[str, typer.Option(help="What else a reader should know of this training.")] = "",
) -> None:
    """Renew the model card, its curves and the sample sheet."""
    from pocket.card import write

    print(write(run, hardware, remarks))


def main() -> None:
    try:
        app()
    except AsdmError as error:
        print(f"pocket: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
