"""`asdm generate`: pictures that say how they were made, in a directory that is whole or not there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

import asdm_cli
from asdm_cli.data.images import cut
from asdm_cli.sampling import generate as sampling
from asdm_cli.sampling.generate import prompt_seed, too_long
from asdm_cli.sampling.prompts import Given
from tests import families, pictures, tiny
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


def test_so_many_are_drawn_at_once(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing, at_once = sampling.draw, list[int]()
    monkeypatch.setattr(
        sampling, "draw", lambda *given, **more: (at_once.append(given[3].batch), drawing(*given, **more))[1]
    )
    for more in ((), ("--batch", "2")):
        assert draw(tiny_pipeline, ["a fox"], tmp_path / str(len(more)), *more).code == 0
    assert at_once == [8, 2]


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
    assert "sampler euler, steps 2, guidance 2.5, as its history has it" in said.text, said.err
    given = ("--sampler", "euler", "--steps", 2, "--guidance", 2.5)
    asdm("generate", tiny_pipeline, "a fox", "--out", tmp_path / "b", "--device", "cpu", *given)
    assert pixels(tmp_path / "a/000.png") == pixels(tmp_path / "b/000.png")
    said = asdm("generate", tiny_pipeline, "a fox", "--steps", 2, "--out", tmp_path / "c", "--device", "cpu")
    assert "sampler own, guidance 7.5, as its pipeline has it" in said.text
    assert "no multiple of 8" in asdm("generate", tiny_pipeline, "a fox", "--size", 36, "--out", tmp_path / "d").text


def test_what_is_cut_off_a_prompt_is_told_once(tiny_pipeline: Path, tmp_path: Path) -> None:
    long = " ".join(["fox"] * 60)
    said = asdm("generate", tiny_pipeline, "a fox", long, f"{long} red", "--steps", 1, "--out", tmp_path / "out")
    assert f"2 of 3 prompts are longer than the {tiny.TOKENS} tokens that the text encoder takes in" in said.text
    words = CLIPTokenizer.from_pretrained(tiny_pipeline / "tokenizer")
    refiner = SimpleNamespace(tokenizer=None, tokenizer_2=words)
    assert too_long(refiner, [long, long, "a fox"]).startswith("1 of 2 prompts is longer than the")
    again = asdm("generate", tiny_pipeline, "a fox", "an owl", "--steps", 1, "--out", tmp_path / "few")
    assert (again.code, "longer than" in again.text) == (0, False)


def test_letters_of_many_bytes_are_many_tokens(tiny_pipeline: Path) -> None:
    pipe = asdm_cli.load(str(tiny_pipeline), "cpu")
    assert too_long(pipe, ["狐" * (tiny.TOKENS - 4)]).startswith("1 of 1 prompts is longer")


def test_what_was_drawn_outlives_an_interruption(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kill would leave it; the same command draws the rest, another one all."""
    prompts = ["a fox", "an owl", "a cup", "a sun", "a bee"]
    real, out, asked = sampling.draw, tmp_path / "out", list[list[int]]()

    def stopped(*args: Any, **how: Any) -> Iterator[Any]:
        asked.append([*args[2]])
        for number, found in enumerate(real(*args, **how)):
            if number == 4 and len(asked) == 1:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(sampling, "draw", stopped)
    assert draw(tiny_pipeline, prompts, out).code == 130
    assert draw(tiny_pipeline, prompts, out).code == 0
    assert asked == [[0, 1, 2, 3, 4], [4]]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out"]
    monkeypatch.undo()
    assert draw(tiny_pipeline, prompts, tmp_path / "whole").code == 0
    for index in range(5):
        assert pixels(out / f"{index:03}.png") == pixels(tmp_path / "whole" / f"{index:03}.png")
    assert {each.name for each in out.iterdir()} == {each.name for each in (tmp_path / "whole").iterdir()}


@pytest.fixture(scope="module")
def painting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inpainting model, and beside it pictures and masks, of 32 and of 40 pixels and of 44 x 52."""
    place = tmp_path_factory.mktemp("painting")
    families.pipeline("sd15-inpaint", place / "model")
    for name, size in {"own": (32, 32), "large": (40, 40), "odd": (44, 52)}.items():
        pictures.picture(0).resize(size).save(place / f"{name}.png")
        pictures.mask(0).resize(size).save(place / f"{name}.mask.png")
    return place


def paint(place: Path, out: Path, name: str = "own", *options: object) -> Said:
    given = ("--image", place / f"{name}.png", "--mask", place / f"{name}.mask.png")
    return draw(place / "model", ["a fox", "an owl"], out, *given, "--guidance", "5", *map(str, options))


def test_from_a_picture_as_plain_diffusers_draws(painting: Path, tmp_path: Path) -> None:
    """Of its own size, or cut to that which is asked for."""
    plain = diffusers.StableDiffusionInpaintPipeline.from_pretrained(painting / "model")
    plain.set_progress_bar_config(disable=True)
    for name, size, options in (("own", 32, ()), ("large", 40, ()), ("large", 32, ("--size", 32))):
        out = tmp_path / f"{name}-{size}"
        assert paint(painting, out, name, "--strength", 0.9, *options).code == 0
        image, mask = (cut(Image.open(painting / f"{name}{end}"), size) for end in (".png", ".mask.png"))
        noise = [torch.Generator().manual_seed(prompt_seed(0, seat)) for seat in (0, 1, 1, 1)]
        asked = {"image": [image] * 4, "mask_image": [mask] * 4, "height": size, "width": size, "strength": 0.9}
        prompts = ["a fox", "an owl", "an owl", "an owl"]
        drawn = plain(prompts, **asked, num_inference_steps=2, guidance_scale=5.0, generator=noise).images
        assert [pixels(out / f"{index:03}.png") for index in range(2)] == [each.tobytes() for each in drawn[:2]]
    with Image.open(out / "000.png") as picture:
        told = {key: picture.info.get(key) for key in ("image", "mask", "strength", "image_guidance")}
    assert told == {"image": "large.png", "mask": "large.mask.png", "strength": "0.9", "image_guidance": None}


def test_a_mask_is_black_where_it_is_transparent(painting: Path, tmp_path: Path) -> None:
    """As editors save what is painted on an empty layer."""
    with Image.open(painting / "own.mask.png") as mask:
        layer = Image.new("RGBA", mask.size, "white")
        layer.putalpha(mask.convert("L"))
    layer.save(tmp_path / "layer.png")
    assert paint(painting, tmp_path / "black").code == 0
    assert paint(painting, tmp_path / "layer", "own", "--mask", tmp_path / "layer.png").code == 0
    assert pixels(tmp_path / "black/000.png") == pixels(tmp_path / "layer/000.png")
    data = (tmp_path / "layer.png").read_bytes()
    assert Given("", b"", data, layer.size).area.tobytes() == mask.convert("L").tobytes()


def test_what_does_not_fit_a_pipeline_is_told_at_once(painting: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    model, own, mask = painting / "model", ("--image", painting / "own.png"), ("--mask", painting / "own.mask.png")
    (tmp_path / "text.png").write_text("no picture")
    refused = {
        "--image: a StableDiffusionInpaintPipeline needs a picture.*--mask: a .* needs a mask": (model, ()),
        "--image: a StableDiffusionPipeline takes none.*--strength: a .* takes none": (
            tiny_pipeline, (*own, "--strength", "0.5")),
        "--image-guidance: a StableDiffusionInpaintPipeline takes none": (
            model, (*own, *mask, "--image-guidance", "2")),
        "--image: .*text.png: cannot be read .* give a PNG, JPEG or WEBP file": (
            model, ("--image", tmp_path / "text.png", *mask)),
        "--mask: must be as large as the picture; they have 32 x 32 and 40 x 40 pixels": (
            model, (*own, "--mask", painting / "large.mask.png")),
        "odd.png: is 44 x 52 pixels, and both must be multiples of 8; give --size 40, which cuts a square": (
            model, ("--image", painting / "odd.png", "--mask", painting / "odd.mask.png")),
        "strength: 0.1 of 2 steps are none": (model, (*own, *mask, "--strength", "0.1")),
    }  # fmt: skip
    for words, (source, options) in refused.items():
        said = draw(source, ["a fox"], tmp_path / "out", *map(str, options))
        assert (said.code, bool(re.search(words, said.text))) == (2, True), (words, said.text)
        assert not (tmp_path / "out").exists()
    assert paint(painting, tmp_path / "out", "odd", "--size", 40).code == 0
    said = draw(tiny_pipeline, ["a fox"], tmp_path / "none", "--negative", "a tree", "--guidance", "1")
    assert "--negative: is looked at where guidance is above 1" in said.text
    lcm = families.pipeline("lcm", tmp_path / "lcm")
    said = draw(lcm, ["a fox"], tmp_path / "lcm-out", "--negative", "a tree")
    assert "--negative: a LatentConsistencyModelPipeline takes none" in said.text
