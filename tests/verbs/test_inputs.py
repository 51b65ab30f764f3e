"""Verbs on pipelines that draw from pictures: they do, and what does not fit is told before anything slow."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from PIL import Image

import asdm_cli
from asdm_cli.compare import costs
from asdm_cli.data.images import read_rgb
from asdm_cli.models.pipelines import PIPELINES
from asdm_cli.report.run_directory import read
from asdm_cli.sampling.generate import prompt_seed
from asdm_cli.sampling.prompts import read_prompts
from tests import families, pictures
from tests.drawings import caption, png
from tests.expanding import done, figures
from tests.expanding import run as ran
from tests.models.test_pipelines import KINDS, Model
from tests.typed import asdm

FEW = {"steps": 4, "device": "cpu", "metrics": ["psnr"], "bootstrap": 20}
COMPARED = {**FEW, "fewer_steps": [2], "repeats": 1, "warmups": 1, "limit": 2}
PLAN = {"rules": [{"nodes": "up.0", "schedule": {"mode": "uniform", "interval": 2}}]}
INPAINT, EDIT = "StableDiffusionInpaintPipeline", "StableDiffusionInstructPix2PixPipeline"
IMAGE, UPSCALE = "StableDiffusionImg2ImgPipeline", "StableDiffusionUpscalePipeline"
TEXT, LCM = "StableDiffusionPipeline", "LatentConsistencyModelPipeline"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return families.kept(KINDS, tmp_path_factory)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What a recipe says of what such a pipeline draws from."""
    place = tmp_path_factory.mktemp("inputs")
    pictures.folder(place / "large"), pictures.folder(place / "small", size=pictures.SMALL, masks=False)
    (place / "prompts.txt").write_text("".join(f"{caption(index)}\n" for index in range(2)))

    def of(name: str) -> dict[str, Any]:
        kind = PIPELINES[name]
        if not kind.given:
            return {"prompts": str(place / "prompts.txt")}
        return {"inputs": str(place / ("small" if kind.enlarges else "large"))}

    return of


@pytest.mark.parametrize("name", PIPELINES)
def test_inherit_draws_as_plain_diffusers_draws(name: str, model: Model, inputs: Any, tmp_path: Path) -> None:
    """Its plain pictures are diffusers' own, with a plan they are others; the report shows what they are drawn from."""
    strength = {"strength": 0.9} if "strength" in PIPELINES[name].takes else {}
    recipe = {"verb": "inherit", "model": str(model(name)), "plan": PLAN, **COMPARED, **inputs(name), **strength}
    run = done(tmp_path, recipe)
    plain = getattr(diffusers, name).from_pretrained(model(name))
    plain.set_progress_bar_config(disable=True)
    seats = [0, 1, 1, 1]  # a UNet call of a small model has four rows, filled up
    noise = [torch.Generator().manual_seed(prompt_seed(0, seat)) for seat in seats]
    settings = {"num_inference_steps": FEW["steps"], "guidance_scale": 3.0, "generator": noise, **strength}
    drawn = plain(**pictures.call(name, seats), **settings).images[:2]
    held = [(run / "samples/plain" / f"{index:06}.png").read_bytes() for index in range(2)]
    assert [each.tobytes() for each in drawn] == [read_rgb(each).tobytes() for each in held]
    report = read(run)
    assert report.setups["plain"].get("strength") == strength.get("strength")
    assert figures(report, "psnr_db")["the plan"] < 100
    assert report.images is not None
    assert ("inputs" in report.images.folders) == bool(PIPELINES[name].given)
    if PIPELINES[name].given:
        assert "each drawn from its picture" in report.protocols["quality"]["prompts"]
        shown = read_rgb((run / "inputs/000000.png").read_bytes())
        as_given = shown.tobytes() == pictures.picture(0, shown.width).tobytes()
        assert as_given == ("mask" not in PIPELINES[name].takes), "white where it paints"
    assert type(asdm_cli.load(str(run / "model"), "cpu")).__name__ == name


RECIPES: dict[str, Callable[[str], dict[str, Any]]] = {
    "bench": lambda model: {"models": _two(model), "repeats": 1, "warmups": 1, "batches": [1], "steps": 4},
    "eval": lambda model: {"models": _two(model), **FEW},
    "switch": lambda model: {
        "unets": {"a": {"model": model}, "b": {"model": model, "plan": PLAN}},
        "by": "step", "parts": [{"unet": "b", "until": 2}, {"unet": "a"}], **COMPARED,
    },
}  # fmt: skip


def _two(model: str) -> list[dict[str, Any]]:
    return [{"name": "a", "model": model}, {"name": "b", "model": model, "plan": PLAN}]


@pytest.mark.parametrize(
    ("name", "verb"), [*((INPAINT, verb) for verb in RECIPES), (EDIT, "switch"), (UPSCALE, "eval")]
)
def test_other_verbs_draw(
    name: str, verb: str, model: Model, inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != INPAINT:
        monkeypatch.setattr(costs, "in_fresh_process", lambda *_: (1, 1))  # which takes seconds
    run = done(tmp_path, {"verb": verb, **RECIPES[verb](str(model(name))), **inputs(name), "device": "cpu"})
    report = read(run)
    calls = figures(report, "calls")
    if calls:  # as they were seen while somebody drew
        assert {name: count for name, count in calls.items() if count != 4} in ({}, {"2 steps": 2})
    if verb == "bench":
        assert report.protocols["cost"]["drawn_from"].endswith(": 0000.png")
    else:
        assert "inputs" in report.images.folders
        assert len(list((run / "inputs").glob("*.png"))) == 2


def test_a_shard_is_as_good_as_a_folder(inputs: Any, tmp_path: Path) -> None:
    """As `asdm pack` writes it: masks go with their pictures."""
    folder = inputs(INPAINT)["inputs"]
    assert asdm("pack", folder, "--out", tmp_path / "shards", "--quiet").code == 0
    found = [read_prompts("", None, 2, inputs=source) for source in (folder, str(tmp_path / "shards/*.tar"))]
    one, other = ([(each.image, each.mask) for each in read.given] for read in found)
    assert one == other
    assert len(one) == 4
    assert all(mask for _, mask in one)
    assert found[0].prompts == found[1].prompts == (caption(0), caption(1)) * 2
    assert found[0].digest == found[1].digest
    assert [given.image for given in found[0].last(1).given] == [one[-1][0]]


def test_pictures_change_what_is_drawn_and_nothing_else_does(model: Model, inputs: Any, tmp_path: Path) -> None:
    """An evaluation that finds pictures of other inputs draws anew."""
    folder = shutil.copytree(inputs(IMAGE)["inputs"], tmp_path / "inputs")
    recipe = {"verb": "eval", "models": [{"name": "a", "model": str(model(IMAGE))}], **FEW, "inputs": str(folder)}
    drawn = []
    for index in (0, 0, 5):
        (folder / "0000.png").write_bytes(png(pictures.picture(index)))
        run = done(tmp_path, recipe)
        drawn.append([(run / "samples/a" / f"{each:06}.png").read_bytes() for each in range(2)])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[2][0]
    assert drawn[0][1] == drawn[2][1]


def _without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def _resized(width: int, height: int, *names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names or [each.name for each in folder.glob("*.png")]:
            with Image.open(folder / name) as held:
                resized = held.resize((width, height))
            resized.save(folder / name)

    return change


def _broken(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(b"no picture")

    return change


FAULTS: dict[str, tuple[str, Callable[[Path], None], dict[str, Any], str]] = {
    "none": (INPAINT, _without(), {"inputs": None}, "plain is a .*InpaintPipeline, which draws from a picture; name"),
    "for none": (TEXT, _without(), {}, "plain is a StableDiffusionPipeline, which draws from prompts alone; leave"),
    "for a few steps": (LCM, _without(), {}, "plain is a LatentC.*, which draws from prompts alone; leave them out"),
    "no mask": (INPAINT, _without("0001.mask.png"), {}, "inputs: inputs: 0001.png: has no mask, and .*; put NAME.mask"),
    "no masks": (INPAINT, _without("0000.mask.png", "0001.mask.png"), {}, r"0000.png: has no mask \(and 1 more\)"),
    "no caption": (IMAGE, _without("0001.txt"), {}, "0001.png: no caption .*mend them, or leave them out"),
    "no picture": (IMAGE, _broken("0001.png"), {}, "0001.png: unreadable image .*mend them, or leave them out"),
    "no picture of a mask": (INPAINT, _broken("0001.mask.png"), {}, "0001.png: unreadable image"),
    "larger": (IMAGE, _resized(48, 48), {}, "48 x 48 pixels .and 1 more., and .* 32 x 32; give `size: 48"),
    "to enlarge": (UPSCALE, _resized(16, 16), {}, "is 16 x 16 pixels .*plain draws from 8 x 8; give `size: 64`, or"),
    "one wider": (IMAGE, _resized(48, 32, "0001.png", "0001.mask.png"), {}, "0001.png: is 48 x 32 .* save them all so"),
    "another mask": (INPAINT, _resized(16, 16, "0001.mask.png"), {}, "0001.png: mask of another size .16 x 16 pixels"),
    "nowhere": (IMAGE, _without(), {"inputs": "nowhere"}, "nowhere: no such file"),
    "prompts too": (IMAGE, _without(), {"prompts": "x.txt"}, "prompts: does not go with 'inputs', whose captions"),
    "strength of none": (EDIT, _without(), {"strength": 0.5}, "strength: a .*InstructPix2PixPipeline takes none"),
    "guidance of none": (IMAGE, _without(), {"image_guidance": 2.0}, "image_guidance: a .*Img2ImgPipeline takes none"),
    "too little": (IMAGE, _without(), {"strength": 0.1}, "plain: strength: 0.1 of 4 steps are none; raise `strength`"),
    "a third part": (EDIT, _without(), {"plan": None, "target": {"speedup": 1.5}}, "target: a .* has three parts of"),
    "nothing drawn": (IMAGE, _without(), {"measure": False}, "inputs: is only there to be measured, and 'measure' is"),
    "against real ones": (IMAGE, _without(), {"metrics": ["kid"]}, "kid compare with real pictures, .* measure psnr"),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_what_does_not_fit_is_told_beforehand(what: str, model: Model, inputs: Any, tmp_path: Path) -> None:
    name, spoil, changes, words = FAULTS[what]
    source = Path(inputs(name if PIPELINES[name].given else IMAGE)["inputs"])
    spoil(Path(shutil.copytree(source, tmp_path / "inputs")))
    recipe = {
        "verb": "inherit",
        "model": str(model(name)),
        "plan": PLAN,
        **COMPARED,
        "inputs": str(tmp_path / "inputs"),
    }
    recipe = {key: value for key, value in (recipe | changes).items() if value is not None}
    said = ran(tmp_path, recipe, "--dry-run")
    assert said.code == 2, said.text
    assert re.search(words, said.text), said.text
    assert not (tmp_path / "run").exists()


def test_a_way_out_that_is_told_works(model: Model, inputs: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(inputs(UPSCALE)["inputs"], tmp_path / "inputs"))
    _resized(16, 16)(folder)
    recipe = {"verb": "inherit", "model": str(model(UPSCALE)), "plan": PLAN, **COMPARED, "inputs": str(folder)}
    run = done(tmp_path, {**recipe, "size": 64, "fewer_steps": [3]})
    with Image.open(run / "samples/plain/000000.png") as drawn:
        assert drawn.size == (64, 64)


def test_what_verbs_cannot_do_with_some_pipelines(model: Model, inputs: Any, tmp_path: Path) -> None:
    search = {"verb": "switch", "unets": {"a": {"model": str(model(EDIT))}}, "search": {"budgets": [0.5]}, **COMPARED}
    said = ran(tmp_path, {**search, **inputs(EDIT)}, "--dry-run")
    assert (said.code, "search: weighs answers by the two halves of guidance" in said.text) == (2, True), said.text
    bench = {"verb": "bench", "models": [{"name": "a", "model": str(model(IMAGE))}], "device": "cpu"}
    said = ran(tmp_path, bench, "--dry-run")
    assert "name shards or a folder of pictures with captions (NAME.png, NAME.txt) (or `images: false`" in said.text
    assert ran(tmp_path, {**bench, "images": False}, "--dry-run").code == 0
    said = ran(tmp_path, {**bench, "images": False, **inputs(IMAGE)}, "--dry-run")
    assert "inputs: is only there to draw from, and 'images' is false" in said.text
    assert (
        "pictures need a StableDiffusionPipeline or"
        in asdm("distill", _distil(model(IMAGE), tmp_path), "--dry-run").text
    )


def _distil(model: Path, folder: Path) -> Path:
    recipe = {"verb": "distill", "teacher": str(model), "students": [{"name": "s", "model": str(model)}], "steps": 2}
    (folder / "distil.yaml").write_text(yaml.safe_dump({**recipe, "out": str(folder / "run")}))
    return folder / "distil.yaml"


def test_a_search_draws_from_pictures(model: Model, inputs: Any, tmp_path: Path) -> None:
    settings = {**COMPARED, "limit": 1, "inputs": inputs(INPAINT)["inputs"], "search": {"budgets": [0.7], "prompts": 1}}
    report = read(done(tmp_path, {"verb": "switch", "unets": {"a": {"model": str(model(INPAINT))}}, **settings}))
    assert "each drawn from its picture" in report.protocols["search"]["prompts"]


def test_a_model_in_the_recipes_place(model: Model, inputs: Any, tmp_path: Path) -> None:
    """Its pipeline's guidance and steps; and the way out that an unmeasured plan names."""
    said = asdm("inherit", model(LCM), "--out", tmp_path / "lcm")
    assert said.code == 0, said.err
    facts = read(tmp_path / "lcm").setups["the plan"]
    assert (facts["steps"], facts["guidance"]) == (4, 8.5)
    given = ("--measure", "--inputs", inputs(IMAGE)["inputs"], "--steps", 4, "--repeats", 1, "--device", "cpu")
    said = asdm("inherit", model(IMAGE), *given, "--out", tmp_path / "image", "--set", "fewer_steps=[3]")
    assert said.code == 0, said.err
