"""Pictures from any model directory, each of which says how it was made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from asdm_cli.console import hand_over, is_first, note
from asdm_cli.errors import ModelError, blame
from asdm_cli.models.directory import INDEX, find
from asdm_cli.models.write import atomic_directory, refuse_existing, refuse_sources
from asdm_cli.recipe.typed import read_adapters

SHEET = "sheet.png"


def generate(
    prompts: Sequence[str], out: Path, settings: dict[str, Any], place: tuple[str, str], overwrite: bool
) -> None:
    """`settings` (model, lora, sampler, steps, guidance, size, negative, seed) stand in every PNG's text chunks; of
    sampler, steps and guidance what is None is as the model was measured, or as its pipeline has it. `place` is device
    and dtype."""
    if not is_first():
        return
    refuse_existing(out, overwrite)
    adapters = read_adapters(settings["lora"], "--lora")
    source = find(settings["model"], adapters)
    refuse_sources(out, [source.path, *(Path(each.path) for each in adapters)])
    if not source.is_pipeline:
        around = f", {source.path.parent}" if (source.path.parent / INDEX).is_file() else ""
        raise ModelError(f"{source.path}: a UNet alone draws nothing; give a whole pipeline directory{around}")
    from asdm_cli.compare.setup import common_size
    from asdm_cli.models.directory import check_drawing
    from asdm_cli.models.load import device_and_dtype, load_pipeline, own_settings
    from asdm_cli.models.metadata import measured_with, patches_of
    from asdm_cli.models.schedulers import planned_scheduler, set_sampler
    from asdm_cli.patches.base import patch_of
    from asdm_cli.sampling.generate import SamplingSettings, draw

    check_drawing(source)
    if settings["size"] is not None:
        common_size(settings["size"], [])
    measured = measured_with(source)
    known = own_settings(source) | measured
    if left_out := [key for key in known if settings[key] is None]:
        said = ", ".join(f"{key} {known[key]}" for key in left_out)
        note(f"{source.name}: {said}, as {'it was measured' if measured else 'its pipeline has it'}")
    settings = {**settings, **{key: known[key] for key in left_out}, "model": source.name}
    settings["lora"] = ", ".join(each.name for each in source.adapters)
    how = SamplingSettings(
        settings["steps"],
        settings["guidance"],
        settings["size"],
        settings["seed"],
        settings["sampler"],
        batch=8,
        negative=settings["negative"],
    )
    planned_scheduler(source, how.sampler, how.steps)  # which must know as many
    pipe, patches = load_pipeline(source, *device_and_dtype(*place)), patches_of(source)
    if how.sampler != "own":
        set_sampler(pipe, how.sampler)
    for spec in patches:
        note(f"{source.name}: {spec.kind} is in force; `asdm show` prints it")
    reentrant = all(patch_of(spec).reentrant for spec in patches)
    with atomic_directory(out.resolve(), overwrite) as folder:
        with blame(source.name, "drawing"):
            unordered = dict(draw(pipe, prompts, range(len(prompts)), how, reentrant=reentrant))
        drawn = [unordered[index] for index in range(len(prompts))]
        for index, (picture, prompt) in enumerate(zip(drawn, prompts, strict=True)):
            origin = PngInfo()
            for key, value in {"prompt": prompt, "index": index, **settings}.items():
                origin.add_itxt(key, str(value))
            picture.save(folder / f"{index:03}.png", pnginfo=origin)
        contact_sheet(drawn).save(folder / SHEET)
    hand_over(out)


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
