"""Directories from elsewhere, by kind: hostile texts, huge numbers, files that are none. Every verb says so in words
that steer no terminal, names the file, and does not wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from asdm_cli.console import LINES
from asdm_cli.report.run_directory import to_json
from tests.hardening.kinds import HOSTILE, HUGE, NO_FILES, OTHERS, copied, leaves, renamed, replaced, rewritten
from tests.hardening.uses import tried
from tests.report import made
from tests.typed import Said, asdm

HISTORY = [
    {"verb": "assemble", "asdm": "0.1.0", "source": "x", "taken": {"a": ["down.0"]}},
    {"verb": "distill", "asdm": "0.1.0", "source": "x"},
]
CACHE = {"kind": "feature-cache", "rules": [{"nodes": "up.3", "schedule": {"mode": "uniform", "interval": 2}}]}
USES = ("show", "eval", "student", "bench", "prune", "generate")


@pytest.fixture
def model(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """With everything that a directory of ours may hold."""
    whole = copied(tiny_pipeline, tmp_path / "model")
    (whole / "asdm.json").write_text(json.dumps({"history": HISTORY, "patches": [CACHE]}))
    return whole


def fault(said: Said) -> str:
    """What is wrong with an answer, whatever it answers."""
    raw = {each for each in said.out + said.err if not each.isprintable() and each not in LINES}
    if raw or "bug in asdm" in said.err or "Traceback" in said.err or said.code not in (0, 1, 2):
        return f"code {said.code}, raw {raw}: {said.err[-300:]!r}"
    return ""


def answered(how: str, bad: Path, folder: Path) -> tuple[Said, str]:
    changes = {}
    if how == "student":  # the teacher too, and what asdm.json says of its donors
        student = {"name": "s", "model": str(bad), "freeze": "from a"}
        changes = {"teacher": str(bad), "students": [student]}
    said = tried(how, bad, bad, folder, **changes)
    return said, fault(said)


def every(step: int, begin: int, cases: list[Any]) -> list[Any]:
    """A part of the cases, another one for each kind, that goes through all files."""
    return cases[begin % step :: step]


def changed(model: Path, kind: str) -> list[tuple[str, Path, Any]]:
    """(what was done, file, new value) for every place of a model's JSON files."""
    found = []
    for file in sorted(model.rglob("*.json")):
        held, file = json.loads(file.read_text()), file.relative_to(model)
        for way, _ in islice(leaves(held), 60):  # of long vocabularies some
            if kind == "text":
                found.append((f"{file} {way}: text", file, replaced(held, way, HOSTILE)))
                if isinstance(way[-1], str):
                    found.append((f"{file} {way}: key", file, renamed(held, way, HOSTILE)))
            else:
                by = HUGE if kind == "number" else OTHERS
                found += [(f"{file} {way}: {each!r}", file, replaced(held, way, each)) for each in by]
    return found


@pytest.mark.parametrize(("kind", "step"), [("text", 13), ("number", 61), ("another kind", 47)])
def test_values_of_a_model(kind: str, step: int, model: Path, tmp_path: Path) -> None:
    faults, tried = [], Counter[int]()
    for number, (what, file, value) in enumerate(every(step, 3, changed(model, kind))):
        bad = copied(model, tmp_path / "bad")
        rewritten(bad / file, value)
        said, wrong = answered(USES[number % len(USES)], bad, tmp_path)
        tried[said.code] += 1
        faults += [f"{what}, {USES[number % len(USES)]}: {wrong}"] if wrong else []
    assert not faults, "\n".join(faults)
    assert tried.total() >= 25
    assert tried[2] >= 2, "some are refused"


def test_files_that_are_none(model: Path, tmp_path: Path) -> None:
    faults, tried = [], Counter[str]()
    files = [file.relative_to(model) for file in sorted(model.rglob("*")) if file.is_file()]
    for number, (file, (name, make)) in enumerate((file, each) for file in files for each in NO_FILES.items()):
        bad = copied(model, tmp_path / "bad")
        (bad / file).unlink()
        make(bad / file)
        how = USES[(number + number // len(USES)) % len(USES)]
        said, wrong = answered(how, bad, tmp_path)
        told = said.code == 2 and str((bad / file).parent) in said.text
        faults += [f"{file} is {name}, {how}: {wrong or said.err[-200:]}"] if wrong or not told else []
        tried[how] += 1
    assert not faults, "\n".join(faults)
    assert tried.total() >= 100
    assert set(tried) == set(USES)


@pytest.mark.parametrize("name", list(NO_FILES))
def test_recipes_that_are_no_files(name: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    NO_FILES[name](recipe)
    for arguments in (("check", recipe), ("prune", recipe)):
        said = asdm(*arguments)
        assert said.code == 2
        assert str(recipe) in said.text
        assert not fault(said)


def test_names_of_tensors_and_directories_steer_no_terminal(model: Path, tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "|").replace("\udcff", "")
    bad = model.rename(tmp_path / name)
    file = bad / "unet/diffusion_pytorch_model.safetensors"
    raw = file.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    text = raw[8:end].replace(b'"conv_in.bias"', json.dumps(HOSTILE.replace("\udcff", "")).encode())
    file.unlink()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])
    for how in USES:
        said, wrong = answered(how, bad, tmp_path)
        assert not wrong, (how, wrong)
        if how in ("show", "generate"):
            told = " ".join((said.out + said.err).split())
            assert "\\x1b[31m" in told
            assert "[bold red]a[|] [|nothing]" in told, "markup is told as it is"


@pytest.mark.parametrize("report", [made.compared, made.pruned, made.trained])
def test_forged_reports(report: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("verb: bench\n")
    held, faults, refused = to_json(report()), [], 0
    cases = [(way, by) for way, _ in leaves(held) for by in (HOSTILE, *OTHERS, *HUGE)]
    for way, by in every(5, 1, cases)[:150]:
        (run / "report.json").write_text(json.dumps(replaced(held, way, by)))
        said = asdm("show", run)
        refused += said.code == 2
        if wrong := fault(said):
            faults.append(f"{way} is {by!r}: {wrong}")
    assert not faults, "\n".join(faults)
    assert refused >= 10


def test_a_stdout_that_nobody_reads_is_no_failure(tmp_path: Path, tiny_pipeline: Path) -> None:
    """As before `| head -1`, which may have gone when the path is printed."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"verb": "prune", "model": str(tiny_pipeline), "remove": "mid", "out": "run"}))
    for arguments in (["prune", str(recipe)], ["show", "run"], ["schema"]):
        read, write = os.pipe()
        os.close(read)
        words = [sys.executable, "-m", "asdm_cli", *arguments]
        done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
        os.close(write)
        assert (done.returncode, "BrokenPipe" in done.stderr) == (0, False), done.stderr
    assert (tmp_path / "run/model/model_index.json").is_file()
