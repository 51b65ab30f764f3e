"""Views of records: what a reader is told, and what is never compared."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from asdm_cli.records import Record, Report, under
from asdm_cli.report import plots, tables, words
from asdm_cli.report.metrics import metric
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


def beside(*figures: tuple[str, float, float, float], n: int = 16, **about: Any) -> Report:
    """The set-up `base` beside `pocket`: a metric, before, after, and half of either's interval."""
    records = []
    for key, before, after, half in figures:
        ratio = {"against": "pocket"} if metric(key).alone or key == "psnr_db" else {}
        for name, value in [("base", after)] if ratio else [("pocket", before), ("base", after)]:
            records += [
                Record(name, key, value, value - half, value + half, n=n, **ratio) if half else Record(name, key, value)
            ]
    return Report("eval", {"pocket": {}, "base": about}, records)


def fewer(*others: tuple[float, float]) -> Report:
    """A plan of 2.0 times at 30 dB, and fewer steps of these speeds and PSNR; all within 1 dB."""
    setups = {
        "plain": {},
        "the plan": {"series": "asdm"},
        **{f"{at} steps": {"series": "fewer steps"} for at in range(len(others))},
    }
    records = []
    for name, (speed, near) in zip(list(setups)[1:], [(2.0, 30.0), *others], strict=True):
        records += [Record(name, "image_speedup", speed, speed - 0.1, speed + 0.1, against="plain")]
        records += [Record(name, "psnr_db", near, near - 1, near + 1, against="plain")]
    return Report("inherit", setups, records)


SPEED = ("image_speedup", 1.0, 1.5, 0.02)
NOISE = ("image_speedup", 1.0, 1.4, 0.5)
UNET = ("unet_speedup", 1.0, 1.49, 0.02)
PLANNED = ("denoising_speedup", 1.0, 2.44, 0.0)
RUIN, WORSE, ALIKE = ("kid", 0.22, 0.43, 0.02), ("kid", 0.22, 0.27, 0.01), ("kid", 0.22, 0.23, 0.02)
SMALL, LIGHT = ("params_m", 8.77, 5.91, 0.0), ("macs_g", 0.247, 0.162, 0.0)


@pytest.mark.parametrize(
    ("report", "title"),
    [
        (beside(SPEED, RUIN, made=["prune"]), "base: 1.50 times as fast, pictures ruined (KID 0.22 → 0.43); distil it"),
        (beside(SPEED, RUIN, made=["prune", "distill"]), "base: 1.50 times as fast, pictures ruined (KID 0.22 → 0.43)"),
        (beside(SPEED, WORSE), "base: 1.50 times as fast, pictures worse (KID 0.220 → 0.270)"),
        (beside(WORSE, made=["prune", "inherit"]), "base: pictures worse (KID 0.220 → 0.270); distil it"),
        (
            beside(SPEED, ALIKE, made=["prune"]),
            "base: 1.50 times as fast, pictures as good, as far as 16 tell (KID 0.22 → 0.23)",
        ),
        (beside(SPEED, ("kid", 0.22, 0.1, 0.02)), "base: 1.50 times as fast, pictures better (KID 0.22 → 0.10)"),
        (beside(ALIKE, ("label_accuracy", 0.8, 0.3, 0.05)), "base: pictures ruined (label accuracy 0.80 → 0.30)"),
        (beside(("kid", 0.001, 0.004, 0.0005)), "base: pictures worse (KID 0.0010 → 0.0040)"),
        (beside(SPEED, ("psnr_db", 0, 14.0, 0.5)), "base: 1.50 times as fast, other pictures (PSNR 14.0 dB)"),
        (beside(SPEED, ("psnr_db", 0, 25.0, 0.5)), "base: 1.50 times as fast, pictures changed (PSNR 25.0 dB)"),
        (beside(SPEED, ("psnr_db", 0, 38.0, 0.5)), "base: 1.50 times as fast, pictures hardly changed (PSNR 38.0 dB)"),
        (beside(("psnr_db", 0, 14.0, 0.5), ALIKE), "base: pictures as good, as far as 16 tell (KID 0.22 → 0.23)"),
        (beside(NOISE, UNET), "base: UNet 1.49 times as fast"),
        (beside(PLANNED, ("unet_speedup", 1.0, 1.0, 0.0)), "base: all UNet calls 2.44 times as fast"),
        (beside(NOISE), "base: as fast as pocket, as far as can be told (0.9–1.9 times)"),
        (beside(("image_speedup", 1.0, 0.8, 0.02)), "base: slower: 0.80 times as fast"),
        (beside(SMALL, LIGHT), "base: 33 % fewer parameters (8.77 → 5.91 M), 34 % fewer MACs (0.247 → 0.162 G)"),
        (beside(SMALL, LIGHT, RUIN), "base: 34 % fewer MACs (0.247 → 0.162 G), pictures ruined (KID 0.22 → 0.43)"),
        (  # both were, or neither: the other settings are what was done to it
            replace(beside(SPEED, WORSE), setups={"pocket": {"made": ["prune"]}, "base": {"made": ["prune"]}}),
            "base: 1.50 times as fast, pictures worse (KID 0.220 → 0.270)",
        ),
        (
            replace(beside(SMALL, made=["prune"]), verb="prune"),
            "base: 33 % fewer parameters (8.77 → 5.91 M); distil it",
        ),
        (fewer((2.1, 35)), "the plan: 2.00 times as fast, pictures hardly changed (PSNR 30.0 dB); 0 steps do better"),
        (
            fewer((1.5, 40), (2.1, 29.5)),
            "the plan: 2.00 times as fast, pictures hardly changed (PSNR 30.0 dB); 1 steps do as well",
        ),
        (fewer((1.5, 40), (2.1, 25)), "the plan: 2.00 times as fast, pictures hardly changed (PSNR 30.0 dB)"),
        (made.compared(), "plans 2: 3.30 times as fast, pictures as good (KID 0.031 → 0.039)"),
        (made.trained(), "base: task loss 1 → 0.0542 from step 0 to 1,998"),
        (Report("bench", {"pocket": {}}, [Record("pocket", "unet_ms", 31.2)]), "pocket: UNet call 31.20 ms"),
        (Report("prune", {"pocket": {}}), "asdm prune, pocket"),
        (
            replace(beside(SPEED), facts={"target": "2 times as fast: missed, measured 1.5 (1.4 to 1.6)"}),
            "the target of 2 times as fast is missed; base: 1.50 times as fast",
        ),
    ],
)
def test_the_title_states_the_result(report: Report, title: str) -> None:
    assert words.headline(report)[0] == title


def test_a_run_s_title_is_about_what_it_wrote() -> None:
    report = fewer((2.1, 35))
    report.setups["sweep"] = {"series": "asdm"}
    report.records.extend(replace(each, setup="sweep", value=each.value + 5) for each in report.records[:2])
    assert words.ranked(report)[0] == "sweep"
    report.setups["the plan"]["written"] = "."
    assert words.ranked(report) == ["the plan", "0 steps", "sweep"], "and the nearest in speed stand beside it"


def test_a_run_s_title_is_about_pictures_where_there_are_any() -> None:
    report = fewer((2.1, 35))
    report.setups["pruned"] = {"made": ["prune"]}
    report.records.extend(
        Record(name, key, value)
        for key, values in (("params_m", (9.0, 3.0)), ("macs_g", (1.0, 0.6)))
        for name, value in zip(("plain", "pruned"), values, strict=True)
    )
    assert words.ranked(report)[0] == "the plan"


def test_no_line_of_a_title_ends_between_a_figure_and_its_unit() -> None:
    told = words.unbroken("33 % of 5 M, KID 0.1 → 0.2 (38.0 dB), 1.5 times as fast in 16 pictures")
    assert re.findall("\\d .", told) == ["2 (", "6 p"]
    assert " →" not in told


def test_the_main_table_has_what_matters_most_and_references_last() -> None:
    table = tables.main(made.compared())
    assert table is not None
    assert len(table.columns) == 6
    assert sum(not head.minor for head in table.columns) == 4, "on a phone"
    rows, marked = texts(table), best(table)
    assert list(rows)[-1] == "real"
    assert rows["pocket"][:3] == ["8.77", "1.00", "0.031"], "beside itself its speed-up is 1"
    assert marked["image speed-up"] == {"plans 2"}
    assert {"pocket", "base"} <= marked["KID"], "their intervals overlap"
    assert "real" not in marked["KID"]
    shown = [(head.title, head.unit) for each in tables.everything(made.compared()) for head in each.columns[1:]]
    assert len(shown) == len(set(shown)) == 10
    assert tables.everything(made.pruned()) == [], "the main table has all"


@pytest.mark.parametrize(
    ("report", "key", "marked"),
    [
        (beside(SPEED), "image speed-up", {"base"}),
        (beside(SPEED, RUIN), "image speed-up", set()),  # the fastest of ruined pictures is no best
        (beside(SPEED, RUIN), "KID", {"pocket"}),
        (beside(SPEED, ("psnr_db", 0, 15.0, 0.5)), "image speed-up", set()),
        (beside(SPEED, ("psnr_db", 0, 25.0, 0.5)), "image speed-up", {"base"}),
        (beside(NOISE), "image speed-up", set()),  # nothing can be told
        (beside(ALIKE), "KID", set()),
        (beside(SMALL, SPEED), "parameters", {"base"}),
        (beside(SMALL, LIGHT), "parameters", set()),  # nobody knows what it can do
        (fewer((1.5, 40), (2.5, 15)), "image speed-up", {"the plan"}),
        (fewer((1.5, 40), (2.5, 15)), "PSNR", {"0 steps"}),
        (fewer((2.5, 15)), "PSNR", set()),  # nobody is left to be nearer than
    ],
)
def test_the_best_is_marked_among_like_with_like(report: Report, key: str, marked: set[str]) -> None:
    assert best(tables.main(report))[key] == marked


def test_unlike_protocols_are_not_compared_and_that_is_said() -> None:
    figures = [Record("a", "kid", 0.1), Record("b", "kid", 0.2)]
    cards = {"one": {"device": "cpu"}, "same": {"device": "cpu", "contestants": ["b"]}, "other": {"device": "cuda"}}
    alike, unlike = (
        Report("eval", {}, under("one", figures[:1]) + under(card, figures[1:]), cards) for card in ("same", "other")
    )
    assert best(tables.main(alike))["KID"] == {"a"}
    assert tables.compared(unlike) == ["a"]
    assert list(texts(tables.main(unlike))) == ["a"]
    (everything,) = tables.everything(unlike)
    assert (list(texts(everything)), best(everything)["KID"]) == (["a", "b"], set())
    assert "not compared: KID" in everything.note


def test_parts_have_tables_of_their_own_and_bars() -> None:
    found = tables.parts(made.compared())
    assert list(found) == ["UNet by block", "Images at once, times of all of them", "The parts of the data apart"]
    blocks, batches, splits = (tables.of_parts(title, records) for title, records in found.items())
    assert len(blocks.columns) == 5
    assert len(blocks.rows) == 5 * 4, "below each other where they are many"
    assert (len(batches.rows), len(batches.columns)) == (2, 1 + 4), "or side by side"
    assert texts(splits)["held-out"] == ["0.80", "0.70"]
    bars = plots.bars("", found["UNet by block"])
    assert bars is not None
    assert (bars.metric, bars.categories) == ("params_m", made.BLOCKS)
    assert bars.values["base"][0] == Record("base", "params_m", 0.5, of="block/down.0", protocol="cost")
    assert plots.bars("", found["UNet by block"][:3]) is None, "nothing to compare in one part"
    same = [Record(name, "params_m", value, of="block/x") for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0))]
    assert [each.setup for each in tables.parts(Report("inherit", {}, same))["UNet by block"]] == ["a and 1 alike", "c"]


def test_curves_are_lines_of_set_ups_or_of_the_parts_of_one() -> None:
    task, output, rate = plots.curves(made.trained())
    assert (task.title, list(task.lines), task.metric) == ("Task loss", ["base", "small"], "loss")
    assert (output.title, rate.title, list(rate.lines)) == ("Output loss", "Learning rate", ["base"])
    assert texts(task.table)["base"][1] == "0.0542"
    weights = [Record("m", "loss", 0.5, of=f"expert/{expert}", at=call) for expert in "12" for call in (2, 0, 1)]
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
    beaten = [Record("plans 3", "kid", 0.9), Record("plans 3", "image_speedup", 1.2, against="pocket")]
    beaten = under("quality", beaten[:1]) + under("cost", beaten[1:])
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
    for view in (
        tables.main,
        tables.everything,
        words.ranked,
        tables.parts,
        tables.facts,
        plots.curves,
        plots.scatters,
        plots.comparisons,
    ):
        assert view(odd) is not None
    assert "nan" not in "".join(words.headline(odd))
    empty = Report("prune")
    assert tables.main(empty) is None
    assert words.headline(empty) == ("asdm prune", "")
