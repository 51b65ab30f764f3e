"""The sample sheet: what the model draws beside what the caption's picture really is."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw
from PIL.Image import Image as Picture

TILE, GAP, LINE, COLUMNS = 96, 4, 26, 8


def sheet(captions: list[str], drawn: list[Picture], real: list[Picture]) -> Picture:
    """A grid of cells, COLUMNS wide: drawn left, real right, the caption under them."""
    width, height = 2 * TILE + 2 * GAP, TILE + LINE
    rows = -(-len(captions) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * width, rows * height), "#eceff1")
    pen = ImageDraw.Draw(canvas)
    for number, cell in enumerate(zip(captions, drawn, real, strict=True)):
        caption, left, right = cell
        x, y = (number % COLUMNS) * width + GAP // 2, (number // COLUMNS) * height + GAP // 2
        canvas.paste(left.resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y))
        canvas.paste(right.resize((TILE, TILE), Image.Resampling.LANCZOS), (x + TILE + GAP // 2, y))
        pen.text((x + 2, y + TILE + 6), caption[:34], fill="#263238")
    return canvas


def draw(model: str, shard: Path, count: int = 64, steps: int = 25, guidance: float = 3.0) -> Picture:
    """The sheet of the first `count` samples of a shard."""
    from asdm_cli.measure.generate import pictures
    from asdm_cli.models.load import device_and_dtype, load_pipeline
    from asdm_cli.models.source import find
    from asdm_cli.pocket.pairs import read_pairs

    pairs = read_pairs(shard, count)
    pipe = load_pipeline(find(model), *device_and_dtype())
    drawing = pictures(pipe, pairs.captions, range(count), steps=steps, guidance=guidance, size=None, seed=0, batch=16)
    drawn = [picture for _, picture in sorted(drawing, key=lambda item: item[0])]
    real = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pairs.pictures]
    return sheet(pairs.captions, drawn, real)
