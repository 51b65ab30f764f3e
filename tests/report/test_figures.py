"""Figures as people read them."""

from __future__ import annotations

import math

import pytest

from asdm_cli.report.document import Cell, Column, Interval, Table
from asdm_cli.report.figures import best_rows, digits_for, plain, short, spread, spreads, text, value


@pytest.mark.parametrize(
    ("cell", "digits", "shown"),
    [
        (1234567, 2, "1,234,567"),
        (1234.5678, 1, "1,234.6"),
        (0.0004, 2, "0.0004"),
        (-0.0004, 2, "−0.0004"),
        (0.0, 2, "0.00"),
        (-1.5, 1, "−1.5"),
        (None, 2, "–"),
        (math.nan, 2, "n/a"),
        (math.inf, 2, "∞"),
        (-math.inf, 2, "−∞"),
        ("fp-16", 2, "fp-16"),
        (True, 2, "True"),
        (Interval(1.234, 1.0, 2.0, ""), 1, "1.2"),
    ],
)
def test_text(cell: Cell | Interval, digits: int, shown: str) -> None:
    assert text(cell, digits) == shown


def test_spread_is_of_intervals_only() -> None:
    assert spread(Interval(1.0, 0.5, 1.5, ""), 1) == "0.5–1.5"
    assert spread(Interval(0.0, -0.5, 0.5, ""), 1) == "−0.5 to 0.5"
    assert spread(1.0) == ""


def test_spreads_of_a_column_are_equally_wide() -> None:
    rows: list[dict[str, Cell | Interval]] = [
        {"ms": Interval(1000, 990, 1100.0, "")},
        {"ms": Interval(9, 8.0, 10.0, "")},
        {"ms": None},
    ]
    padded = spreads(Table("", [], rows), Column("ms", "", digits=1))
    assert [len(between) for between in padded] == [11, 11, 0]
    assert [between.strip() for between in padded] == ["990–1,100.0", "8.0–10.0", ""]


@pytest.mark.parametrize(
    ("figure", "shown"),
    [(0.0, "0"), (1234.5, "1,234"), (12.34, "12.3"), (2.0, "2"), (0.05, "0.05"), (0.01234, "0.0123"), (100.0, "100")],
)
def test_short(figure: float, shown: str) -> None:
    assert short(figure) == shown


def test_digits_go_by_the_largest() -> None:
    assert digits_for([0.001, 3.14]) == 2
    assert digits_for([12.0, math.nan, math.inf]) == 1
    assert digits_for([4000.0]) == 0
    assert digits_for([]) == 0


def test_settings_are_shown_as_they_were_given() -> None:
    assert [plain(cell) for cell in (3.0, 0.95, 25, "ddim", None)] == ["3", "0.95", "25", "ddim", "–"]


def test_the_best_are_those_that_read_as_the_best() -> None:
    def best(better: str, *cells: Cell | Interval) -> set[int]:
        return best_rows(Table("", [], [{"x": cell} for cell in cells]), Column("x", "", better))

    assert best("lower", 2.0, 1.0, 3.0) == {1}
    assert best("higher", 2.0, Interval(5.0, 4, 6, ""), 3.0) == {1}
    assert best("lower", 1.001, 1.002, 3.0) == {0, 1}
    assert best("lower", 1.0, 1.0) == set(), "nothing to choose"
    assert best("lower", 1.0, None, math.nan) == set(), "one figure alone is not the best"
    assert best("", 1.0, 2.0) == set()


def test_value_is_finite_or_nothing() -> None:
    assert [value(cell) for cell in (1, 2.5, None, "3", math.inf, True)] == [1.0, 2.5, None, None, None, None]
