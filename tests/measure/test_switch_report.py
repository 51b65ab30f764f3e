"""What the report of `asdm switch` says, from figures made up by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asdm_cli.measure.calibration import Calibration
from asdm_cli.measure.inherit_run import Cost, Times
from asdm_cli.measure.pictures import PictureSet
from asdm_cli.measure.players import FEWER, PLAIN, Player
from asdm_cli.measure.search_report import front_told, halves
from asdm_cli.measure.switch_report import FIRST, HAND, LAST, ONE, ORDERS, switch_report, who_serves
from asdm_cli.measure.switch_search import SEARCHED, Chosen, Drawn, Prompts, Searched
from asdm_cli.measure.trajectory import Count, Trajectory
from asdm_cli.measure.ways_report import KID, PSNR, Measured, plot
from asdm_cli.recipe.patches import read_switching
from asdm_cli.report.document import Column, Interval
from asdm_cli.switching.search import FARTHEST, GAPS

COLUMNS = (Column(KID, "KID", "lower", 4), Column(PSNR, "PSNR, dB", "higher"))
SPEEDS = {"large": 1.0, "small": 0.5, "reuse": 0.0}
"""Time, and MACs, of a call."""


def interval(value: float) -> Interval:
    return Interval(value, value, value, "none")


def ways(
    *given: tuple[str, str, str, float | None, float], place: dict[str, tuple[str, ...]] | None = None
) -> Measured:
    """(name, series, who serves as initials, PSNR, KID) of each."""
    names = {"l": "large", "s": "small", "r": "reuse"}
    served = {name: tuple(names[letter] for letter in letters) for name, _, letters, _, _ in given}
    players = tuple(
        Player(name, series, len(letters), "own", place=(place or {}).get(name, ()))
        for name, series, letters, _, _ in given
    )
    work = {name: sum(SPEEDS[each] for each in each_served) for name, each_served in served.items()}
    trajectories = {name: Trajectory(len(served[name]), 2, {"unet": Count(int(100 * work[name]), 0)}) for name in work}
    figures = {name: {KID: interval(kid)} | ({PSNR: interval(psnr)} if psnr else {}) for name, _, _, psnr, kid in given}
    return Measured(
        players,
        {name: Cost(trajectories[name], (), None, served=served[name]) for name in served},
        {name: Times([work[name]] * 3, [work[name]] * 3) for name in served},
        figures,
        {name: PictureSet(Path(name), 1) for name in served},
        ("a fox",),
        COLUMNS,
    )


def searched(errors: list[float]) -> Searched:
    calls = len(errors)
    nulls: Any = [[[None] * calls for _ in range(GAPS + 1)] for _ in range(FARTHEST)]
    seconds = {"large": [1.0] * calls, "small": [0.5] * calls}
    found = Calibration(
        [float(calls - call) for call in range(calls)], {"large": [0.0] * calls, "small": errors}, seconds, nulls
    )
    rules = read_switching({"by": "step", "parts": [{"unet": "large"}]}, "test")
    best = Drawn(("large",) * calls, "errors", False, 0.75, 40.0)
    return Searched(found, (Chosen(0.75, best, None, 3, rules),), Prompts(["a", "b"], "two", 1))


FIXED = (("early", ORDERS[FIRST], "ssll", 20.0, 0.2), ("late", ORDERS[LAST], "llss", 26.0, 0.3))
PLACES = {"early": ("small", "50%", FIRST), "late": ("small", "50%", LAST)}
LARGE, SMALL = ("large", PLAIN, "llll", None, 0.1), ("small", ONE, "ssss", 18.0, 0.4)


def summary(measured: Measured, found: Searched | None = None) -> list[str]:
    return switch_report(measured, found, {}, 1, "Nothing is written.").summary.splitlines()


@pytest.mark.parametrize(
    ("errors", "why"),
    [
        ([4.0, 4.0, 1.0, 1.0], "small errs 4 in the first half and 1 in the second: it serves where it errs less."),
        ([1.0, 1.0, 3.0, 3.0], "small errs 1 in the first half and 3 in the second: but from what is wrong early all "),
    ],
)
def test_the_order_that_wins_is_told_with_why(errors: list[float], why: str) -> None:
    measured = ways(LARGE, SMALL, *FIXED, ("found", SEARCHED, "lrll", 40.0, 0.1), place=PLACES)
    told = summary(measured, searched(errors))[1]
    assert told.startswith(
        "At equal cost, original first is nearer to large's pictures in 1 of 1 pairs of schedules, by 6.0 dB on "
        "average. Compressed first has the lower KID in 1 of them. At single calls "
    )
    assert why in told


def test_the_order_needs_both_and_no_search() -> None:
    assert len(summary(ways(LARGE, SMALL, FIXED[0], place=PLACES))) == 2
    other_way = [("early", ORDERS[FIRST], "ssll", 30.0, 0.3), FIXED[1]]
    told = summary(ways(LARGE, SMALL, *other_way, place=PLACES))[1]
    assert told == (
        "At equal cost, compressed first is nearer to large's pictures in 1 of 1 pairs of schedules, by 4.0 dB on "
        "average. Compressed first has the lower KID in 0 of them."
    )


def test_fixed_schedules_are_held_against_the_searched_front() -> None:
    """Times are shares as calibrated: all of large is 1, half of it 0.75."""
    found = [("a", SEARCHED, "lsss", 25.0, 0.1), ("b", SEARCHED, "llls", 35.0, 0.1)]
    fixed = [
        ("below", HAND, "ssll", 29.0, 0.1),
        ("above", HAND, "llss", 30.25, 0.1),
        ("faster", HAND, "ssss", 60.0, 0.1),
    ]
    measured = ways(LARGE, *fixed, *found)
    players = [player for player in measured.players if player.series == HAND]
    asked = measured, searched([1.0] * 4)
    assert front_told(*asked, players) == [
        "1 of 2 fixed schedules lie above the front of the searched ones: above by 0.25 dB."
    ]
    assert front_told(*asked, players[:1]) == ["None of 1 fixed schedules lies above the front of the searched ones."]
    assert front_told(*asked, players[2:]) == [], "nothing searched is as fast"


def test_fewer_steps_and_the_first_are_in_every_plot() -> None:
    fewer = ("2 steps", FEWER, "ll", 22.0, 0.15)
    beaten = ("beaten", SEARCHED, "llls", 20.0, 0.5)
    measured = ways(LARGE, SMALL, fewer, beaten, ("found", SEARCHED, "lsls", 40.0, 0.12), place={})
    drawn = {key: [(point.series, point.label) for point in plot(measured, key).points] for key in measured.keys}
    assert drawn == {
        PSNR: [(ONE, "small"), (FEWER, "2 steps"), (SEARCHED, "found")],
        KID: [
            *((ONE, name) for name in ("large", "small")),
            *((FEWER, name) for name in ("large", "2 steps")),
            *((SEARCHED, name) for name in ("large", "found")),
        ],
    }
    assert [point.x for point in plot(measured, KID).points] == pytest.approx([1, 2, 1, 2, 1, 4 / 3])
    assert "Lower and further right" in plot(measured, KID).note


def test_every_unet_has_a_letter_of_its_own() -> None:
    served = {"one": ("tiny", "teacher", "extrapolate"), "two": ("tiny", "reuse", "i"), "longer": ("tiny",) * 4}
    timeline = who_serves(served, ["tiny", "teacher", "i", "t"])
    assert timeline.letters == {"t": "tiny", "T": "teacher", "i": "i", "A": "t", "·": "reuse", "~": "extrapolate"}
    assert dict(zip(timeline.rows, timeline.cells, strict=True)) == {"one": "tT~", "two": "t·i"}


def test_both_orders_stand_in_a_row() -> None:
    report = switch_report(ways(LARGE, SMALL, *FIXED, place=PLACES), None, {}, 1, "")
    (table,) = [part for part in report.parts if part.title == "Both orders"]
    (row,) = table.rows  # type: ignore[union-attr]
    assert [column.key for column in table.columns][2:] == [  # type: ignore[union-attr]
        *("unet_macs_share", "psnr_db_first", "psnr_db_last", "kid_first", "kid_last")
    ]
    assert (row["other"], row["share"], row["unet_macs_share"]) == ("small", "50%", 0.75)
    assert (row["psnr_db_first"].value, row["kid_last"].value) == (20.0, 0.3)


def test_prompts_that_are_measured_too_are_told() -> None:
    report = switch_report(ways(LARGE, SMALL, ("found", SEARCHED, "lsls", 40.0, 0.1)), searched([1.0] * 4), {}, 1, "")
    (table,) = [part for part in report.parts if part.title == "Searched schedules"]
    assert "of 2 prompts, 1 of which are measured too, with other seeds" in table.note
    assert "By step, because a boundary lies between calls of one timestep: searched 0.75." in table.note


def test_pictures_of_the_recipes_own_series_are_shown_where_nothing_was_searched() -> None:
    many = [(f"{count} steps", FEWER, "l" * count, 20.0, 0.2) for count in (1, 2, 3)]
    mine = [(f"way {name}", "mine", "slll", 30.0, 0.2) for name in "abc"]
    report = switch_report(ways(LARGE, SMALL, *many, *mine), None, {}, 1, "")
    (grid,) = [part for part in report.parts if part.title == "The same prompts and seeds"]
    assert grid.columns == ["large", "way a", "way b", "way c", "1 steps"]
    assert "way a: 1.14 times as fast at 30.0 dB" in report.summary


def test_halves() -> None:
    assert halves([1.0, 2.0, 6.0]) == (1.5, 6.0)
    assert halves([2.0]) == (2.0, 2.0)
