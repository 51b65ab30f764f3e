"""Picture sets: what is whole counts, what is damaged does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from asdm_cli.errors import RunError
from asdm_cli.sampling.image_set import ImageSet, to_image
from tests.drawings import drawing, picture_set


def test_images_come_back_as_they_were(tmp_path: Path) -> None:
    drawings = [drawing(index) for index in range(5)]
    batches = list(picture_set(tmp_path / "set", drawings).batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    pixels = torch.cat(batches)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (5, 3, 32, 32))
    assert [to_image(each).tobytes() for each in pixels] == [each.tobytes() for each in drawings]


def test_missing_and_damaged_images_are_found(tmp_path: Path) -> None:
    made = picture_set(tmp_path, [drawing(index) for index in range(6)])
    assert made.missing(range(6)) == []
    made.path(1).unlink()
    made.path(2).write_bytes(made.path(2).read_bytes()[:-40])  # a killed copy: header whole, pixels not
    made.path(3).write_bytes(b"")
    made.path(4).write_text("no picture")
    assert made.missing(range(6)) == [1, 2, 3, 4]
    with pytest.raises(RunError, match=r"000001\.png: cannot be read"):
        list(made.batches())


def test_a_failed_save_leaves_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(_picture: Image.Image, file: Path, _format: str) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    made = ImageSet(tmp_path, 1)
    with pytest.raises(OSError, match="disk full"):
        made.save(0, drawing(0))
    assert not made.path(0).exists()
    assert made.missing([0]) == [0]
