"""`asdm generate`: pictures that say how they were made, in a directory that is whole or not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.expanding import pixels
from tests.typed import Said, asdm


def draw(model: Path, prompts: list[str], out: Path, *options: str) -> Said:
    return asdm("generate", model, *prompts, "--out", out, "--steps", 2, "--device", "cpu", "--quiet", *options)


def test_pictures_and_sheet(tiny_pipeline: Path, tmp_path: Path) -> None:
    said = draw(tiny_pipeline, ["a fox", "Füchse"], tmp_path / "out", "--seed", "3")
    assert (said.code, said.out) == (0, f"{tmp_path / 'out'}\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".asdm", "000.png", "001.png", "sheet.png"]
    with Image.open(tmp_path / "out" / "001.png") as picture:
        assert picture.size == (32, 32)
        made = picture.info
    assert (made["prompt"], made["index"], made["seed"], made["steps"]) == ("Füchse", "1", "3", "2")


OPTIONS = [
    ("--seed", "1"),
    ("--steps", "3"),
    ("--guidance", "1.0"),
    ("--negative", "a tree"),
    ("--sampler", "euler"),
    ("--size", "64"),
]


@pytest.mark.parametrize(("option", "value"), OPTIONS)
def test_every_option_matters(option: str, value: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    for name, more in {"a": (), "b": (), "c": (option, value)}.items():
        assert draw(tiny_pipeline, ["a fox"], tmp_path / name, *more).code == 0
    a, b, c = (Image.open(tmp_path / name / "000.png").tobytes() for name in "abc")
    assert a == b
    assert a != c


def test_only_pictures_of_ours_are_replaced(tiny_pipeline: Path, tmp_path: Path) -> None:
    assert draw(tiny_pipeline, ["a fox", "a cat"], tmp_path / "out").code == 0
    assert draw(tiny_pipeline, ["a fox"], tmp_path / "out").code == 2
    assert draw(tiny_pipeline, ["a fox"], tmp_path / "out", "--overwrite").code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".asdm", "000.png", "sheet.png"]
    (tmp_path / "out" / "holiday.png").write_bytes(b"mine")
    assert draw(tiny_pipeline, ["a fox"], tmp_path / "out", "--overwrite").code == 2
    assert (tmp_path / "out" / "holiday.png").read_bytes() == b"mine"
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "sheet.png").touch()
    assert draw(tiny_pipeline, ["a fox"], tmp_path / "album", "--overwrite").code == 2
    assert [path.name for path in (tmp_path / "album").iterdir()] == ["sheet.png"]


def test_a_unet_alone_draws_nothing(tiny_pipeline: Path, tmp_path: Path) -> None:
    said = draw(tiny_pipeline / "unet", ["a fox"], tmp_path / "out")
    assert said.code == 2
    assert "whole pipeline" in said.err
    assert not (tmp_path / "out").exists()


def test_what_is_left_out_is_as_the_model_was_measured(tiny_pipeline: Path, tmp_path: Path) -> None:
    """Else as its pipeline has it."""
    measured = tmp_path / "measured"
    shutil.copytree(tiny_pipeline, measured)
    step = {"verb": "inherit", "measured_with": {"sampler": "euler", "steps": 2, "guidance": 2.5}}
    (measured / "asdm.json").write_text(json.dumps({"history": [step]}))
    said = asdm("generate", measured, "a fox", "--out", tmp_path / "a", "--device", "cpu")
    assert "sampler euler, steps 2, guidance 2.5, as it was measured" in said.text, said.err
    given = ("--sampler", "euler", "--steps", 2, "--guidance", 2.5)
    asdm("generate", tiny_pipeline, "a fox", "--out", tmp_path / "b", "--device", "cpu", *given)
    assert pixels(tmp_path / "a/000.png") == pixels(tmp_path / "b/000.png")
    said = asdm("generate", tiny_pipeline, "a fox", "--steps", 2, "--out", tmp_path / "c", "--device", "cpu")
    assert "sampler own, guidance 7.5, as its pipeline has it" in said.text
    assert "no multiple of 8" in asdm("generate", tiny_pipeline, "a fox", "--size", 36, "--out", tmp_path / "d").text
