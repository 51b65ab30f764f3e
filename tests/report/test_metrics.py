"""Figures read as their intervals allow, and the best is marked only where it can be told."""

from __future__ import annotations

import math

import pytest

from asdm_cli.records import Record
from asdm_cli.report.metrics import best, number, shown, spread


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1234.5, 1, "1,234.5"),
        (-0.5, 2, "−0.50"),
        (0.00004, 2, "4e−05"),
        (0.004, 2, "0.004"),
        (0, 3, "0.000"),
        (0.05123, None, "0.0512"),
        (123.4, None, "123"),
        (7.0, None, "7"),
        (1e300, 2, "1e+300"),
        (math.nan, 2, "n/a"),
        (-math.inf, 2, "−∞"),
    ],
)
def test_numbers(value: float, digits: int | None, text: str) -> None:
    assert number(value, digits) == text


@pytest.mark.parametrize(
    ("key", "value", "half", "text", "between"),
    [
        ("kid", 0.43218, 0.03, "0.43", "0.40–0.46"),
        ("kid", 0.43218, 0.012, "0.432", "0.420–0.444"),
        ("kid", 0.001, 0.004, "0.001", "−0.003 to 0.005"),
        ("image_ms", 1622.4, 40, "1,620", "1,580–1,660"),
        ("image_ms", 1622.4, 400, "1,600", "1,200–2,000"),
        ("kid", 0.03, 0.029, "0.03", "0.00–0.06"),
        ("image_ms", 12.3456, 0.0001, "12.3", "12.3–12.3"),
        ("psnr_db", 31.26, 0.0, "31.3", "31.3–31.3"),
        ("macs_g", 0.1512, None, "0.151", ""),
        ("params_m", 859.519, None, "859.52", ""),
        ("nobody knows", 0.123456, None, "0.123", ""),
    ],
)
def test_a_figure_has_the_digits_that_its_interval_supports(
    key: str, value: float, half: float | None, text: str, between: str
) -> None:
    low, high = (None, None) if half is None else (value - half, value + half)
    record = Record("a", key, value, low, high)
    assert (shown(record), spread(record)) == (text, between)


def records(key: str, *values: tuple[float, float], **more: str) -> list[Record | None]:
    return [Record(str(at), key, value, value - half, value + half, **more) for at, (value, half) in enumerate(values)]


@pytest.mark.parametrize(
    ("figures", "places"),
    [
        (records("kid", (0.1, 0.01), (0.2, 0.01)), {0}),
        (records("clip_score", (20, 1), (25, 1)), {1}),
        (records("kid", (0.1, 0.06), (0.2, 0.06), (0.4, 0.01)), {0, 1}),  # they overlap
        (records("kid", (0.1, 0.06), (0.2, 0.06)), set()),  # nothing can be told
        ([Record("a", "image_speedup", 1.0), *records("image_speedup", (1.4, 0.5))], set()),  # nor beside what has none
        (records("steps", (10, 0), (20, 0)), set()),  # neither is better
        (records("kid", (0.1, 0.01)), set()),  # nobody to compare with
        (records("image_speedup", (2, 0), against="a") + records("image_speedup", (1, 0), against="b"), set()),
        ([Record("a", "params_m", 1.001), None, Record("b", "params_m", 1.0012), Record("c", "params_m", 2)], {0, 2}),
        ([Record("a", "psnr_db", math.inf), Record("b", "psnr_db", 20), Record("c", "psnr_db", 30)], {2}),
    ],
)
def test_the_best_is_what_can_be_told_to_be(figures: list[Record | None], places: set[int]) -> None:
    assert best(figures) == places
