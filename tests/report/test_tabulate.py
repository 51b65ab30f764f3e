"""The figures of plots as tables."""

from __future__ import annotations

import math

from asdm_cli.report.document import Curves, Interval, Point, Scatter, Timeline
from asdm_cli.report.tabulate import SPREAD, tabulate


def test_a_point_has_its_figures_and_its_spread() -> None:
    points = [Point(1.0, 0.5, "a", "s", 0.4, 0.6), Point(2.0, math.nan, "b")]
    table = tabulate(Scatter("Both", "ms", "KID", points))
    assert [column.title for column in table.columns] == ["point", "series", "ms", "KID"]
    assert table.rows[0] == {"name": "a", "series": "s", "x": 1.0, "y": Interval(0.5, 0.4, 0.6, SPREAD)}
    assert len(table.rows) == 2, "also points that are not drawn"
    assert len(tabulate(Scatter("", "", "", points[1:])).columns) == 3, "no column for series where there are none"


def test_a_line_has_its_ends() -> None:
    table = tabulate(Curves("", "step", "loss", {"a": [(0.0, 3.0), (1.0, 0.5), (2.0, 1.0)], "b": []}))
    assert table.rows == [
        {"name": "a", "first": 3.0, "last": 1.0, "lowest": 0.5},
        {"name": "b", "first": None, "last": None, "lowest": None},
    ]


def test_a_timeline_has_counts_of_what_occurs() -> None:
    table = tabulate(Timeline("", ["up", "mid"], ["cii", "ccc"]))
    assert [column.title for column in table.columns] == ["row", "computed\nUNet calls", "inherited\nUNet calls"]
    assert table.rows == [{"name": "up", "c": 1, "i": 2}, {"name": "mid", "c": 3, "i": 0}]
