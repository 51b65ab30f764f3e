"""Reports of before records are read with their pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from asdm_cli.report.document import Grid, Report
from asdm_cli.report.merge import read
from asdm_cli.report.render_json import to_json

from asdm_cli.errors import ModelError


def test_a_report_is_read_with_its_pictures(evaluation: Report, folder: Path) -> None:
    (folder / "report.json").write_text(json.dumps(to_json(evaluation)))
    grid = read(folder).parts[2]
    assert isinstance(grid, Grid)
    assert grid.pictures[0][0] == folder / "pictures" / "pocket-0.png"
    assert grid.pictures[1][2] is None


def test_pictures_that_leave_the_run_are_refused(evaluation: Report, folder: Path, tmp_path: Path) -> None:
    (folder / "report.json").write_text(json.dumps(to_json(evaluation)))
    (folder / "pictures" / "pocket-0.png").unlink()
    (folder / "pictures" / "pocket-0.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ModelError, match="leaves"):
        read(folder)
