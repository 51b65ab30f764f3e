"""Reports of before records, read. Goes with the last of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from asdm_cli.report.document import Grid, Part, Report
from asdm_cli.report.render_json import NAME, from_json, part_at
from asdm_cli.unet.weight_files import inside, read_mapping


def read(folder: Path) -> Report:
    """The report of a run directory, with its pictures found from here. Raises ModelError."""
    report = from_json(read_mapping(inside(folder, folder / NAME)))
    parts = [part_at(part, folder) for part in report.parts]
    for picture in _pictures(parts):
        inside(folder, picture)
    return replace(report, parts=parts)


def _pictures(parts: Sequence[Part]) -> list[Path]:
    return [path for part in parts if isinstance(part, Grid) for row in part.pictures for path in row if path]
