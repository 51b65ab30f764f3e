"""The sample sheet: what the model draws beside what the caption's drawing really is."""

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


def of_run(pictures: Path, captions: list[str], real: list[Picture], rows: list[int]) -> Picture:
    """The sheet of those prompts whose numbers are `rows`, from the pictures that an evaluation kept."""
    drawn = [Image.open(pictures / f"{row:06}.png").convert("RGB") for row in rows]
    return sheet([captions[row] for row in rows], drawn, [real[row] for row in rows])
