"""One process, two processes, and parts of a step one after the other: the same samples, the same curve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from asdm_cli.training.loop import LOG, read_log
from tests.forking import ours, together
from tests.training.share import PLAN, SIZE, run
from tests.training.students import like

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two gloo processes left, with one part per step and with two."""
    home = tmp_path_factory.mktemp("two")
    told = ours("from tests.training.share import main; main()", home, cwd=ROOT, environments=together(2))
    assert [each.code for each in told] == [0, 0], told
    return home


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    home = tmp_path_factory.mktemp("alone")
    return home, run(home)


def assert_alike(ours: Path, theirs: Path) -> None:
    """Losses, gradients and written weights but for the order of sums."""
    for a, b in zip(read_log(ours / LOG), read_log(theirs / LOG), strict=True):
        assert a.keys() == b.keys()
        flat = [line.get("validation") or {key: line[key] for key in line if key != "student"} for line in (a, b)]
        assert flat[0] == pytest.approx(flat[1], rel=1e-3)
    weights = [torch.load(folder / "written.pt") for folder in (ours, theirs)]
    assert all(torch.allclose(value, weights[1][name], atol=3e-4) for name, value in weights[0].items())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_learn_as_one(two: Path, alone: tuple[Path, list[list[int]]], accumulate: int) -> None:
    home, whole = alone
    shares = [json.loads((two / f"two-{accumulate}-{rank}.json").read_text()) for rank in (0, 1)]
    assert all(len(part) == 4 // accumulate for share in shares for part in share)
    parts = [part for parts in zip(*shares, strict=True) for part in parts]  # in the order of a step's samples
    rows = [row for part in parts for row in part]
    assert rows == [row for part in whole for row in part]
    for epoch in (rows[:SIZE], rows[SIZE:]):
        assert sorted(epoch) == list(range(SIZE)), "every sample once"
    assert_alike(two / f"two-{accumulate}", home)
    assert len(read_log(home / LOG)) == 3, "two reports and a look"


def test_parts_one_after_the_other_learn_as_one(alone: tuple[Path, list[list[int]]], tmp_path: Path) -> None:
    home, whole = alone
    parts = run(tmp_path, like(PLAN, accumulate=2))
    assert [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)] == whole
    assert_alike(tmp_path, home)


def test_one_process_goes_on_with_what_two_began(
    two: Path, alone: tuple[Path, list[list[int]]], tmp_path: Path
) -> None:
    """Order and noise depend on the step alone, so the number of processes may change in between."""
    for name in (LOG, "step-00000003.pt"):
        (tmp_path / name).symlink_to(two / "two-1" / name)
    assert run(tmp_path) == alone[1][3:]
    assert_alike(tmp_path, alone[0])
