"""What is held out, by a list that ships; copies of drawings; shards read back."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

import asdm_cli
from asdm_cli.training.loop import Noise, Part
from pocket import drawings
from pocket.drawings import HELD_OUT, TRAIN, TWIN, held_out, labels, moved, part_of, read

DATA = Path(asdm_cli.__file__).parent / "pocket" / "data"


@pytest.mark.parametrize(("style", "part"), [("fluent", HELD_OUT), ("flat", TWIN), ("noto", TRAIN), ("twemoji", TRAIN)])
def test_a_held_out_drawing_takes_its_twin_along(style: str, part: str) -> None:
    assert part_of("fox", style, {"fox, fluent style"}) == part


def test_the_shards_that_ship_are_the_lists() -> None:
    train, held = read(DATA / "train.tar.gz"), read(DATA / "held-out.tar.gz")
    assert set(held.captions) == held_out()
    assert len(held.captions) == len(labels()) == 128
    assert {about["label"] for about in held.about} == set(labels())
    twins = {
        (about["label"], other)
        for about in held.about
        for other in ("fluent", "flat")
        if about["style"] in ("fluent", "flat")
    }
    known = {(about["label"], about["style"]) for about in train.about}
    assert len(known) == len(train) == 594
    assert not known & (twins | {(about["label"], about["style"]) for about in held.about})
    shown = read(DATA / "evaluation.tar.gz")
    assert [about["split"] for about in shown.about] == [HELD_OUT, TRAIN] * 128
    assert shown.captions[::2] == held.captions
    assert set(shown.captions[1::2]) < set(train.captions)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    fox = drawings.Drawing("fox", "noto", "nature", "")
    png = gzip.decompress((DATA / "held-out.tar.gz").read_bytes())  # any real picture: the first of the shard
    start = png.index(b"\x89PNG")
    picture = png[start : png.index(b"IEND", start) + 8]
    drawings._write(tmp_path / "a.tar.gz", [(fox, TRAIN)], {fox.caption: picture})
    found = read(tmp_path / "a.tar.gz")
    assert (found.captions, found.images.shape) == (["fox, noto style"], (1, 3, 64, 64))
    assert found.about == [{"label": "fox", "style": "noto", "group": "nature", "split": TRAIN}]


def test_moving_keeps_white_white_and_moves_the_rest() -> None:
    white = torch.ones(5, 3, 64, 64)
    torch.testing.assert_close(moved(white, Noise(0, 0, Part(5))), white)
    square = white.clone()
    square[:, :, 24:40, 24:40] = -1
    found = moved(square, Noise(0, 0, Part(5)))
    assert found.shape == square.shape
    assert (found[:, :, 0] == 1).all(), "white outside"
    areas = (found < 0).float().sum((1, 2, 3)) / 3
    assert ((areas > 150) & (areas < 340)).all(), "scaled by 0.85 to 1.1"
    assert len({round(float(area)) for area in areas}) > 1
