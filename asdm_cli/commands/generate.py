"""Pictures from any model directory, each of which says how it was made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from asdm_cli.console import hand_over, is_first, note
from asdm_cli.errors import ModelError
from asdm_cli.models.source import ModelDirectory, find
from asdm_cli.models.write import atomic_directory, refuse_existing, refuse_sources

SHEET = "sheet.png"


def generate(
    prompts: Sequence[str], out: Path, settings: dict[str, Any], place: tuple[str, str], overwrite: bool
) -> None:
    """`settings` (model, steps, guidance, seed) stand in every PNG's text chunks; `place` is device and dtype."""
    if not is_first():
        return
    refuse_existing(out, overwrite)
    source = find(settings["model"])
    refuse_sources(out, [source.path])
    if not source.is_pipeline:
        raise ModelError(f"{source.path}: a UNet alone draws nothing; give a whole pipeline directory")
    settings = {**settings, "model": source.name}
    with atomic_directory(out.resolve(), overwrite) as folder:
        drawn = _draw(source, prompts, settings, place)
        for index, (picture, prompt) in enumerate(zip(drawn, prompts, strict=True)):
            origin = PngInfo()
            for key, value in {"prompt": prompt, "index": index, **settings}.items():
                origin.add_itxt(key, str(value))
            picture.save(folder / f"{index:03}.png", pnginfo=origin)
        contact_sheet(drawn).save(folder / SHEET)
    hand_over(out)


def _draw(
    source: ModelDirectory, prompts: Sequence[str], settings: dict[str, Any], place: tuple[str, str]
) -> list[Image.Image]:
    from asdm_cli.measure.contestants import blame
    from asdm_cli.measure.generate import pictures
    from asdm_cli.models.load import device_and_dtype, load_pipeline
    from asdm_cli.models.schedulers import planned_scheduler
    from asdm_cli.switching.inheriting import engines
    from asdm_cli.switching.pipelines import switched

    how = {key: settings[key] for key in ("steps", "guidance", "seed")}
    planned_scheduler(source, "own", how["steps"])  # which must know as many
    pipe = load_pipeline(source, *device_and_dtype(*place))
    if unet := switched(pipe):
        note(f"{source.name}: {', '.join(unet.unets)} take turns; `asdm show` prints who serves what")
    if engines(pipe):
        note(f"{source.name}: draws by the plan that it carries; `asdm show` prints it")
    with blame(source.name, "drawing"):
        drawn = dict(pictures(pipe, prompts, range(len(prompts)), size=None, batch=8, **how))
    return [drawn[index] for index in range(len(prompts))]


def contact_sheet(pictures: Sequence[Image.Image], margin: int = 4) -> Image.Image:
    """All pictures (of one size) on white in a grid about as wide as high, in reading order."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = (side + margin for side in pictures[0].size)
    sheet = Image.new("RGB", (columns * width + margin, rows * height + margin), "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture, (margin + column * width, margin + row * height))
    return sheet
