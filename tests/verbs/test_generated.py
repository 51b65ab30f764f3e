"""`data: {generate: ...}`: the teacher draws once what its students learn from, whatever happens meanwhile."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from asdm_cli.models.directory import find
from asdm_cli.models.load import load_pipeline
from asdm_cli.models.schedulers import set_sampler
from asdm_cli.profiling import expected
from asdm_cli.recipe.verbs import DistillRecipe, Generate
from asdm_cli.sampling.generate import SamplingSettings, draw
from asdm_cli.sampling.image_set import ImageSet
from asdm_cli.training import generated
from asdm_cli.training.generated import PICTURES, GeneratedData
from asdm_cli.training.plan import make_plan
from asdm_cli.unet.flops import macs
from asdm_cli.unet.weights import WEIGHTS
from tests import tiny
from tests.expanding import run as ran
from tests.forking import ours, together

PROMPTS = ["a fox", "an owl, at night", "a cat", "a fox", "a dog"]
ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _two_pictures_a_shard() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generated, "SHARD", 2)
        yield


@pytest.fixture
def recipe(shallow_pipeline: Path, shallow_base: Path, tmp_path: Path) -> dict[str, Any]:
    return asked(shallow_pipeline, shallow_base, tmp_path)


@pytest.fixture(scope="module")
def whole(shallow_pipeline: Path, shallow_base: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that come of it where nobody interrupts it."""
    folder = tmp_path_factory.mktemp("whole")
    said = ran(folder, asked(shallow_pipeline, shallow_base, folder))
    assert said.code == 0, said.err
    return (folder / "run/model/unet" / WEIGHTS).read_bytes()


def asked(teacher: Path, student: Path, folder: Path) -> dict[str, Any]:
    """Somebody with a checkpoint and a list of prompts."""
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    return {
        "verb": "distill",
        "teacher": str(teacher),
        "students": [{"name": "base", "model": str(student)}],
        "data": {
            "generate": {"prompts": str(folder / "prompts.txt"), "steps": 3, "seed": 5, "sampler": "ddim"},
            "cache_folder": str(folder / "cache"),
        },
        "steps": 2,
        "batch": 4,
        "precision": "float32",
        "device": "cpu",
    }


def data(recipe: dict[str, Any]) -> GeneratedData:
    plan = make_plan(DistillRecipe.model_validate({**recipe, "out": "unused"}))
    assert plan.generated
    return plan.generated


def held(shards: Sequence[Any]) -> tuple[list[str], list[bytes]]:
    """Captions and pictures, in order."""
    captions, pictures = list[str](), list[bytes]()
    for shard in shards:
        with tarfile.open(shard.url) as archive:
            for member in archive:
                read = archive.extractfile(member)
                assert read
                if member.name.endswith(".txt"):
                    captions.append(read.read().decode())
                elif member.name.endswith(".png"):
                    pictures.append(read.read())
    return captions, pictures


def test_a_student_learns_from_what_its_teacher_draws(
    recipe: dict[str, Any], shallow_pipeline: Path, tmp_path: Path
) -> None:
    """Which is what the teacher draws by itself; shards like any others, and drawn once."""
    home = data(recipe).folder
    said = ran(tmp_path / "one", recipe)
    assert said.code == 0, said.err
    assert "5 pictures of prompts.txt" in said.text
    assert not (home / PICTURES).exists()
    made = data(recipe)
    captions, pictures = held(made.shards())
    assert (captions, len(made.shards())) == (PROMPTS, 3)
    pipe = load_pipeline(find(str(shallow_pipeline)), CPU, torch.float32)
    set_sampler(pipe, "ddim")
    alone = ImageSet(tmp_path / "alone", len(PROMPTS))
    for index, image in draw(pipe, PROMPTS, range(len(PROMPTS)), SamplingSettings(3, 3.0, 32, 5)):
        alone.save(index, image)
    assert pictures == [alone.path(index).read_bytes() for index in range(len(PROMPTS))]
    assert len(set(pictures)) == 5, "of one prompt that stands twice, too"
    card = (tmp_path / "one/run/model/README.md").read_text()
    assert "5 pictures of prompts.txt" in card
    assert str(tmp_path) not in card
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generated, "draw", lambda *_, **__: pytest.fail("nothing is left to draw"))
        again = ran(tmp_path / "two", {**recipe, "seed": 1})
    assert again.code == 0, again.err
    assert "complete" in again.text


@pytest.mark.parametrize("killed", [0, 1, 4, "packing"])
def test_killed_at_any_moment_it_goes_on(
    killed: int | str, recipe: dict[str, Any], whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, drawn = ImageSet.save, list[int]()

    def save(self: ImageSet, index: int, image: Any) -> None:
        if len(drawn) == killed:
            raise KeyboardInterrupt
        drawn.append(index)
        saved(self, index, image)

    def pack(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ImageSet, "save", save)
        if killed == "packing":
            patch.setattr(generated, "pack", pack)
        assert ran(tmp_path / "run", recipe).code == 130
    kept = 5 if killed == "packing" else killed
    assert ("to be drawn" if kept == 0 else f"{kept} are there") in str(data(recipe))
    if kept:  # one of them is damaged meanwhile
        data(recipe).pictures.path(0).write_bytes(b"half")
    killed, before = -1, len(drawn)
    monkeypatch.setattr(ImageSet, "save", save)
    said = ran(tmp_path / "run", recipe)
    assert said.code == 0, said.err
    assert len(drawn) - before == 5 - kept + bool(kept)
    left = data(recipe).folder / "pictures"
    assert not left.exists()
    left.mkdir()  # as of a run that was killed after packing
    assert ran(tmp_path / "again", recipe).code == 0
    assert not left.exists()
    assert (tmp_path / "run/run/model/unet" / WEIGHTS).read_bytes() == whole


def test_processes_share_the_drawing(recipe: dict[str, Any], tmp_path: Path) -> None:
    """Of 40 pictures, in stretches of one call."""
    recipe["data"]["generate"]["per_prompt"] = 8
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "out": str(tmp_path / "run")}))
    code = "from tests.verbs.test_generated import main; main()"
    told = ours(code, tmp_path / "recipe.yaml", cwd=ROOT, environments=together(2))
    assert [each.code for each in told] == [0, 0], told
    mine = {**recipe, "data": {**recipe["data"], "cache_folder": str(tmp_path / "mine")}}
    assert ran(tmp_path / "alone", mine).code == 0
    assert held(data(recipe).shards()) == held(data(mine).shards())


def main() -> None:
    import sys

    from asdm_cli.cli import main as asdm

    generated.SHARD = 2
    asdm(["distill", sys.argv[1]])


def test_what_pictures_depend_on_is_in_the_folders_name(
    recipe: dict[str, Any], shallow_pipeline: Path, tmp_path: Path
) -> None:
    """Every key, every weight, the sampler's config, the prompts' text; not the model's place or its files' times."""
    first = data(recipe)
    copy = Path(shutil.copytree(shallow_pipeline, tmp_path / "copy"))
    moved = {**recipe, "teacher": str(copy)}
    names = [first.folder.name, data(moved).folder.name]
    assert names[0] == names[1]
    changes: dict[str, Any] = {"per_prompt": 2, "steps": 4, "sampler": "own", "guidance": 1.0, "seed": 6}
    assert {*Generate.model_fields} == {*changes, "prompts", "dtype"}
    for key, value in {**changes, "dtype": "bfloat16"}.items():
        settings = {**recipe["data"]["generate"], key: value}
        names.append(data({**recipe, "data": {**recipe["data"], "generate": settings}}).folder.name)
    names.append(data({**recipe, "data": {**recipe["data"], "resolution": 64}}).folder.name)
    for part in ("unet", "vae", "text_encoder"):
        file = copy / part / ("model.safetensors" if part == "text_encoder" else WEIGHTS)
        with file.open("r+b") as opened:
            opened.seek(-1, os.SEEK_END)
            opened.write(b"\1")
        names.append(data(moved).folder.name)
    config = copy / "scheduler/scheduler_config.json"
    config.write_text(config.read_text() + "\n")
    names.append(data(moved).folder.name)
    (tmp_path / "prompts.txt").write_text("a fox\n")
    names.append(data(recipe).folder.name)
    assert len(set(names[1:])) == len(names) - 1 == 13


def test_a_dry_run_counts_the_drawing(
    recipe: dict[str, Any], shallow_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there already is not counted."""
    asked: list[expected.Work] = []
    monkeypatch.setattr(expected, "expected", lambda work: asked.append(work) or "about a week")
    said = ran(tmp_path / "dry", recipe, "--dry-run")
    assert said.code == 0, said.err
    for words in ("5 pictures of prompts.txt", "3 steps, sampler ddim", "to be drawn", "It would take about a week."):
        assert words in said.text, words
    assert not (tmp_path / "cache").exists()
    assert ran(tmp_path / "run", recipe).code == 0
    assert ran(tmp_path / "dry", recipe, "--dry-run").code == 0
    before, after = (work.macs for work in asked)
    call = macs(find(str(shallow_pipeline)).config("unet"), 1, (8, 8), tiny.TOKENS).total
    assert before - after == 5 * 3 * 2 * call


def test_drawn_pictures_stand_beside_others(recipe: dict[str, Any], tmp_path: Path) -> None:
    both = {**recipe, "data": {**recipe["data"], "train": "pocket-held-out"}}
    plan = make_plan(DistillRecipe.model_validate({**both, "out": "unused"}))
    assert [Path(each.url).name for each in plan.learnt_from()] == [
        "held-out.tar.gz",
        "00000.tar",
        "00001.tar",
        "00002.tar",
    ]
    said = ran(tmp_path / "run", both)
    assert said.code == 0, said.err
    assert "| samples | 133 |" in (tmp_path / "run/run/model/README.md").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": "none.txt"}, "data.generate.prompts: none.txt: no such file"),
        ({"steps": 2000}, "data.generate: steps: 2000 are more than the 1000"),
    ],
)
def test_what_cannot_be_drawn_is_told_before(
    change: dict[str, Any], words: str, recipe: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**recipe["data"]["generate"], **change}
    said = ran(tmp_path, {**recipe, "data": {**recipe["data"], "generate": settings}}, "--dry-run")
    assert (said.code, words in said.text) == (2, True), said.err


def test_captions_without_pictures_are_learnt_under(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("a red fox\na blue owl\n")
    other = {"probability": [[0, 1.0], [1000, 0.5]], "captions": str(tmp_path / "more.txt")}
    said = ran(tmp_path, {**recipe, "random_conditioning": other})
    assert said.code == 0, said.err
    assert "2 encoded captions in" in said.text
    card = (tmp_path / "run/model/README.md").read_text()
    assert "2 captions without pictures, probability 1 at timestep 0, 0.5 at timestep 1,000" in card
    assert len(list((tmp_path / "cache").glob("*/cache.json"))) == 2
