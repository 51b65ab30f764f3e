"""A recipe to start from: valid as it is, and every key of its verb in it with the default that the class has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from asdm_cli.recipe.load import dump_given, load
from asdm_cli.recipe.reader import Loader, parse
from asdm_cli.recipe.reference import json_schema
from asdm_cli.recipe.starter import starter
from asdm_cli.recipe.verbs import VERBS
from tests.typed import asdm


@pytest.mark.parametrize("verb", VERBS)
def test_as_it_is_it_says_what_the_example_says(verb: str, tmp_path: Path) -> None:
    texts = {"written": starter(verb), "example": VERBS[verb].EXAMPLE, "mine": starter(verb, "org/mine@v1")}
    said = {}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        said[name] = dump_given(load(tmp_path / name, verb))
    assert said["written"] == said["example"]
    assert "org/mine@v1" in said["mine"]
    for model in ("/data/models, old/sd15", "/data/m #1", "runs/x: y", "C:\\sd\\1.5", "007", "1e4", "yes"):
        (tmp_path / "odd").write_text(starter(verb, model))
        assert json.dumps(model) in json.dumps(load(tmp_path / "odd", verb).model_dump(mode="json")) or verb in (
            "run",
            "switch",
        )


@pytest.mark.parametrize("verb", VERBS)
def test_every_key_is_there_with_its_default(verb: str) -> None:
    text, schema = starter(verb), json_schema(verb)
    live = parse(text, "starter").data
    found = dict(re.findall(r"^# (\w+):(.*)$", text, flags=re.MULTILINE))
    for key, node in schema["properties"].items():
        assert (key in live) != (key in found), key
        if key in found and isinstance(node.get("default"), str | int | float | bool | list):
            read = parse(f"{key}:{found[key]}", "starter").data[key]
            assert json.dumps(read) == json.dumps(node["default"]), key
    assert yaml.compose(re.sub(r"^# (?=\w+:|  )", "", text, flags=re.MULTILINE), Loader=Loader) is not None


def test_what_an_example_has_otherwise_is_there_too() -> None:
    """The measured way to prune, where the example names what goes; of a mapping what the example leaves out."""
    prune, distill = starter("prune"), starter("distill")
    assert "## in its place, remove:\n" in prune
    for key in ("budget", "by", "calls", "cache_folder"):
        assert len(re.findall(rf"^##   {key}:", prune, flags=re.MULTILINE)) == 1, key
    assert len(re.findall(r"^data: .*train:", distill, flags=re.MULTILINE)) == 1
    assert re.search(r"^##   cache_folder:", distill, flags=re.MULTILINE)


def test_the_command_writes_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = asdm("init", "prune", "--model", "PATH")
    assert (said.code, said.out) == (0, "prune.yaml\n")
    assert load(Path("prune.yaml")).model == "PATH"  # type: ignore[attr-defined]
    again, strange = asdm("init", "prune"), asdm("init", "prun")
    assert again.code == 2
    assert "prune.yaml: is there already; choose another --out" in again.text
    assert (strange.code, "did you mean 'prune'" in strange.text) == (2, True)


def test_another_model_than_the_bundled_one_has_its_own_data() -> None:
    bundled, mine = starter("distill", "pocket"), starter("distill", "models/mine.safetensors")
    assert "train: pocket" in bundled
    assert "train: pocket" not in mine
    assert "held_out: pocket" not in mine
    assert "train: shards/*.tar" in mine
    assert "lr: 5.0e-5" in mine
