"""A run directory appears whole or not at all, whatever happens to the run."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asdm_cli.errors import ModelError, RunError
from asdm_cli.models.write import old_path, partial_path
from asdm_cli.records import Images, Record, Report, Timeline
from asdm_cli.report.run_directory import TRAINING, UNFINISHED, from_json, read, run_directory, to_json
from asdm_cli.search.forecasts import CALIBRATION
from asdm_cli.search.schedules import FOLDER

RECIPE = "verb: bench\n"
REPORT = Report("bench", {"a": {}}, [Record("a", "kid", 0.5)])


def finish(target: Path, content: str = "new", overwrite: bool = False) -> None:
    with run_directory(target, overwrite, False, RECIPE) as run:
        (run.path / "figures.txt").write_text(content)
        run.write(REPORT)


def fail(target: Path, resumable: bool, failure: BaseException) -> None:
    with run_directory(target, False, resumable, RECIPE) as run:
        (run.path / "picture").write_text("drawn")
        raise failure


texts, numbers = st.text(max_size=20), st.floats(allow_nan=False)
values = st.one_of(
    texts, st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False), st.none(), st.booleans()
)
tables = st.dictionaries(texts, values | st.lists(values, max_size=3), max_size=3)
places = st.text("abcdefgh", min_size=1, max_size=5)
reports = st.builds(
    Report,
    texts,
    st.dictionaries(texts, tables, max_size=2),
    st.lists(
        st.builds(Record, texts, texts, numbers, st.none() | numbers, at=st.none() | numbers, n=st.integers(0, 9))
    ),
    st.dictionaries(texts, tables, max_size=2),
    st.none() | st.builds(Images, st.lists(texts), st.dictionaries(texts, places)),
    st.lists(st.builds(Timeline, texts, st.dictionaries(texts, texts), st.dictionaries(texts, texts)), max_size=2),
    st.dictionaries(texts, tables | values),
    st.lists(texts),
)


@given(reports)
def test_every_report_comes_back_as_it_was(report: Report) -> None:
    assert from_json(json.loads(json.dumps(to_json(report), allow_nan=False))) == report


def test_what_is_no_number_comes_back_too() -> None:
    report = Report("eval", records=[Record("a", "kid", math.nan), Record("a", "psnr_db", -math.inf)])
    nan, infinite = from_json(to_json(report)).records
    assert math.isnan(nan.value)
    assert infinite.value == -math.inf


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        ({"schema": 1}, "has schema 1 where this version reads 2"),
        ({"records": [{"setup": "a"}]}, r"records\.0\.metric"),
        ({"records": None}, "records"),
        ({"titles": []}, "titles"),
        ({"images": {"prompts": ["a"], "folders": {"a": "../b"}}}, "outside of its folder"),
    ],
)
def test_what_is_no_report_is_refused(damage: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelError, match=what):
        from_json(to_json(REPORT) | damage)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_finished_run_has_recipe_report_and_page_and_leaves_nothing_beside(tmp_path: Path) -> None:
    finish(tmp_path / "deep" / "run")
    assert names(tmp_path / "deep") == ["run"]
    assert names(tmp_path / "deep" / "run") == [".asdm", "figures.txt", "recipe.yaml", "report.html", "report.json"]
    assert (tmp_path / "deep" / "run" / "recipe.yaml").read_text() == RECIPE
    assert read(tmp_path / "deep" / "run") == REPORT


def test_what_only_an_unfinished_run_goes_on_from_goes_last(tmp_path: Path) -> None:
    assert set(UNFINISHED) == {TRAINING, CALIBRATION, FOLDER}

    def work(fails: bool) -> None:
        with run_directory(tmp_path / "run", False, True, RECIPE) as run:
            for name in UNFINISHED:
                (run.path / name).mkdir(exist_ok=True)
                (run.path / name / "hours.json").touch()
            if fails:
                raise RunError("the disk is full")

    with pytest.raises(RunError):
        work(fails=True)
    assert {*UNFINISHED} <= {*names(partial_path(tmp_path / "run"))}
    work(fails=False)
    assert names(tmp_path / "run") == [".asdm", "recipe.yaml"]


@pytest.mark.parametrize("failure", [RunError("out of luck"), KeyboardInterrupt(), ValueError("bug")])
def test_a_failed_run_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)):
        fail(tmp_path / "run", False, failure)
    assert names(tmp_path) == []


def test_an_older_run_is_kept_unless_a_newer_one_may_take_its_place_and_has_succeeded(tmp_path: Path) -> None:
    finish(tmp_path / "run", "old")
    with pytest.raises(ModelError, match=r"exists already.*--overwrite"):
        finish(tmp_path / "run")
    with pytest.raises(RunError), run_directory(tmp_path / "run", True, False, RECIPE):
        raise RunError("no")
    assert (tmp_path / "run" / "figures.txt").read_text() == "old"
    finish(tmp_path / "run", "new", overwrite=True)
    assert (tmp_path / "run" / "figures.txt").read_text() == "new"
    assert names(tmp_path) == ["run"]


def test_a_crash_in_the_middle_of_the_swap_loses_nothing(tmp_path: Path) -> None:
    finish(tmp_path / "run", "old")
    os.rename(tmp_path / "run", old_path(tmp_path / "run"))
    with pytest.raises(ModelError, match="exists already"):
        finish(tmp_path / "run")
    assert (tmp_path / "run" / "figures.txt").read_text() == "old"


def test_overwriting_the_working_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "file").write_text("")
    monkeypatch.chdir(tmp_path / "work")
    for place in (".", ".."):
        with pytest.raises(ModelError, match="which is not from asdm"):
            finish(Path(place), overwrite=True)
    assert names(tmp_path) == ["work"]


def test_a_resumable_run_goes_on_with_the_same_recipe_and_no_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for recipe, left in ((RECIPE, [".asdm", "picture", "recipe.yaml"]), ("verb: eval\n", [".asdm", "recipe.yaml"])):
        place = tmp_path / recipe[6:10]
        with pytest.raises(KeyboardInterrupt):
            fail(place / "run", True, KeyboardInterrupt())
        assert "the same command goes on from there" in "".join(capfd.readouterr().err.split("\n"))
        with run_directory(place / "run", False, True, recipe) as run:
            assert run.path == partial_path(place / "run")
            assert names(run.path) == left
        assert names(place) == ["run"]
    with pytest.raises(RunError), run_directory(tmp_path / "idle" / "run", False, True, RECIPE):
        raise RunError("stop")
    assert names(tmp_path / "idle") == [], "one that did nothing leaves nothing"


def test_a_link_to_what_is_kept_elsewhere_is_no_way_out_of_a_run(tmp_path: Path) -> None:
    """`asdm run` writes such links; what they lead to outlives the run."""
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage/file").write_text("kept")
    for content in ("old", "new"):
        with run_directory(tmp_path / "run", True, False, RECIPE) as run:
            (run.path / "link").symlink_to(tmp_path / "stage")
            (run.path / "figures.txt").write_text(content)
    assert names(tmp_path / "run") == [".asdm", "figures.txt", "link", "recipe.yaml"]
    assert (tmp_path / "stage/file").read_text() == "kept"


def start_and_hang(target: Path, resumable: bool) -> subprocess.Popen[str]:
    """A process that holds a run of `target` open until it is killed."""
    code = f"""
        import sys, time
        from pathlib import Path
        from asdm_cli.report.run_directory import run_directory
        with run_directory(Path({str(target)!r}), False, {resumable}, {RECIPE!r}) as run:
            (run.path / "half").write_text("")
            print("started", flush=True)
            time.sleep(120)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_two_runs_of_one_target_exclude_each_other(tmp_path: Path) -> None:
    process = start_and_hang(tmp_path / "run", resumable=False)
    try:
        with pytest.raises(RunError, match=f"process {process.pid} is writing it"):
            finish(tmp_path / "run")
        assert (partial_path(tmp_path / "run") / "half").exists(), "the refused run left the other's files alone"
        finish(tmp_path / "other")
    finally:
        kill(process)


@pytest.mark.parametrize("resumable", [True, False])
def test_a_killed_run_leaves_no_target_and_no_lock(tmp_path: Path, resumable: bool) -> None:
    kill(start_and_hang(tmp_path / "run", resumable))
    assert not (tmp_path / "run").exists()
    with run_directory(tmp_path / "run", False, resumable, RECIPE) as run:
        assert (run.path / "half").exists() is resumable
    assert names(tmp_path) == ["run"]
