"""Full disks, read-only disks, Ctrl-C and rivals at every moment of writing: nothing half done has the name of the
result, what was there before is whole, and the same command then succeeds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from asdm_cli.models.write import only_writer, partial_path
from asdm_cli.recipe.load import load
from asdm_cli.records import Record, Report
from asdm_cli.report.run_directory import Run, run_directory
from asdm_cli.verbs import prune
from tests.data import tars
from tests.hardening.disks import Disk, full, read_only
from tests.typed import Said, asdm

REPORT = Report("prune", {"a": {}}, [Record("a", "params_m", 1)])


@dataclass(frozen=True)
class Command:
    """A command that writes `target`; `others` are what else may lie beside it."""

    target: Path
    words: tuple[object, ...]

    def run(self) -> Said:
        return asdm(*self.words)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.fixture
def commands(tiny_pipeline: Path, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Command]:
    """Everything that writes to where a user says, made quick: pictures are not drawn, pruning is planned once."""
    for number in range(2):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{number}.png").write_bytes(tars.picture(number))
        (tmp_path / "photos" / f"{number}.txt").write_text("a picture")
    with run_directory(tmp_path / "run", False, False, "verb: prune\n") as run:
        run.write(REPORT)
    recipe = tmp_path / "recipe.yaml"
    settings = {"verb": "prune", "model": str(tiny_pipeline), "remove": "base", "out": str(place / "pruned")}
    recipe.write_text(yaml.safe_dump(settings))
    planned = prune.plan(load(recipe))  # type: ignore[arg-type]
    planned.report()
    monkeypatch.setattr(prune, "plan", lambda _: planned)
    monkeypatch.setattr("asdm_cli.models.load.load_pipeline", lambda *_, **__: None)
    monkeypatch.setattr(
        "asdm_cli.sampling.generate.draw",
        lambda _, __, indices, *___, **____: [(index, tars.Image.new("RGB", (8, 8))) for index in indices],
    )
    replacing = ("-q", "--overwrite")
    return {
        "prune": Command(place / "pruned", ("prune", recipe, *replacing)),
        "pack": Command(place / "packed", ("pack", tmp_path / "photos", "--out", place / "packed", *replacing)),
        "generate": Command(
            place / "drawn", ("generate", tiny_pipeline, "x", "--out", place / "drawn", "--device", "cpu", *replacing)
        ),
        "show": Command(place / "page.html", ("show", tmp_path / "run", "--out", place / "page.html", "--overwrite")),
    }


COMMANDS = ("prune", "pack", "generate", "show")
KEEPING = ("generate",)
"""What was done stays for the next time."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def result(command: Command) -> dict[str, bytes]:
    """What the command leaves; its target is there afterwards only if it was there before."""
    older = command.target.exists()
    assert command.run().code == 0
    whole = contents(command.target.parent)
    if not older:
        remove(command.target)
    return whole


def remove(target: Path) -> None:
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


def moments(name: str) -> range:
    """Every moment of what is quick, some of what writes a hundred files."""
    return range(1, 400, 7) if name == "prune" else range(1, 400)


def until_it_succeeds(
    name: str, command: Command, failure: Callable[[], BaseException], check: Callable[[Said], object], **how: bool
) -> int:
    """Fails at one moment after the other; returns how many there were. After each is there what was there before, or
    the whole result and nothing else."""
    place = command.target.parent
    before, whole = contents(place), result(command)
    for count, moment in enumerate(moments(name)):
        with Disk(place, failure, moment, **how).mounted() as disk:
            said = command.run()
        if not disk.failed:
            assert said.code == 0, said.err
            return count
        if said.code != 0:  # what is only cleaning up may fail
            check(said)
            partial = partial_path(command.target)
            if name in KEEPING and partial.exists():  # for the same command, which is another moment's affair
                assert any(partial.glob("drawn/*.png"))
                remove(partial)
            assert contents(place) in (before, whole), f"moment {moment}: {sorted(contents(place))}"
            if not before:
                remove(command.target)
    raise AssertionError("it never succeeds")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("older", [False, True], ids=["new", "replacing"])
def test_a_full_disk_at_every_moment(name: str, older: bool, commands: dict[str, Command]) -> None:
    command = commands[name]
    if older:
        assert command.run().code == 0

    def check(said: Said) -> None:
        assert said.code == 1
        assert str(command.target.parent) in said.text
        assert "make room" in said.text or "is the disk full?" in said.text

    assert until_it_succeeds(name, command, full, check) >= 4
    assert command.target.exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_at_every_moment(name: str, commands: dict[str, Command]) -> None:
    command = commands[name]

    def check(said: Said) -> None:
        assert said.code == 130
        assert said.out == ""
        assert "interrupted; give the same command again" in said.text

    assert until_it_succeeds(name, command, KeyboardInterrupt, check, lasting=False) >= 4
    assert command.target.exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_read_only_disk(name: str, commands: dict[str, Command]) -> None:
    command = commands[name]
    with Disk(command.target.parent, read_only, 1).mounted():
        command_said = command.run()
    assert command_said.code == 1
    assert "the file system is read-only; choose another place" in command_said.text
    assert str(command.target.parent) in command_said.text
    assert contents(command.target.parent) == {}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_run_is_told(name: str, commands: dict[str, Command]) -> None:
    command = commands[name]
    with only_writer(command.target):
        said = command.run()
        assert said.code == 1
        assert f"process {os.getpid()} is writing it at this moment" in said.text
        assert not command.target.exists()
    assert command.run().code == 0


def test_a_resumable_run_keeps_what_it_has_and_goes_on(tmp_path: Path) -> None:
    """At every moment of its writing: the next one finds what was done, or starts with nothing."""
    place, found = tmp_path / "place", Counter[str]()
    place.mkdir()

    def work(run: Run) -> None:
        for number in range(5):
            if not (file := run.path / f"{number}.txt").is_file():
                file.with_suffix(".partial").write_text(str(number))
                os.replace(file.with_suffix(".partial"), file)

    for moment in range(1, 100):
        with Disk(place, KeyboardInterrupt, moment, lasting=False).mounted() as disk:
            try:
                with run_directory(place / "run", False, True, "verb: x\n") as run:
                    work(run)
            except KeyboardInterrupt:
                found["interrupted"] += 1
        if (place / "run").is_dir():
            found["whole at once"] += 1
        else:
            left = sorted(path.name for path in place.iterdir())
            assert left in ([], [".run.partial"])
            found["kept" if left else "gone"] += 1
            with run_directory(place / "run", False, True, "verb: x\n") as run:
                work(run)
        assert [(place / f"run/{number}.txt").read_text() for number in range(5)] == list("01234")
        assert [path.name for path in place.iterdir()] == ["run"]
        shutil.rmtree(place / "run")
        if not disk.failed:
            break
    assert found["interrupted"] >= 10
    assert found["kept"] >= 10


def test_a_real_ctrl_c(tmp_path: Path) -> None:
    photos, out, picture = tmp_path / "photos", tmp_path / "place/out", tars.picture(0, (64, 64))
    photos.mkdir()
    for number in range(1500):
        (photos / f"{number}.png").write_bytes(picture)
        (photos / f"{number}.txt").write_text("a picture")
    words = [sys.executable, "-m", "asdm_cli", "pack", str(photos), "--out", str(out)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("place/.out.partial/*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    said, err = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, ""), err
    assert err.splitlines()[-1].startswith("interrupted; give the same command again")
    assert "Traceback" not in err
    assert list((tmp_path / "place").iterdir()) == []
