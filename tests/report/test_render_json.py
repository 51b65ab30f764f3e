"""report.json: valid JSON for every report, and the same report back."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asdm_cli.errors import ModelError
from asdm_cli.report.document import (
    LETTERS,
    Bars,
    Column,
    Curves,
    Grid,
    Interval,
    Point,
    Report,
    Scatter,
    Section,
    Table,
    Timeline,
)
from asdm_cli.report.render_json import from_json, part_at, part_inside, to_json

floats = st.floats(allow_nan=True, allow_infinity=True)
texts = st.text(max_size=20)
cells = st.one_of(texts, st.integers(), floats, st.none())
names = st.text("abcdefgh", min_size=1, max_size=5)
paths = st.lists(names, min_size=1, max_size=3).map(lambda parts: Path(*parts))
intervals = st.builds(Interval, floats, floats, floats, texts)
columns = st.builds(Column, names, texts, st.sampled_from(["", "lower", "higher"]), st.integers(0, 5))
tables = st.builds(
    Table,
    texts,
    st.lists(columns, max_size=3),
    st.lists(st.dictionaries(names, cells | intervals, max_size=4), max_size=3),
    texts,
    texts,
    st.booleans(),
)
sections = st.builds(Section, texts, texts, texts, st.booleans())
points = st.builds(Point, floats, floats, texts, texts, st.none() | floats, st.none() | floats)
scatters = st.builds(Scatter, texts, texts, texts, st.lists(points, max_size=3), texts)
curves = st.builds(
    Curves,
    texts,
    texts,
    texts,
    st.dictionaries(texts, st.lists(st.tuples(floats | st.integers(), floats), max_size=3), max_size=3),
    st.booleans(),
    texts,
)
bars = st.builds(
    Bars, texts, texts, st.lists(texts, max_size=3), st.dictionaries(names, st.lists(floats, max_size=3)), texts
)
grids = st.builds(
    Grid,
    texts,
    st.lists(texts, max_size=3),
    st.lists(texts, max_size=3),
    st.lists(st.lists(st.none() | paths, max_size=3), max_size=3),
    texts,
)
courses = st.integers(0, 5).flatmap(
    lambda calls: st.lists(st.tuples(texts, st.text("cid", min_size=calls, max_size=calls)), max_size=3)
)
timelines = st.builds(
    lambda title, rows, note, words: Timeline(
        title, [name for name, _ in rows], [cells for _, cells in rows], note, dict(zip("cid", words, strict=True))
    ),
    texts,
    courses,
    texts,
    st.just(LETTERS.values()) | st.tuples(texts, texts, texts),
)
cards = st.dictionaries(texts, st.dictionaries(texts, cells | st.lists(texts, max_size=3), max_size=3), max_size=2)
parts = st.lists(tables | scatters | curves | bars | grids | timelines | sections, max_size=4)
reports = st.builds(Report, texts, texts, texts, parts, cards)


def comparable(thing: Any) -> Any:
    """Equal to another's exactly if types and values are equal, with NaN equal to itself and -0.0 unlike 0.0."""
    if isinstance(thing, dict):
        return {key: comparable(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return type(thing), [comparable(item) for item in thing]
    return type(thing), "NaN" if isinstance(thing, float) and math.isnan(thing) else repr(thing)


@given(reports)
def test_every_report_comes_back_as_it_was(report: Report) -> None:
    text = json.dumps(to_json(report), allow_nan=False)
    back = from_json(json.loads(text))
    assert [type(part) for part in back.parts] == [type(part) for part in report.parts]
    assert comparable(asdict(back)) == comparable(asdict(report))


def test_figures_that_json_does_not_know_are_null_with_a_reason() -> None:
    row: dict[str, Any] = {"kid": math.nan, "psnr_db": math.inf, "gain": Interval(-math.inf, 0.0, 1.0, "quartiles")}
    written = to_json(Report("eval", "", "", [Table("", [], [row])]))["parts"][0]["rows"][0]
    assert written["kid"] == {"value": None, "reason": "not a number"}
    assert written["psnr_db"] == {"value": None, "reason": "infinity"}
    assert written["gain"]["value"] == {"value": None, "reason": "minus infinity"}


def test_the_schema_of_report_json_is_told_and_asked_for() -> None:
    data = to_json(Report("prune", "", "", []))
    assert data["schema"] == 1
    with pytest.raises(ModelError, match="schema 2 where this version reads 1"):
        from_json(data | {"schema": 2})


@pytest.mark.parametrize(
    "damage",
    [
        {"parts": [{"kind": "pie"}]},
        {"parts": None},
        {"cards": []},
        {"parts": [{"kind": "table", "title": "no columns"}]},
        {"parts": [to_json(Report("", "", "", [Grid("", [], [], [[Path("../secret.png")]])]))["parts"][0]]},
        {"parts": [to_json(Report("", "", "", [Grid("", [], [], [[Path("/etc/secret.png")]])]))["parts"][0]]},
        {"parts": [{"kind": "curves", "title": "", "x_title": "", "y_title": "", "lines": {"a": [[1]]}, "log": False}]},
        {"parts": [{"kind": "timeline", "title": "", "rows": ["a"], "cells": ["cix"], "note": ""}]},
        {"parts": [{"kind": "timeline", "title": "", "rows": ["a", "b"], "cells": ["ci", "c"], "note": ""}]},
        {"parts": [{"kind": "timeline", "title": "", "rows": ["a"], "cells": [], "note": ""}]},
    ],
)
def test_what_is_no_report_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="is not a report"):
        from_json(to_json(Report("prune", "", "", [])) | damage)


def test_pictures_are_written_relative_to_the_run_and_found_again() -> None:
    grid = Grid("", ["a"], ["b"], [[Path("runs/.x.partial/pictures/0.png"), None]])
    inside = part_inside(grid, Path("runs/.x.partial"))
    assert isinstance(inside, Grid)
    assert inside.pictures == [[Path("pictures/0.png"), None]]
    assert part_inside(inside, Path("runs/.x.partial")) == inside
    assert part_at(part_inside(inside, Path()), Path("runs/x")) == Grid(
        "", ["a"], ["b"], [[Path("runs/x/pictures/0.png"), None]]
    )


def test_a_table_of_an_older_run_has_no_total() -> None:
    table = Table("", [Column("name", "")], [{"name": "all"}])
    data = to_json(Report("prune", "", "", [table]))
    del data["parts"][0]["total"]
    assert from_json(data).parts == [table]


def test_a_timeline_of_an_older_run_is_read() -> None:
    timeline = Timeline("", ["a"], ["ci"])
    data = to_json(Report("inherit", "", "", [timeline]))
    del data["parts"][0]["letters"]
    assert from_json(data).parts == [timeline]
