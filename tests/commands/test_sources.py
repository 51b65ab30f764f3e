"""No command writes where a source of its own would have to go, whatever the source is and however it is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from asdm_cli.models.write import mark
from tests.data import tars
from tests.typed import Said, asdm

Words = tuple[object, ...]


def verb(folder: Path, **recipe: Any) -> Words:
    file = folder / f"{recipe['verb']}.yaml"
    file.write_text(yaml.safe_dump({"out": str(folder / "out"), **recipe}))
    return (recipe["verb"], file)


def student(folder: Path, **data: str) -> Words:
    model = str(folder / "elsewhere")
    more = {"teacher": model, "students": [{"name": "s", "model": model}], "data": data, "steps": 1}
    return verb(folder, verb="distill", **more)


def stages(model: object) -> dict[str, Any]:
    return {"pruned": {"verb": "prune", "model": str(model), "remove": "mid"}}


COMMANDS: dict[str, Callable[[Path], Words]] = {
    "a model": lambda here: verb(here, verb="prune", model=str(here / "out/model"), remove="mid"),
    "the run itself": lambda here: verb(here, verb="prune", model=str(here / "out"), remove="mid"),
    "a donor": lambda here: verb(
        here, verb="assemble", donors={"a": str(here / "elsewhere"), "b": str(here / "out")}, levels=["a"] * 4, mid="a"
    ),
    "a contestant": lambda here: verb(here, verb="bench", models=[{"name": "m", "model": str(here / "out/model")}]),
    "shards by a pattern": lambda here: student(here, train=f"{here}/out/*.tar"),
    "shards in braces": lambda here: student(here, train=f"{here}/{{out,gone}}/0.tar"),
    "prompts": lambda here: verb(
        here, verb="eval", models=[{"name": "m", "model": "pocket"}], prompts=str(here / "out/0.tar")
    ),
    "a stage's model": lambda here: verb(
        here, verb="run", stages={"p": {"verb": "prune", "model": str(here / "out"), "remove": "mid"}}
    ),
    "the stages": lambda here: verb(
        here,
        verb="run",
        kept=str(here / "out/stages"),
        stages={"p": {"verb": "prune", "model": "pocket", "remove": "mid"}},
    ),
    "pictures to pack": lambda here: ("pack", here / "out/photos", "--out", here / "out"),
    "a model that draws": lambda here: ("generate", here / "out/model", "a fox", "--out", here / "out"),
    "a model by a link": lambda here: verb(here, verb="prune", model=str(here / "link"), remove="mid"),
}


@pytest.fixture
def here(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """`out` is ours in all respects, and holds every kind of source; `link` leads to the model in it."""
    shutil.copytree(tiny_pipeline, tmp_path / "out/model")
    shutil.copytree(tiny_pipeline, tmp_path / "elsewhere")
    tars.write(tmp_path / "out/0.tar", tars.samples(0))
    (tmp_path / "out/photos").mkdir()
    (tmp_path / "out/photos/a.png").write_bytes(tars.picture(0))
    (tmp_path / "out/photos/a.txt").write_text("a fox")
    (tmp_path / "link").symlink_to(tmp_path / "out/model")
    mark(tmp_path / "out")
    return tmp_path


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_source_inside_the_target_is_refused(kind: str, here: Path) -> None:
    words = COMMANDS[kind](here)
    before = sorted(here.rglob("*"))
    said: Said = asdm(*words, "--overwrite")
    assert (said.code, said.out) == (2, "")
    assert f"{here / 'out'}: " in said.text
    assert f"which is read, lies in {here / 'out'}; choose another place to write to" in said.text
    assert sorted(here.rglob("*")) == before
