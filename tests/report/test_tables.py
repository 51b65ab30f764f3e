"""Views of records: what a reader is told, and what is never compared."""

from __future__ import annotations

from dataclasses import replace

from asdm_cli.records import Record, Report, under
from asdm_cli.report import plots, tables, words
from asdm_cli.report.tables import Table
from tests.report import made


def texts(table: Table | None) -> dict[str, list[str]]:
    assert table is not None
    return {row[0].text: [cell.text.strip() for cell in row[1:]] for row in table.rows}


def best(table: Table | None) -> dict[str, set[str]]:
    """Title of a column -> who is marked."""
    assert table is not None
    return {
        head.title: {row[0].text for row in table.rows if row[place].best} for place, head in enumerate(table.columns)
    }


def test_the_main_table_has_what_matters_most_and_references_last() -> None:
    table = tables.main(made.compared())
    assert table is not None
    heads = [f"{head.title} {head.unit}".strip() for head in table.columns]
    assert heads == [
        "set-up",
        "parameters M",
        "UNet call GMACs",
        "image ms",
        "image speed-up",
        "KID",
        "CLIP score",
        "PSNR dB",
    ]
    rows = texts(table)
    assert list(rows)[-1] == "real"
    assert rows["pocket"] == ["8.77", "0.220", "1,622", "1.00", "0.031", "28.4", "–"], "beside itself its speed-up is 1"
    marked = best(table)
    assert marked["image"] == {"tiny"}
    assert marked["image speed-up"] == {"plans 2"}
    assert {"pocket", "base"} <= marked["KID"], "their intervals overlap"
    assert "real" not in marked["KID"]
    everything = tables.main(made.compared(), tables.ALL)
    assert everything is not None
    assert len(everything.columns) == 11


def test_unlike_protocols_are_not_compared_and_that_is_said() -> None:
    figures = [Record("a", "kid", 0.1), Record("b", "kid", 0.2)]
    cards = {"one": {"device": "cpu"}, "same": {"device": "cpu", "contestants": ["b"]}, "other": {"device": "cuda"}}
    for card, marked in (("same", {"a"}), ("other", set())):
        report = Report("eval", {}, under("one", figures[:1]) + under(card, figures[1:]), cards)
        table = tables.main(report)
        assert best(table)["KID"] == marked
        assert table is not None
        assert ("not compared: KID" in table.note) == (not marked)


def test_curves_are_lines_of_set_ups_or_of_the_parts_of_one() -> None:
    task, output, rate = plots.curves(made.trained())
    assert (task.title, list(task.lines), task.metric) == ("Task loss", ["base", "small"], "loss")
    assert (output.title, rate.title, list(rate.lines)) == ("Output loss", "Learning rate", ["base"])
    assert texts(task.table)["base"][1] == "0.0542"
    weights = [
        Record("m", "routing_weight", 0.5, of=f"expert/{expert}", at=call) for expert in "12" for call in (2, 0, 1)
    ]
    (curve,) = plots.curves(Report("eval", {"m": {}}, weights))
    assert list(curve.lines) == ["1", "2"]
    assert [each.at for each in curve.lines["1"]] == [0, 1, 2]


def test_plots_join_the_fronts_of_series() -> None:
    report = made.compared()
    kid, psnr, clip = plots.scatters(report)
    assert (kid.x, kid.y) == ("image speed-up over pocket", "KID")
    plans = ["plans 0", "plans 1", "plans 2"]
    assert [each.name for each in kid.lines["plans"]] == ["pocket", *plans], "the first set-up belongs to every series"
    assert [each.name for each in psnr.lines["plans"]] == plans, "if it has the figure"
    assert not clip.lines
    assert "real" not in {point.name for point in kid.points}
    beaten = Record("plans 3", "kid", 0.9), Record("plans 3", "image_speedup", 1.2, against="pocket")
    worse = replace(report, setups=report.setups | {"plans 3": {"series": "plans"}}, records=[*report.records, *beaten])
    point = next(point for point in plots.scatters(worse)[0].points if point.name == "plans 3")
    assert not point.front
    plain = replace(worse, setups={name: {} for name in worse.setups})
    assert all(point.front for point in plots.scatters(plain)[0].points), (
        "what is of no series is not beaten by its own"
    )
    assert plots.scatters(made.pruned()) == []


def test_fronts_are_compared_at_equal_fidelity_and_at_equal_speed() -> None:
    fidelity, speed = plots.comparisons(made.compared())
    assert texts(fidelity)["40"] == ["39.1", "–", "61.5", "1.57"]
    assert texts(speed)["45.5"] == ["33.8", "42.1", "8.3"]
    assert plots.comparisons(made.trained()) == []


def test_odd_reports_have_views() -> None:
    odd = made.odd()
    for view in (tables.main, tables.parts, tables.facts, plots.curves, plots.scatters, plots.comparisons):
        assert view(odd) is not None
    assert "nan" not in "".join(words.headline(odd))
    empty = Report("prune")
    assert tables.main(empty) is None
    assert words.headline(empty) == ("asdm prune", "")
