"""`asdm generate MODEL "prompt"...`: pictures from any model directory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asdm_cli.commands.options import Device, Dtype, Overwrite, Quiet, Verbose, examples, set_verbosity
from asdm_cli.commands.ranks import is_first
from asdm_cli.errors import ModelError
from asdm_cli.recipe.schema import LARGEST_SEED, MOST

if TYPE_CHECKING:
    from PIL.Image import Image

SHEET = "sheet.png"

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A model directory, a run directory or [bold]pocket[/].", show_default=False),
]
Prompts = Annotated[list[str], typer.Argument(metavar="PROMPT", help="One picture each.", show_default=False)]
Folder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the pictures go.")]
Steps = Annotated[int, typer.Option(min=1, max=MOST, help="UNet steps per picture.")]
Guidance = Annotated[float, typer.Option(min=1.0, max=1000.0, help="Classifier-free guidance; 1 is none.")]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Prompt i is drawn with a seed made of this and i.")]


def register(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            'asdm generate pocket "a fox, noto style" "a red apple" --out runs/fox',
            "# the pruned model, the same seeds",
            'asdm generate runs/prune-pocket-base "a fox, noto style" "a red apple" --out runs/fox-base',
        )
    )(generate)


def generate(
    model: Model,
    prompts: Prompts,
    out: Folder = Path("runs/generate"),
    steps: Steps = 25,
    guidance: Guidance = 3.0,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Draw pictures from prompts.

    Writes 000.png, 001.png, ... and a contact sheet. Each prompt has a seed
    of its own, made of --seed and its place in the list, so two models draw
    the same prompts from the same noise.
    """
    from asdm_cli.models.directory import find
    from asdm_cli.models.write import atomic_directory, refuse_existing, refuse_sources
    from asdm_cli.progress import hand_over

    set_verbosity(verbose, quiet)
    if not is_first():
        return
    refuse_existing(out, overwrite)
    source = find(model)
    refuse_sources(out, [source.path])
    if not source.is_pipeline:
        raise ModelError(f"{source.path}: a UNet alone draws nothing; give a whole pipeline directory")
    settings = {"model": source.name, "steps": steps, "guidance": guidance, "seed": seed}
    with atomic_directory(out.resolve(), overwrite) as folder:
        drawn = _draw(source, prompts, settings, (device or "auto", dtype or "auto"))
        _write(folder, drawn, prompts, settings)
    hand_over(out)


def _draw(source: Any, prompts: Sequence[str], settings: dict[str, Any], place: tuple[str, str]) -> list[Image]:
    from asdm_cli.measure.contestants import blame
    from asdm_cli.measure.generate import pictures
    from asdm_cli.models.load import device_and_dtype, load_pipeline
    from asdm_cli.models.schedulers import planned_scheduler
    from asdm_cli.progress import note
    from asdm_cli.switching.inheriting import engines
    from asdm_cli.switching.pipelines import switched

    planned_scheduler(source, "own", settings["steps"])  # which must know as many
    pipe = load_pipeline(source, *device_and_dtype(*place))
    if unet := switched(pipe):
        note(f"{source.name}: {', '.join(unet.unets)} take turns; `asdm show` prints who serves what")
    if engines(pipe):
        note(f"{source.name}: draws by the plan that it carries; `asdm show` prints it")
    drawing = pictures(
        pipe,
        prompts,
        range(len(prompts)),
        steps=settings["steps"],
        guidance=settings["guidance"],
        size=None,
        seed=settings["seed"],
        batch=8,
    )
    with blame(source.name, "drawing"):
        drawn = dict(drawing)
    return [drawn[index] for index in range(len(prompts))]


def _write(folder: Path, drawn: Sequence[Image], prompts: Sequence[str], settings: dict[str, Any]) -> None:
    """Every PNG tells in its text chunks how it was made."""
    from PIL.PngImagePlugin import PngInfo

    for index, (picture, prompt) in enumerate(zip(drawn, prompts, strict=True)):
        origin = PngInfo()
        for key, value in {"prompt": prompt, "index": index, **settings}.items():
            origin.add_itxt(key, str(value))
        picture.save(folder / f"{index:03}.png", pnginfo=origin)
    contact_sheet(drawn).save(folder / SHEET)


def contact_sheet(pictures: Sequence[Image], margin: int = 4) -> Image:
    """All pictures (of one size) on white in a grid about as wide as high, in reading order."""
    from PIL import Image

    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = (side + margin for side in pictures[0].size)
    sheet = Image.new("RGB", (columns * width + margin, rows * height + margin), "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture, (margin + column * width, margin + row * height))
    return sheet
