"""What is logged also reaches trackers, through accelerate."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from torch import nn

from asdm_cli.training.loop import LOG, TRACKERS, read_log
from tests import tiny
from tests.training.students import PLAIN, distillation, fresh, memory, pruned, trained

PLAN = replace(PLAIN, steps=4, save_every=2, validate_every=4)


class Heard(GeneralTracker):
    """Keeps all that it is told."""

    name = "heard"
    requires_logging_directory = True
    told: list[tuple[str, Any]] = []  # noqa: RUF012 - emptied by the test

    def __init__(self, run_name: str, logging_dir: Path, **_: Any):
        super().__init__()
        self.told.append(("begin", (run_name, Path(logging_dir))))

    @property
    def tracker(self) -> None:
        return None

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


def go(folder: Path, trackers: tuple[str, ...], **settings: Any) -> dict[str, nn.Module]:
    teacher = fresh(tiny.shape("sd15"))
    students = {kind: pruned(teacher, kind) for kind in ("base", "tiny")}
    task = distillation(students, teacher)
    task.held_out = memory(2)
    trained(folder, task, students, replace(PLAN, trackers=trackers, **settings))
    return students


def test_trackers_hear_every_line_of_the_log(tmp_path: Path, told: list[tuple[str, Any]]) -> None:
    go(tmp_path, ("heard",))
    assert told[0] == ("begin", ("asdm", tmp_path / TRACKERS))
    assert [kind for kind, _ in told].count("begin") == 1, "one for all students"
    assert told[-1] == ("end", None)
    wanted = []
    for line in read_log(tmp_path / LOG):
        place = line.pop("student")
        step = line.pop("step")
        if held := line.get("validation"):
            place, line = f"{place}/held_out", held
        wanted.append(("log", (step, {f"{place}/{name}": value for name, value in line.items()})))
    assert told[1:-1] == wanted
    assert {"base/task", "tiny/lr", "base/gradient_norm"} <= {key for _, (_, values) in wanted for key in values}
    assert any("base/held_out/task" in values for _, (_, values) in wanted)


def test_trackers_end_with_a_run_that_fails(tmp_path: Path, told: list[tuple[str, Any]]) -> None:
    with pytest.raises(Exception, match="not finite"):
        go(tmp_path, ("heard",), lr=float("inf"))
    assert told[-1] == ("end", None)


def test_nobody_is_told_where_nobody_is_named(tmp_path: Path, told: list[tuple[str, Any]]) -> None:
    go(tmp_path, ())
    assert not told
    assert not (tmp_path / TRACKERS).exists()


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_its_files(tmp_path: Path) -> None:
    go(tmp_path, ("tensorboard",))
    assert [file for file in (tmp_path / TRACKERS).rglob("events.*") if file.stat().st_size]
