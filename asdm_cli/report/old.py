"""Runs whose verbs do not return records yet, read as if they did. Goes with the last of them."""

from __future__ import annotations

from pathlib import Path

from asdm_cli.records import Images, Record, Report
from asdm_cli.report import merge, run_directory
from asdm_cli.report.document import Grid, Interval, Table
from asdm_cli.report.figures import value
from asdm_cli.report.metrics import METRICS

KEYS = {"unet_params_m": "params_m", "unet_macs_g": "macs_g"}


def read(folder: Path) -> Report:
    """The report of a run, its images found below `folder`."""
    if run_directory.is_of_records(folder):
        return run_directory.read(folder)
    old = merge.read(folder)
    records = [record for part in old.parts if isinstance(part, Table) for record in _records(part)]
    grid = next((part for part in old.parts if isinstance(part, Grid) and part.pictures), None)
    images = None
    if grid and all(grid.pictures[0]):
        folders = zip(grid.columns, grid.pictures[0], strict=True)
        images = Images(grid.rows, {name: file.parent.relative_to(folder).as_posix() for name, file in folders if file})
    setups = {each.setup: {"model": each.setup} for each in records}  # a name is all that is known of it
    return Report(old.verb, setups, records, images=images, notes=[old.summary] if old.summary else [])


def _records(table: Table) -> list[Record]:
    keys = {column.key for column in table.columns}
    if "name" not in keys or {"split", "batch", "block", "component", "rests"} & keys:
        return []
    found = []
    for row in table.rows:
        for key, cell in row.items():
            figure, key = value(cell), KEYS.get(key, key)
            if figure is not None and key in METRICS:
                ends = (cell.low, cell.high, cell.kind) if isinstance(cell, Interval) else (None, None, "")
                found.append(Record(str(row["name"]), key, figure, *ends))
    return found
