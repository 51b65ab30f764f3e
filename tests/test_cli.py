"""The command line as people meet it: exit codes, streams, help, and what it does not import."""

from __future__ import annotations

import builtins
import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from asdm_cli import __main__, __version__
from asdm_cli.cli import app, main
from asdm_cli.commands import ranks, running
from asdm_cli.commands.generate import contact_sheet
from asdm_cli.errors import ModelError, RunError
from asdm_cli.methods import METHODS
from asdm_cli.progress import console
from asdm_cli.recipe.verbs import VERBS
from asdm_cli.report.document import Column, Report, Table

COMMANDS = {*VERBS, "pack", "generate", "check", "show", "schema"}
PRUNE = "verb: prune\nmodel: pocket\nremove: base\nout: {out}\n"


@pytest.fixture(autouse=True)
def loud_again() -> Any:
    yield
    console.quiet = False


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "prune.yaml"
    path.write_text(PRUNE.format(out=tmp_path / "run"))
    return path


@pytest.fixture
def fake_prune(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Report]], list[Any]]:
    """Put a method of our own behind `asdm prune`; returns the recipes that it was given."""

    def install(run: Callable[..., Report]) -> list[Any]:
        seen: list[Any] = []
        plan = SimpleNamespace(report=lambda: report("the plan"))
        method = SimpleNamespace(RESUMABLE=False, plan=lambda recipe: seen.append(recipe) or plan, run=run)
        monkeypatch.setitem(sys.modules, "tests_fake_method", method)  # type: ignore[arg-type]
        monkeypatch.setitem(METHODS, "prune", "tests_fake_method")
        return seen

    return install


def report(title: str) -> Report:
    table = Table("figures", [Column("params_m", "parameters, M")], [{"params_m": 8.75}])
    return Report("prune", title, "A summary.", [table])


def raises(error: BaseException) -> Callable[..., Report]:
    def run(*_: object) -> Report:
        raise error

    return run


def test_verbs_methods_and_commands_are_the_same() -> None:
    registered = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    assert registered == COMMANDS
    assert set(METHODS) == set(VERBS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Examples" in shown
    assert f"asdm {command}" in shown


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"asdm {__version__}\n"


def test_a_run_writes_its_directory_and_prints_its_path_only(
    recipe: Path, tmp_path: Path, fake_prune: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = fake_prune(lambda _, run: (run.path / "made").write_text("x") and report("the result"))
    assert main(["prune", str(recipe), "--set", "remove=[mid, up.0]", "--out", str(tmp_path / "other")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'other'}\n"
    assert "the plan" in err
    assert "the result" in err
    assert seen[0].remove == ["mid", "up.0"]
    assert {path.name for path in (tmp_path / "other").iterdir()} == {
        ".asdm",
        "made",
        "recipe.yaml",
        "report.json",
        "report.html",
    }
    assert main(["check", str(tmp_path / "other" / "recipe.yaml")]) == 0
    capsys.readouterr()
    assert main(["show", str(tmp_path / "other")]) == 0
    assert "8.75" in capsys.readouterr().out


def test_dry_run_plans_and_stops(
    recipe: Path, tmp_path: Path, fake_prune: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_prune(raises(AssertionError("ran")))
    assert main(["prune", str(recipe), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "the plan" in err
    assert not (tmp_path / "run").exists()


def test_quiet_leaves_only_the_path(recipe: Path, fake_prune: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fake_prune(lambda *_: report("the result"))
    assert main(["prune", str(recipe), "-q"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("run\n")
    assert err == ""


def test_an_existing_directory_is_refused_without_overwrite(
    recipe: Path, fake_prune: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_prune(lambda *_: report("the result"))
    assert main(["prune", str(recipe)]) == 0
    assert main(["prune", str(recipe)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["prune", str(recipe), "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ModelError("m/unet: no weights; fetch them"), 2, "m/unet: no weights; fetch them\n"),
        (RunError("worker 3 died"), 1, "worker 3 died\n"),
        (MemoryError(), 1, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 1, "/x: "),
        (KeyboardInterrupt(), 130, "interrupted; the same command again goes on from what was kept"),
        (ZeroDivisionError("division by zero"), 1, "this is a bug in asdm (ZeroDivisionError: division by zero); -v"),
    ],
    ids=["model", "run", "memory", "disk", "interrupt", "bug"],
)
def test_errors_become_messages_and_codes(
    error: BaseException, code: int, message: str, recipe: Path, fake_prune: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_prune(raises(error))
    assert main(["prune", str(recipe), "-q"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip().splitlines()[0].startswith(message.strip())
    assert "Traceback" not in err
    assert not (recipe.parent / "run").exists()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:64709."),
        type("DistBackendError", (RuntimeError,), {})("NCCL error"),
    ],
    ids=["gloo", "nccl"],
)
def test_a_process_that_lost_another_is_no_bug(
    error: Exception, recipe: Path, fake_prune: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_prune(raises(error))
    assert main(["prune", str(recipe), "-q"]) == 1
    assert "a bug in asdm" in capsys.readouterr().err, "alone there is nobody to lose"
    monkeypatch.setattr(running, "wait_for_everyone", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["prune", str(recipe), "-q"]) == 1
    assert capsys.readouterr().err.startswith("another process of this run ended or cannot be reached")


def test_verbose_shows_where_a_bug_is(recipe: Path, fake_prune: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fake_prune(raises(ZeroDivisionError()))
    assert main(["prune", str(recipe), "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


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
def test_usage_errors_exit_with_2(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err
    assert "bug" not in err


def test_check_goes_on_after_a_wrong_file(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = recipe.with_name("wrong.yaml")
    wrong.write_text(recipe.read_text().replace("remove", "removes"))
    assert main(["check", str(wrong), str(recipe)]) == 2
    out, err = capsys.readouterr()
    assert out == f"{recipe}: OK, a recipe for asdm prune\n"
    assert err.startswith(f"{wrong}:1:1: remove: must be given\n{wrong}:3:1: removes: unknown key")


@pytest.mark.parametrize("arguments", [["schema"], *(["schema", verb] for verb in VERBS)], ids=" ".join)
def test_schema_is_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert "$schema" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("arguments", ["--help", "check RECIPE", "schema", "eval --help", "prune nosuch.yaml"])
def test_light_commands_import_nothing_heavy(arguments: str, recipe: Path) -> None:
    code = (
        "import sys; from asdm_cli.cli import main; main(sys.argv[1:]);"
        "print(len(sys.modules), *{'torch', 'diffusers', 'transformers', 'accelerate', 'numpy'} & set(sys.modules))"
    )
    words = [str(recipe) if word == "RECIPE" else word for word in arguments.split()]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    count, *heavy = done.stdout.splitlines()[-1].split()
    assert int(count) > 100, "the app itself was imported"
    assert heavy == []


def test_python_m_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "asdm_cli", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"asdm {__version__}\n")


def test_only_the_first_process_speaks_and_writes(
    recipe: Path, fake_prune: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places: list[Path] = []
    fake_prune(lambda _, run: places.append(run.path) or report("the result"))
    monkeypatch.setenv("RANK", "1")
    assert not ranks.is_first()
    assert main(["prune", str(recipe)]) == 0
    assert capsys.readouterr() == ("", "")
    assert not (recipe.parent / "run").exists()
    assert places == [recipe.parent / ".run.partial"]


def test_a_users_error_is_told_once_by_several_processes(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text("verb: prune\n")
    monkeypatch.setenv("RANK", "1")
    assert main(["prune", str(recipe)]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (5, 3, 2), (9, 3, 3)])
def test_contact_sheet_holds_every_picture_in_reading_order(count: int, columns: int, rows: int) -> None:
    sheet = contact_sheet([Image.new("RGB", (8, 6), (index, 0, 0)) for index in range(count)], margin=2)
    assert sheet.size == (2 + 10 * columns, 2 + 8 * rows)
    seats = [(row, column) for row in range(rows) for column in range(columns)]
    found = [sheet.getpixel((2 + 10 * column, 2 + 8 * row)) for row, column in seats]
    assert found == [(index, 0, 0) for index in range(count)] + [(255, 255, 255)] * (len(seats) - count)


def test_main_is_what_the_package_installs() -> None:
    settings = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'asdm = "{__main__.__name__}:{__main__.main.__name__}"' in settings


def test_ctrl_c_before_anything_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str, *arguments: Any) -> Any:
        if name == "asdm_cli" and "cli" in (arguments[2] or ()):
            raise KeyboardInterrupt
        return imported(name, *arguments)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", interrupted)
    assert __main__.main() == 130
    assert capsys.readouterr() == ("", "")
