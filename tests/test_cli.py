"""The command line as people meet it: exit codes, streams, help, and what it does not import."""

from __future__ import annotations

import builtins
import errno
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asdm_cli import __main__, __version__, verbs
from asdm_cli.cli import app, main
from asdm_cli.console import console, is_first
from asdm_cli.errors import ModelError, RunError
from asdm_cli.recipe.verbs import VERBS
from asdm_cli.records import Record, Report
from asdm_cli.report.run_directory import to_json
from tests.carrying import carrying, every
from tests.typed import asdm

COMMANDS = {*VERBS, "init", "export", "pack", "generate", "check", "show", "schema"}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "prune.yaml"
    path.write_text(f"verb: prune\nmodel: pocket\nremove: base\nout: {tmp_path / 'run'}\n")
    return path


Installer = Callable[[Callable[..., Report] | BaseException], list[Any]]


@pytest.fixture
def fake_prune(monkeypatch: pytest.MonkeyPatch) -> Installer:
    """Put a method of our own behind `asdm prune`; returns the recipes that it was given."""

    def install(run: Callable[..., Report] | BaseException) -> list[Any]:
        def raising(*_: object) -> Report:
            raise run  # type: ignore[misc]

        seen: list[Any] = []
        fake = SimpleNamespace(
            RESUMABLE=False,
            plan=lambda recipe: seen.append(recipe) or SimpleNamespace(report=lambda: report("the plan")),
            run=raising if isinstance(run, BaseException) else run,
        )
        monkeypatch.setitem(sys.modules, "asdm_cli.verbs.prune", fake)  # type: ignore[arg-type]
        return seen

    return install


def report(title: str) -> Report:
    return Report("prune", {"base": {}}, [Record("base", "params_m", 8.75)], facts={"title": title})


def test_every_verb_is_a_command_with_examples() -> None:
    registered = {command.name for command in app.registered_commands}
    assert registered == COMMANDS
    for verb, recipe in VERBS.items():
        file = import_module(f"asdm_cli.verbs.{recipe.MODULE or verb}")
        assert callable(file.plan)
        assert callable(file.run)
        assert file.RESUMABLE in (True, False)
    for command in sorted(COMMANDS):
        said = asdm(command, "--help")
        assert said.code == 0
        assert f"asdm {command}" in said.out.partition("Examples")[2]
    assert all(command in asdm("--help").out for command in COMMANDS)
    assert asdm("--version").out == f"asdm {__version__}\n"


def test_a_run_writes_its_directory_and_prints_its_path_only(
    recipe: Path, tmp_path: Path, fake_prune: Installer
) -> None:
    seen = fake_prune(lambda _, run: (run.path / "made").write_text("x") and report("the result"))
    said = asdm("prune", recipe, "--set", "remove=[mid, up.0]", "--out", tmp_path / "other")
    assert (said.code, said.out) == (0, f"{tmp_path / 'other'}\n")
    assert "the plan" in said.err
    assert "the result" in said.err
    assert seen[0].remove == ["mid", "up.0"]
    made = {path.name for path in (tmp_path / "other").iterdir()}
    assert made == {".asdm", "made", "recipe.yaml", "report.json", "report.html"}
    assert asdm("check", tmp_path / "other" / "recipe.yaml").code == 0
    assert "8.75" in asdm("show", tmp_path / "other").out


def test_dry_run_quiet_and_overwrite(recipe: Path, tmp_path: Path, fake_prune: Installer) -> None:
    fake_prune(AssertionError("ran"))
    said = asdm("prune", recipe, "--dry-run")
    assert (said.code, said.out) == (0, "")
    assert "the plan" in said.err
    assert not (tmp_path / "run").exists()
    fake_prune(lambda *_: report("the result"))
    said = asdm("prune", recipe, "-q")
    assert (said.code, said.out, said.err) == (0, f"{tmp_path / 'run'}\n", "")
    assert not console.quiet, "-q was for one command"
    said = asdm("prune", recipe)
    assert said.code == 2
    assert "--overwrite" in said.err
    assert asdm("prune", recipe, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ModelError("m/unet: no weights; fetch them"), 2, "m/unet: no weights; fetch them\n"),
        (RunError("worker 3 died"), 1, "worker 3 died\n"),
        (MemoryError(), 1, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 1, "/x: "),
        (KeyboardInterrupt(), 130, "interrupted; give the same command again"),
        (ZeroDivisionError("by zero"), 1, "this is a bug in asdm (ZeroDivisionError: by zero); -v"),
        (RuntimeError("[gloo/gloo/transport/tcp/pair.cc:553] Connection closed"), 1, "this is a bug in asdm"),
    ],
    ids=["model", "run", "memory", "disk", "interrupt", "bug", "gloo, alone"],
)
def test_errors_become_messages_and_codes(
    error: BaseException, code: int, message: str, recipe: Path, fake_prune: Installer
) -> None:
    fake_prune(error)
    said = asdm("prune", recipe, "-q")
    assert (said.code, said.out) == (code, "")
    assert said.err.strip().splitlines()[0].startswith(message.strip())
    assert "Traceback" not in said.err
    assert not (recipe.parent / "run").exists()
    if isinstance(error, ZeroDivisionError):
        assert "Traceback" in asdm("prune", recipe, "-v").err


@pytest.mark.parametrize("error", [RuntimeError("gloo/pair.cc"), type("DistError", (RuntimeError,), {})("NCCL")])
def test_a_process_that_lost_another_is_no_bug(
    error: Exception, recipe: Path, fake_prune: Installer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_prune(error)
    monkeypatch.setattr(verbs, "wait_for_everyone", lambda *_: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = asdm("prune", recipe, "-q")
    assert said.code == 1
    assert said.err.startswith("another process of this run ended or cannot be reached")


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune"],
        ["prune", "x.yaml", "--device", "cpu"],
        ["prune", "x.yaml", "-v", "-q"],
        ["prune", "nosuch.yaml"],
        ["prune", "x.yaml", "--set", "nonsense"],
        ["schema", "prun"],
        ["generate", "pocket"],
        ["generate", "pocket", "x", "--guidance", "0.5"],
        ["generate", "nosuch", "x"],
        ["show", "nosuch"],
        ["check"],
        ["nosuch"],
        ["--nosuch"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_with_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = asdm(*arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err
    assert "bug" not in said.err


def test_check_goes_on_after_a_wrong_file(recipe: Path) -> None:
    wrong = recipe.with_name("wrong.yaml")
    wrong.write_text(recipe.read_text().replace("remove", "removes"))
    said = asdm("check", wrong, recipe)
    assert (said.code, said.out) == (2, f"{recipe}: OK, a recipe for asdm prune\n")
    assert said.err.startswith(f"{wrong}:1:1: remove: must be given\n{wrong}:3:1: removes: unknown key")


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_schema_is_json(verb: str) -> None:
    said = asdm(*["schema", verb][: 2 if verb else 1])
    assert said.code == 0
    assert "$schema" in json.loads(said.out)


def imported(*lines: list[object]) -> set[str]:
    """The modules that command lines, one after the other, have imported when they end well."""
    code = "import json, sys; from asdm_cli.cli import main; codes = [main(each) for each in json.loads(sys.argv[1])]"
    words = [sys.executable, "-c", f"{code}; print(*sys.modules); sys.exit(max(codes))", json.dumps(lines, default=str)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert "asdm_cli.cli" in modules, "the app itself was imported"
    return modules


def test_help_builds_no_recipe_class() -> None:
    modules = imported(["--help"], ["eval", "--help"])
    ours = {name for name in modules if name.startswith("asdm_cli")}
    assert ours == {"asdm_cli", *(f"asdm_cli.{name}" for name in ("cli", "console", "errors", "recipe"))}
    assert not {"yaml", "torch", "numpy", "PIL"} & modules


def test_light_commands_import_nothing_heavy(recipe: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    model = carrying(tiny_pipeline, tmp_path / "model", every(2))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/report.json").write_text(json.dumps(to_json(report("a run"))))
    shown = (["show", model], ["show", tmp_path / "run"], ["show", tmp_path / "run", "--format", "csv"])
    heavy = {"torch", "diffusers", "transformers", "accelerate", "matplotlib"}
    assert not heavy & imported(["check", recipe], ["schema"], *shown)


def test_only_the_first_process_speaks_and_writes(
    recipe: Path, fake_prune: Installer, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[Path] = []
    fake_prune(lambda _, run: places.append(run.path) or report("the result"))  # type: ignore[func-returns-value]
    monkeypatch.setenv("RANK", "1")
    assert is_first(), "a job's number, and nobody beside it"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(verbs, "wait_for_everyone", lambda *_: None)
    assert not is_first()
    said = asdm("prune", recipe)
    assert (said.code, said.out, said.err) == (0, "", "")
    assert not (recipe.parent / "run").exists()
    assert not places, "what writes a file or two the first one does alone"
    recipe.write_text("verb: prune\n")
    said = asdm("prune", recipe)
    assert (said.code, said.err) == (2, ""), "what the user got wrong is told once"


def test_main_is_what_the_package_installs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    settings = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'asdm = "{__main__.__name__}:{__main__.main.__name__}"' in settings
    done = subprocess.run([sys.executable, "-m", "asdm_cli", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"asdm {__version__}\n")

    def interrupted(name: str, *arguments: Any) -> Any:
        if name == "asdm_cli" and "cli" in (arguments[2] or ()):
            raise KeyboardInterrupt
        return importing(name, *arguments)

    importing = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", interrupted)
    assert __main__.main() == 130, "Ctrl-C before anything is imported"
    assert capsys.readouterr() == ("", "")
    monkeypatch.undo()
    assert main(["--version"]) == 0
