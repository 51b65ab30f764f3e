"""What is logged also reaches trackers, through accelerate."""

from __future__ import annotations

from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker

from asdm_cli.training.loop import LOG, TRACKERS, read_log
from tests.training.students import PLAIN, distillation, like, memory, quick, trained


class Heard(GeneralTracker):
    """Keeps all that it is told."""

    name = "heard"
    requires_logging_directory = True
    tracker = None
    told: list[tuple[str, Any]] = []  # noqa: RUF012 - emptied by the test

    def __init__(self, run_name: str, logging_dir: Path, **_: Any):
        super().__init__()
        self.told.append(("begin", (run_name, Path(logging_dir))))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(("settings", values))

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.told.append(("log", (step, values)))

    def finish(self) -> None:
        self.told.append(("end", None))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "heard", Heard)
    Heard.told.clear()
    return Heard.told


def go(folder: Path, *trackers: str, **settings: Any) -> None:
    teacher, student = quick()
    students = {"base": student, "tiny": deepcopy(student)}
    task = distillation(students, teacher)
    task.held_out = memory(2)
    config = like(PLAIN, steps=4, checkpoint=2, every=4, trackers=trackers, **settings)
    trained(folder, task, students, config)


def test_trackers_hear_every_line_of_the_log(tmp_path: Path, told: list[tuple[str, Any]]) -> None:
    go(tmp_path, "heard")
    wanted: list[tuple[str, Any]] = [("begin", ("asdm", tmp_path / TRACKERS))]  # one for all students
    for line in read_log(tmp_path / LOG):
        step, place = line.pop("step"), line.pop("student")
        place, figures = (f"{place}/held_out", line["validation"]) if "validation" in line else (place, line)
        wanted.append(("log", (step, {f"{place}/{name}": value for name, value in figures.items()})))
    assert told == [*wanted, ("end", None)]
    keys = {key for _, (_, values) in wanted[1:] for key in values}
    assert {"base/task", "tiny/lr", "base/gradient_norm", "base/held_out/task"} <= keys


def test_trackers_end_with_a_run_that_fails(tmp_path: Path, told: list[tuple[str, Any]]) -> None:
    with pytest.raises(Exception, match="not finite"):
        go(tmp_path, "heard", lr=float("inf"))
    assert told[-1] == ("end", None)


def test_nobody_is_told_where_nobody_is_named(tmp_path: Path, told: list[tuple[str, Any]]) -> None:
    go(tmp_path)
    assert not told
    assert not (tmp_path / TRACKERS).exists()


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_its_files(tmp_path: Path) -> None:
    go(tmp_path, "tensorboard")
    assert [file for file in (tmp_path / TRACKERS).rglob("events.*") if file.stat().st_size]
