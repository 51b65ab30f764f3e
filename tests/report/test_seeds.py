"""Trainings of one thing with several seeds as one set-up."""

from __future__ import annotations

from math import sqrt

import pytest
from scipy import stats

from asdm_cli.records import Record, Report
from asdm_cli.report.seeds import BOTH, STUDENT_T, over_seeds
from asdm_cli.report.tables import main


def report(*values: float, half: float = 0.02, interval: str = "95 % bootstrap") -> Report:
    setups = {"original": {"model": "o"}} | {f"base {i}": {"model": f"m{i}", "steps": 25} for i in range(len(values))}
    records = [Record("original", "kid", 0.1, 0.08, 0.12, interval, n=512)]
    for place, value in enumerate(values):
        name = f"base {place}"
        records += [Record(name, "kid", value, value - half, value + half, interval, n=512)]
        records += [Record(name, "image_speedup", 1.5 + place, against="original"), Record(name, "loss", 3.0, at=4)]
    return Report("eval", setups, records)


def of(found: Report, metric: str) -> Record:
    (record,) = [each for each in found.records if (each.setup, each.metric) == ("base", metric)]
    return record


def test_the_points_are_student_s() -> None:
    assert {n: pytest.approx(stats.t.ppf(0.975, n - 1), abs=1e-3) for n in range(2, 6)} == STUDENT_T


def test_the_mean_has_an_interval_over_prompts_and_seeds() -> None:
    found = over_seeds(report(0.2, 0.3, 0.4), {"base": ["base 0", "base 1", "base 2"]})
    half = sqrt(0.02**2 + (STUDENT_T[3] * 0.1) ** 2 / 3)
    kid = of(found, "kid")
    assert (kid.value, kid.low, kid.high) == pytest.approx((0.3, 0.3 - half, 0.3 + half))
    assert (kid.interval, kid.n, kid.against) == (BOTH, 512, "")
    assert of(found, "image_speedup") == Record("base", "image_speedup", 1.5, against="original")
    assert not [each for each in found.records if each.setup == "base" and each.metric == "loss"]
    assert list(found.setups) == ["original", "base", "base 0", "base 1", "base 2"]
    assert found.setups["base"] == {"steps": 25, "seeds": ["base 0", "base 1", "base 2"]}
    table = main(found)
    assert table
    assert [row[0].text for row in table.rows] == list(found.setups)


def test_seeds_that_agree_leave_the_prompts_error() -> None:
    kid = of(over_seeds(report(0.3, 0.3), {"base": ["base 0", "base 1"]}), "kid")
    assert (kid.low, kid.high) == pytest.approx((0.28, 0.32)), "the mean of two is no surer of the same prompts"


def test_what_has_no_interval_gets_none() -> None:
    other = of(over_seeds(report(0.2, 0.3, interval="90 % bootstrap"), {"base": ["base 0", "base 1"]}), "kid")
    assert (other.value, other.low, other.interval) == (0.25, None, "")


def test_seeds_of_unlike_size_have_no_costs() -> None:
    unlike = report(0.2, 0.3)
    unlike.records.extend(Record(f"base {place}", "params_m", 5.0 + place) for place in range(2))
    found = over_seeds(unlike, {"base": ["base 0", "base 1"]})
    assert {each.metric for each in found.records if each.setup == "base"} == {"kid"}
    assert found.notes == ["base: no costs: base 0, base 1 are not of one size"]


def test_a_member_that_another_name_took_over_is_told() -> None:
    found = over_seeds(report(0.2, 0.3), {"base": ["base 0", "gone"]})
    assert list(found.setups) == ["original", "base 0", "base 1"]
    assert found.notes == ["base: no mean: gone stands under another name; use one in all stages"]


def test_what_all_are_compared_with_stays_in_front() -> None:
    alone = report(0.2, 0.3)
    del alone.setups["original"]
    found = over_seeds(alone, {"base": ["base 0", "base 1"]})
    assert list(found.setups) == ["base 0", "base", "base 1"]


def test_shares_end_at_one() -> None:
    of_all = report(1.0, 0.985, interval="95 % Wilson")
    kid = of(over_seeds(of_all, {"base": ["base 0", "base 1"]}), "kid")
    assert (kid.low, kid.high) == (pytest.approx(0.8950, abs=1e-3), 1.0)


def test_a_name_that_is_taken_and_members_that_were_judged_otherwise_are_told() -> None:
    taken = over_seeds(report(0.2, 0.3), {"original": ["base 0", "base 1"]})
    assert taken.setups == report(0.2, 0.3).setups
    assert taken.notes == ["original: no mean: something else is called that; choose another name"]
    unlike = report(0.2, 0.3)
    unlike.records[:] = [
        Record(each.setup, each.metric, each.value, protocol=each.setup, against=each.against)
        for each in unlike.records
        if each.at is None
    ]
    assert over_seeds(unlike, {"base": ["base 0", "base 1"]}).notes == [
        "base: no mean: the pictures of base 0, base 1 were not judged alike"
    ]
