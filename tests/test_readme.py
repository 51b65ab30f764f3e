"""What README and docs tell people to type is typed, page by page and line by line, with models a few thousand times
smaller and fewer steps; what they refer to is there."""

from __future__ import annotations

import ast
import glob
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import asdm_cli
from asdm_cli.data import shards
from asdm_cli.models import directory, sources
from asdm_cli.models.directory import ModelDirectory
from asdm_cli.recipe.load import load
from tests import drawings, pages, tiny
from tests.pages import ROOT, Block
from tests.typed import asdm

SMALL: dict[str, list[str]] = {
    "assemble-pocket-explore": [
        "explore.combinations=[{levels: [base, base, original, original], mid: none}]",
        "explore.budget.latency_ratio=9",
        *("explore.limit=1", "explore.steps=2", "explore.repeats=1", "explore.metrics=[psnr]"),
    ],
    "bench-pocket": ["repeats=1", "warmups=1", "steps=2", "batches=[1]"],
    "condconv-pocket-fold": ["fold.limit=1", "fold.steps=2"],
    "distill-pocket-base": [
        *("steps=2", "batch=2", "optimizer.warmup=1", "checkpoint=2"),
        *("validation.every=2", "validation.steps=2", "validation.prompts=[a fox]"),
    ],
    "distill-sd15-base": ["steps=1", "batch=2", "validation.steps=2"],
    "eval-pocket-against-original": ["limit=2", "steps=4", "repeats=1", "bootstrap=10", "fewer_steps=[2]"],
    "eval-pocket-together": ["limit=1", "steps=2", "repeats=1", "bootstrap=10", "metrics=[psnr]", "fewer_steps=[1]"],
    "eval-pocket": ["limit=4", "steps=2", "bootstrap=10", "metrics=[kid, clip_score]"],
    "inherit-pocket-block": ["limit=1", "steps=2", "repeats=1", "metrics=[psnr]", "fewer_steps=[1]"],
    "inherit-sd15-block": ["limit=1", "steps=2", "repeats=1", "metrics=[psnr]", "fewer_steps=[1]", "sweep=[]"],
    "prune-pocket-budget": ["remove.limit=1", "remove.steps=2", "remove.calls=1"],
    "run-pocket": [
        *("stages.distilled.steps=1", "stages.distilled.batch=2", "stages.distilled.optimizer.warmup=0"),
        *("stages.inheriting.limit=1", "stages.inheriting.steps=2", "stages.inheriting.repeats=1"),
        *("stages.inheriting.fewer_steps=[1]", "stages.cost.steps=2", "stages.cost.repeats=1"),
        *("stages.cost.warmups=1", "stages.cost.batches=[1]", "stages.cost.images=false"),
        *("stages.worth.limit=4", "stages.worth.steps=2", "stages.worth.bootstrap=10"),
    ],
    "switch-pocket-base": ["limit=1", "steps=2", "repeats=1", "metrics=[psnr]", "fewer_steps=[1]", "ratios=null"],
}
"""Recipe -> what makes it small: amounts and how many ways take part, nothing else."""
OF_MODELS: dict[str, list[str]] = {
    "bench": ["repeats=1", "warmups=1", "steps=2", "images=false"],
    "eval": ["limit=1", "steps=2", "bootstrap=10"],
    "inherit": ["limit=1", "steps=2", "repeats=1", "bootstrap=10", "metrics=[psnr]", "fewer_steps=[1]"],
}
"""Verb -> the same for what is typed without a recipe."""
NOT_RUN: dict[str, str] = {
    "table1": "six stages; the tests of asdm run have a smaller one",
    "switch-pocket-search": "its students come from make table1; the search has tests of its own",
    **dict.fromkeys(("inherit-pocket-layer", "inherit-pocket-unit"), "inherit-pocket-block with other nodes"),
    "bench-pocket-inherit": "a hundred rounds of eight UNets of real random weights, not of a model",
}
"""Recipe -> why its commands get --dry-run here."""
ONCE = {("README.md", "run-pocket"): "docs/run.md runs it"}
"""Page and recipe -> where the same is done."""
GIVEN: dict[str, list[str]] = {
    "docs/prune.md": ["asdm prune recipes/prune-pocket-base.yaml --set model=PATH --out runs/sd15-base"],
    "docs/experts.md": [
        "asdm prune recipes/prune-pocket-base.yaml",
        "asdm distill recipes/distill-pocket-base.yaml",
    ],
    "docs/measure.md": [
        "asdm prune recipes/prune-pocket-base.yaml",
        "asdm distill recipes/distill-pocket-base.yaml",
    ],
    "docs/switch.md": [
        "asdm prune recipes/prune-pocket-base.yaml",
        "asdm distill recipes/distill-pocket-base.yaml",
        "asdm prune recipes/prune-pocket-base.yaml --out runs/table1/stages/students/students/base",
        "asdm prune recipes/prune-pocket-tiny.yaml --out runs/table1/stages/students/students/tiny",
    ],
}
"""Page -> what it says must have been done before."""
ELSEWHERE = {"docs/scale.md": "launch lines for many machines; tests/test_scale.py has those"}
"""Page -> who types its commands."""
TYPED = [
    page for page in pages.PAGES if pages.name(page) not in ELSEWHERE and any(not b.kind for b in pages.blocks(page))
]
MADE = ("demo",)
"""Targets whose commands are run too; of others it is looked at what make would do."""
IN_PYTHON = {"PATH": "tiny", 'pipe("a fox")': 'pipe("a fox", num_inference_steps=4)'}


@pytest.fixture
def workshop(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with recipes/, a checkpoint `tiny`, a folder `photos`; `pocket` is the checkpoint too."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "asdm_cli").symlink_to(ROOT / "asdm_cli")
    (tmp_path / "tiny").symlink_to(tiny_pipeline)
    for index in range(6):
        (tmp_path / "photos").mkdir(exist_ok=True)
        drawings.drawing(index).save(tmp_path / "photos" / f"{index}.png")
        (tmp_path / "photos" / f"{index}.txt").write_text(drawings.caption(index))
    assert asdm("pack", tmp_path / "photos", "--out", tmp_path / "few").code == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    shutil.copytree(tiny_pipeline, tmp_path / "few" / "model")
    tiny.probe(tmp_path / "few" / "model" / "probe", drawings.COLOURS)
    monkeypatch.setattr(sources, "_pocket", lambda: ModelDirectory(tmp_path / "few" / "model", "pocket", "pocket"))
    shipped = {
        name: str(drawings.shard(tmp_path / "few" / file.removesuffix(".gz"), 6))
        for name, file in shards.SHIPPED.items()
    }
    monkeypatch.setattr(shards, "SHIPPED", shipped)
    monkeypatch.setattr("asdm_cli.verbs.run.run_stage", in_this_process)
    monkeypatch.setattr("asdm_cli.compare.costs.in_fresh_process", lambda _name, work, *given: work(*given))
    return tmp_path


def in_this_process(name: str, words: Sequence[str]) -> None:
    said = asdm(*words[words.index("-m") + 2 :])
    assert said.code == 0, f"stage {name}: {said.err}"


def arguments(words: Sequence[str]) -> list[str]:
    """What follows `asdm` or `-m asdm_cli`, with placeholders filled and shell patterns expanded."""
    start = words.index("-m") + 2 if "-m" in words else 1
    given = [{"FOLDER": "photos"}.get(word, re.sub(r"^(.+=)?PATH$", r"\1tiny", word)) for word in words[start:]]
    given = given[: given.index(">")] if ">" in given else given
    return [each for word in given for each in (sorted(glob.glob(word)) if "*" in word else [word])]  # noqa: PTH207


def small(page: str, words: list[str]) -> list[str]:
    """The same with less to do."""
    verb, *rest = words
    stem = Path(rest[0]).stem if rest else ""
    if verb == "generate":
        return [*words, "--steps", "2"]
    if "--dry-run" in words or verb in ("show", "check", "schema", "pack", "init", "export"):
        return words
    if "--target" in words:  # of a tiny model most time is not its UNet's; tests/verbs/test_inherit.py has targets
        return [*words, "--dry-run"]
    if not stem or not rest[0].endswith(".yaml"):
        if verb == "inherit" and "--measure" not in words:  # which only writes
            return words
        return [*words, *(part for setting in OF_MODELS.get(verb, []) for part in ("--set", setting))]
    if stem in NOT_RUN or (page, stem) in ONCE:
        return [*words, "--dry-run"]
    assert stem in SMALL or verb in ("prune", "assemble", "condconv-expand"), f"{stem}: SMALL says nothing of it"
    return [*words, *(part for setting in SMALL.get(stem, []) for part in ("--set", setting))]


def made(words: Sequence[str]) -> list[list[str]]:
    """The commands that make would run."""
    done = subprocess.run([*words, "-n", "-C", str(ROOT), "-o", "setup"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if "asdm" in line and not line.startswith("make")]


def type_in(place: str, words: list[str], done: set[str]) -> None:
    """One line of a page; what the page has a second time, by a launcher or not, is not run again."""
    if words[0] == "make":
        for command in made(words) if words[1] in MADE else []:
            if command[0].endswith("asdm"):
                type_in(place, command, done)
        return
    line, given = shlex.join(words), arguments(words)
    assert words[0].removeprefix(".venv/bin/") in ("asdm", "torchrun", "accelerate"), f"{place}: who runs {line}?"
    if shlex.join(given) in done:
        return
    done.add(shlex.join(given))
    said = asdm(*small(place.partition(":")[0], given))
    assert said.code == 0, f"{place}: {line}\n{said.err}"


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """(a line of GIVEN) -> where the runs that are there behind it are kept: they are made once."""
    folder, names = tmp_path_factory.mktemp("given"), [line for lines in GIVEN.values() for line in lines]
    return lambda line: folder / str(names.index(line))


def made_before(line: str, given: Callable[[str], Path], done: set[str]) -> None:
    runs = Path("runs")
    if not given(line).exists():
        type_in("before the page", line.split(), done)
        shutil.copytree(runs, given(line), symlinks=True)
    shutil.copytree(given(line), runs, symlinks=True, dirs_exist_ok=True)
    done.add(shlex.join(arguments(line.split())))


def execute(block: Block, names: dict[str, Any]) -> None:
    code = block.text
    for what, instead in IN_PYTHON.items():
        code = code.replace(what, instead)
    exec(compile("\n" * block.line + code, str(ROOT / block.page), "exec"), names)


@pytest.mark.parametrize("page", TYPED, ids=pages.name)
def test_what_a_page_tells_to_type_works(page: Path, workshop: Path, given: Callable[[str], Path]) -> None:
    done: set[str] = set()
    for line in GIVEN.get(pages.name(page), []):
        made_before(line, given, done)
    names: dict[str, Any] = {"pipe": asdm_cli.load("tiny", "cpu")} if page.name != "README.md" else {}
    for block in pages.blocks(page):
        if block.kind == "python":
            execute(block, names)
        for place, words in block.commands() if not block.kind else ():
            type_in(place, words, done)
    assert {path.name for path in workshop.iterdir()} <= {
        *("recipes", "asdm_cli", "tiny", "photos", "few", "runs", "shards", "data")
    }


def test_everything_was_found() -> None:
    found = [block for page in pages.PAGES for block in pages.blocks(page)]
    kinds = Counter(block.kind for block in found)
    assert set(kinds) == {"", "yaml", "python", "json"}, "a block of another kind would not be looked at"
    assert (kinds["yaml"], kinds["python"]) >= (16, 4)
    typed = [words for block in found if not block.kind for _, words in block.commands()]
    assert len(typed) >= 45
    assert {words[0] for words in typed} >= {"make", "asdm", "torchrun", "accelerate"}
    stems = {re.sub(r".*/|\.yaml$", "", word) for words in typed for word in words if word.endswith(".yaml")}
    assert set(NOT_RUN) | set(SMALL) <= stems, "no override for what no page runs"
    assert not [stem for stem in GIVEN if stem not in map(pages.name, pages.PAGES)]


@pytest.mark.parametrize(
    "block", [b for page in pages.PAGES for b in pages.blocks(page) if b.kind == "yaml"], ids=lambda b: b.place
)
def test_every_recipe_shown_is_one(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(block.text)
    assert load(file)


def targets() -> dict[str, list[str]]:
    """`make ...` line of a page -> its words."""
    lines = [span for page in pages.PAGES for span in pages.spans(page) if span.startswith("make ")]
    typed = [
        words for page in pages.PAGES for block in pages.blocks(page) if not block.kind for _, words in block.commands()
    ]
    found = [*(shlex.split(line) for line in lines), *(words for words in typed if words[0] == "make")]
    return {shlex.join(words): words for words in found}


@pytest.mark.parametrize("words", targets().values(), ids=targets())
def test_make_does_what_is_there(words: list[str]) -> None:
    """The target exists, its recipes do, and what it changes in them can be changed."""
    for command in made([word for word in words if not word.startswith("TORCH=")]):
        for file in re.findall(r"recipes/[\w/.-]+\.yaml", shlex.join(command)):
            assert (ROOT / file).is_file(), shlex.join(command)
        if command[:1] == [".venv/bin/asdm"] and command[1] not in ("show",):
            settings = [command[place + 1] for place, word in enumerate(command) if word == "--set"]
            assert load(ROOT / command[2], command[1], settings)


def test_recipes_and_pages_name_each_other() -> None:
    """Help pages are pages too. Every recipe says first how it is run."""
    texts = [page.read_text() for page in [*pages.PAGES, ROOT / "asdm_cli" / "cli.py"]]
    named = [file for text in texts for file in re.findall(r"recipes/[\w/-]+\.yaml", text)]
    assert len(named) >= 70
    assert not [file for file in named if not (ROOT / file).is_file()]
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml")}
    built = (ROOT / "Makefile").read_text()
    silent = {
        file for file in there - {*named} if Path(file).stem not in built and not file.startswith("recipes/tables/")
    }
    assert len(there) >= 25
    assert not silent, "no page and no target names it"
    for file in there:
        first = [line for line in (ROOT / file).read_text().splitlines()[:3] if line.startswith("# asdm ")]
        assert f"# asdm {load(ROOT / file).verb} {file}" in first


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_links_and_commands_in_the_text_are_right(page: Path) -> None:
    """`asdm VERB FILE ...` within a sentence: such a file, and keys that it has."""
    found = [link for link in pages.links(page) if "://" not in link]
    assert found, "every page leads on"
    for link in found:
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{pages.name(page)}: {link}"
        assert not anchor or anchor in pages.anchors(target), f"{pages.name(page)}: {link}"
    for span in pages.spans(page):
        words = span.split()
        if words[0] == "asdm" and len(words) >= 3 and words[2].startswith("recipes/") and "*" not in words[2]:
            settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
            assert load(ROOT / words[2], words[1], settings)


def test_the_readme_stays_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 175
    assert lines.index("## Install") <= 48, "what stands before is one screen"
    shown = [line for page in TYPED for block in pages.blocks(page) for line in block.text.splitlines()]
    assert len(shown) >= 150
    assert not [line for line in shown if len(line) > 96], "wider than a page shows"


def test_tiny_models_stand_for_real_ones() -> None:
    """What is typed here is typed for Stable Diffusion's structure."""
    assert tiny.SHAPES["sd15"]["down_block_types"] == directory.find("pocket").config("unet")["down_block_types"]


def test_scripts_use_what_is_there() -> None:
    """Pages and targets run them; nobody else does."""
    seen = 0
    for script in (ROOT / "scripts").rglob("*.py"):
        for node in ast.walk(ast.parse(script.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
                "asdm_cli",
                "pocket",
                "scripts",
            ):
                module = importlib.import_module(node.module or "")
                for name in (alias.name for alias in node.names):
                    assert hasattr(module, name) or importlib.util.find_spec(f"{module.__name__}.{name}"), (
                        script,
                        name,
                    )
                    seen += 1
    assert seen >= 50
