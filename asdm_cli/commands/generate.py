"""Pictures from any model directory, each of which says how it was made."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Mapping, Sequence
from hashlib import sha256
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from asdm_cli.console import hand_over, is_first, note
from asdm_cli.data.images import UnreadableError, cut, read_file
from asdm_cli.errors import Faults, ModelError, blame
from asdm_cli.models.directory import INDEX, UNET, ModelDirectory, find
from asdm_cli.models.pipelines import CALLED, PIPELINES
from asdm_cli.models.write import atomic_directory, refuse_existing, refuse_sources
from asdm_cli.recipe.schema import places
from asdm_cli.recipe.typed import read_adapters

if TYPE_CHECKING:
    from asdm_cli.sampling.prompts import Given

SHEET, DRAWN = "sheet.png", "drawn"
TAKEN = tuple(CALLED)
"""What is told only where a pipeline takes it."""


def generate(
    prompts: Sequence[str], out: Path, settings: dict[str, Any], place: tuple[str, str], batch: int, overwrite: bool
) -> None:
    """`settings` (model, lora, sampler, steps, guidance, size, negative, seed, and TAKEN) stand in every PNG's text
    chunks; what is None of sampler, steps and guidance is as the model was measured, or as its pipeline has it. `place`
    is device and dtype, `batch` pictures are drawn at once."""
    if not is_first():
        return
    refuse_existing(out, overwrite)
    adapters = read_adapters(settings["lora"], "--lora")
    source = find(settings["model"], adapters)
    files = [*(each.path for each in adapters), *(settings[key] for key in ("image", "mask") if settings[key])]
    refuse_sources(out, [source.path, *places(settings["model"]), *map(Path, files)])
    if not source.is_pipeline:
        around = f", {source.path.parent}" if (source.path.parent / INDEX).is_file() else ""
        raise ModelError(f"{source.path}: a UNet alone draws nothing; give a whole pipeline directory{around}")
    from asdm_cli.compare.setup import Setup, common_size
    from asdm_cli.models.directory import check_drawing
    from asdm_cli.models.load import device_and_dtype, load_pipeline
    from asdm_cli.models.metadata import patches_of
    from asdm_cli.models.schedulers import set_sampler
    from asdm_cli.patches.base import ways_to_draw
    from asdm_cli.profiling.latency import versions
    from asdm_cli.sampling.generate import draw
    from asdm_cli.sampling.image_set import ImageSet

    check_drawing(source)
    if settings["size"] is not None:
        common_size(settings["size"], [])
    given = _given(source, settings)
    settings = _filled_in(source, settings)
    asked = {key: settings[key] for key in ("sampler", "steps", "guidance", "strength", "image_guidance")}
    setup = Setup(source.name, source, source.config(UNET), **asked)
    assert setup.calls, "its scheduler knows as many steps"
    how = setup.sampling(settings["size"], settings["seed"], batch=batch, negative=settings["negative"])
    where, patches = device_and_dtype(*place), patches_of(source)
    pipe = load_pipeline(source, *where)
    if how.sampler != "own":
        set_sampler(pipe, how.sampler)
    for spec in patches:
        note(f"{source.name}: {spec.kind} is in force; `asdm show` prints it")
    depends = {**setup.origin(), "patches": [spec.written() for spec in patches], "size": how.size, "seed": how.seed}
    parts = [part for each in given for part in (each.image, each.mask)]
    depends |= {"negative": how.negative, "prompts": [*prompts], "given": [sha256(part).hexdigest() for part in parts]}
    with atomic_directory(out.resolve(), overwrite, keep=f"{DRAWN}/*.png") as folder:
        drawn = ImageSet(folder / DRAWN, len(prompts))
        last_bits = {"batch": batch} if where[0].type != "cpu" else {}
        drawn.claim({**depends, **last_bits, "place": list(map(str, where)), "versions": versions()})
        pictures = given * len(prompts)
        with blame(source.name, "drawing"):
            for index, picture in draw(pipe, prompts, drawn.missing(), how, given=pictures, **ways_to_draw(patches)):
                drawn.save(index, picture)
        found = [read_file(drawn.path(index)) for index in range(len(prompts))]
        _write(found, prompts, settings, folder)
        shutil.rmtree(drawn.folder)
    hand_over(out)


def _write(found: Sequence[Image.Image], prompts: Sequence[str], settings: Mapping[str, Any], folder: Path) -> None:
    """Every picture with how it was made in its text chunks, and the sheet of all."""
    for left in folder.glob("*.png"):  # by a kill in the middle of this, of other prompts perhaps
        left.unlink()
    for index, (picture, prompt) in enumerate(zip(found, prompts, strict=True)):
        origin = PngInfo()
        for key, value in {"prompt": prompt, "index": index, **settings}.items():
            if value is not None or key not in TAKEN:
                origin.add_itxt(key, value.name if isinstance(value, Path) else str(value))
        picture.save(folder / f"{index:03}.png", pnginfo=origin)
    contact_sheet(found).save(folder / SHEET)


def _filled_in(source: ModelDirectory, settings: dict[str, Any]) -> dict[str, Any]:
    """With what was left out, and names for paths. Raises ModelError for a prompt that nothing would look at."""
    from asdm_cli.models.load import own_settings
    from asdm_cli.models.metadata import measured_with

    measured = measured_with(source)
    known = own_settings(source) | measured
    if left_out := [key for key in known if settings[key] is None]:
        said = ", ".join(f"{key} {known[key]}" for key in left_out)
        note(f"{source.name}: {said}, as {'its history has it' if measured else 'its pipeline has it'}")
    whole = {**settings, **{key: known[key] for key in left_out}, "model": source.name}
    if whole["negative"] and not whole["guidance"] > 1:
        raise ModelError("--negative: is looked at where guidance is above 1; raise --guidance, or leave it out")
    return {**whole, "lora": ", ".join(each.name for each in source.adapters)}


def _given(source: ModelDirectory, settings: Mapping[str, Any]) -> list[Given]:
    """What is drawn from, cut to a square where a size is asked for; empty of pipelines that draw from prompts alone.
    Raises ModelError with all that does not fit."""
    from asdm_cli.compare.setup import MAKER_STEP, Setup
    from asdm_cli.models.load import pipeline_class
    from asdm_cli.sampling.prompts import UNPAINTED, Given

    name, size = str(source.index["_class_name"]), settings["size"]
    kind, faults, pictures = PIPELINES[name], Faults(), dict[str, Image.Image]()
    asked = signature(pipeline_class(source).__call__).parameters
    taken = {*kind.takes, *(("negative",) if "negative_prompt" in asked else ())}
    for key in (*TAKEN, "negative"):
        option, value = f"--{key.replace('_', '-')}", settings[key]
        if value not in (None, "") and key not in taken:
            faults.append(f"{option}: a {name} takes none; leave it out")
        elif key in kind.given and value is None:
            faults.append(f"{option}: a {name} needs a {'mask' if key == 'mask' else 'picture'}; name its file")
        elif key in kind.given:
            try:
                pictures[key] = read_file(value, UNPAINTED if key == "mask" else "white")
            except UnreadableError as error:
                faults.append(f"{option}: {value}: cannot be read ({error}); give a PNG, JPEG or WEBP file")
    scale = Setup(name, source, source.config(UNET)).surroundings[0] if kind.enlarges else 1
    if len({each.size for each in pictures.values()}) > 1:
        each = " and ".join(f"{picture.width} x {picture.height}" for picture in pictures.values())
        faults.append(f"--mask: must be as large as the picture; they have {each} pixels")
    if size is not None:
        pictures = {key: cut(picture, size // scale) for key, picture in pictures.items()}
    elif odd := [each for each in pictures.values() if any(side * scale % MAKER_STEP for side in each.size)][:1]:
        side = max(MAKER_STEP, min(odd[0].size) * scale // MAKER_STEP * MAKER_STEP)
        what = f"is {odd[0].width} x {odd[0].height} pixels, and both must be multiples of {MAKER_STEP // scale}"
        faults.append(f"--image: {settings['image']}: {what}; give --size {side}, which cuts a square from it")
    faults.raise_all()
    data = {key: _png(picture) for key, picture in pictures.items()}
    return [Given("--image", data["image"], data.get("mask", b""), pictures["image"].size)] if data else []


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


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
