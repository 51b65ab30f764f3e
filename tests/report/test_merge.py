"""Reports put together: by key and by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from asdm_cli.errors import ModelError
from asdm_cli.report.document import Column, Grid, Interval, Report, Section, Table
from asdm_cli.report.html import render
from asdm_cli.report.merge import combine, read, speed_quality
from asdm_cli.report.render_json import to_json


def without(report: Report, key: str) -> Report:
    table = report.parts[0]
    assert isinstance(table, Table)
    return replace(report, parts=[replace(table, columns=[column for column in table.columns if column.key != key])])


def with_rows(report: Report, change: dict[str, dict[str, float | None]]) -> Report:
    """The report with some cells of its first table changed, by contestant."""
    table = report.parts[0]
    assert isinstance(table, Table)
    rows = [row | change.get(str(row["name"]), {}) for row in table.rows]
    return replace(report, parts=[replace(table, rows=rows)])


def test_speed_and_quality_are_joined_by_name(bench: Report, evaluation: Report) -> None:
    table = evaluation.parts[0]
    assert isinstance(table, Table)
    backwards = replace(evaluation, parts=[replace(table, rows=table.rows[::-1])])
    points = {point.label: point for point in speed_quality(bench, backwards).points}
    assert set(points) == {"pocket", "base", "small", "tiny"}
    assert points["base"].x == pytest.approx(22.4 * 52)
    assert (points["base"].y, points["base"].y_low) == (0.052, pytest.approx(0.046))


def test_the_latency_of_a_unet_call_serves_where_images_were_not_timed(bench: Report, evaluation: Report) -> None:
    for less in (without(bench, "image_ms"), with_rows(bench, {"tiny": {"image_ms": None}})):
        plot = speed_quality(less, evaluation)
        assert plot.x_title.startswith("UNet call, ms")
        assert len(plot.points) == 4


def test_contestants_of_one_report_only_are_told(bench: Report, evaluation: Report) -> None:
    plot = speed_quality(bench, with_rows(evaluation, {"tiny": {"kid": None}}))
    assert [point.label for point in plot.points] == ["pocket", "base", "small"]
    assert "not drawn: tiny" in plot.note


def test_what_is_missing_is_said(bench: Report, evaluation: Report) -> None:
    with pytest.raises(ModelError, match="no table has the columns name and kid"):
        speed_quality(bench, without(evaluation, "kid"))
    with pytest.raises(ModelError, match="no table has a column image_ms or unet_ms"):
        speed_quality(evaluation, evaluation)
    stranger = Table("", [Column("name", ""), Column("kid", "")], [{"name": "stranger", "kid": 0.1}])
    with pytest.raises(ModelError, match=r"no contestant in common.*stranger.*same names"):
        speed_quality(bench, replace(evaluation, parts=[stranger]))


def test_combined_reports_keep_their_parts_and_cards(bench: Report, evaluation: Report, folder: Path) -> None:
    other = replace(bench, cards={"latency": {"device": "cuda"}})
    both = combine("All", [bench, evaluation, other, bench])
    sections = [part for part in both.parts if isinstance(part, Section)]
    assert [(part.title, part.note, part.verb) for part in sections] == [
        (report.title, report.summary, report.verb) for report in (bench, evaluation, other, bench)
    ]
    assert both.parts.index(sections[1]) == 4, "before the parts of its report"
    assert len(both.parts) == 4 + 3 * 3 + 3
    assert both.verb == "bench + eval"
    assert set(both.cards) == {"latency", "quality", "latency (bench)"}
    cards = [both.cards[part.card] for part in both.parts if isinstance(part, Table)]
    assert [card.get("device") for card in cards] == ["cpu, 2 threads", None, "cuda", "cpu, 2 threads"]
    assert render(both, folder).count('class="figures"') == 4 + 7, "tables, and the figures of plots"


def test_one_report_needs_no_section(bench: Report) -> None:
    alone = combine("Alone", [bench])
    assert alone.parts == bench.parts
    assert (alone.title, alone.summary) == ("Alone", bench.summary)


def test_folded_even_one_report_is_a_section(bench: Report) -> None:
    first, *others = combine("Alone", [bench], folded=True).parts
    assert first == Section(bench.title, bench.summary, "bench", folded=True)
    assert others == bench.parts


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


def test_a_figure_without_an_interval_has_no_error_bar(bench: Report, evaluation: Report) -> None:
    plot = speed_quality(bench, with_rows(evaluation, {"base": {"kid": 0.05}}))
    base = next(point for point in plot.points if point.label == "base")
    assert (base.y, base.y_low, base.y_high) == (0.05, None, None)
    assert isinstance(evaluation.parts[0], Table)
    assert isinstance(evaluation.parts[0].rows[0]["kid"], Interval)
