"""`asdm generate`: pictures that say how they were made, in a directory that is whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from asdm_cli.cli import main

QUICK = ["--steps", "2", "--device", "cpu", "--quiet"]


def draw(model: Path, prompts: list[str], out: Path, *options: str) -> int:
    return main(["generate", str(model), *prompts, "--out", str(out), *QUICK, *options])


def test_pictures_and_sheet(tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw(tiny_pipeline, ["a fox", "Füchse"], tmp_path / "out", "--seed", "3") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".asdm", "000.png", "001.png", "sheet.png"]
    with Image.open(tmp_path / "out" / "001.png") as picture:
        assert picture.size == (32, 32)
        made = picture.info
    assert (made["prompt"], made["index"], made["seed"], made["steps"]) == ("Füchse", "1", "3", "2")


@pytest.mark.parametrize(("option", "value"), [("--seed", "1"), ("--steps", "3"), ("--guidance", "1.0")])
def test_every_option_matters(option: str, value: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    assert draw(tiny_pipeline, ["a fox"], tmp_path / "a") == 0
    assert draw(tiny_pipeline, ["a fox"], tmp_path / "b") == 0
    assert draw(tiny_pipeline, ["a fox"], tmp_path / "c", option, value) == 0
    a, b, c = (Image.open(tmp_path / name / "000.png").tobytes() for name in "abc")
    assert a == b
    assert a != c


def test_an_existing_directory_is_kept(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sheet.png").touch()  # of an album
    assert draw(tiny_pipeline, ["a fox"], tmp_path / "out") == 2
    assert draw(tiny_pipeline, ["a fox"], tmp_path / "out", "--overwrite") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sheet.png"]


def test_overwrite_replaces_pictures(tiny_pipeline: Path, tmp_path: Path) -> None:
    assert draw(tiny_pipeline, ["a fox", "a cat"], tmp_path / "out") == 0
    assert draw(tiny_pipeline, ["a fox"], tmp_path / "out", "--overwrite") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".asdm", "000.png", "sheet.png"]
    (tmp_path / "out" / "holiday.png").write_bytes(b"mine")
    assert draw(tiny_pipeline, ["a fox"], tmp_path / "out", "--overwrite") == 2
    assert (tmp_path / "out" / "holiday.png").read_bytes() == b"mine"


def test_a_unet_alone_draws_nothing(tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw(tiny_pipeline / "unet", ["a fox"], tmp_path / "out") == 2
    assert "whole pipeline" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
