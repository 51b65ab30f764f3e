"""The model card's figures are those of an evaluation's records."""

from __future__ import annotations

import pytest

from asdm_cli.compare.setup import REAL, VAE
from asdm_cli.records import Record, Report
from pocket.card import HELD, _figures


def test_figures_stand_by_who_drew_and_by_part_of_the_data() -> None:
    accuracies = [
        Record(name, "label_accuracy", value, value - 0.1, value + 0.1, of=of)
        for name, value in (("mine", 0.5), (VAE, 0.7), (REAL, 0.8))
        for of in ("", f"split/{HELD}")
    ]
    report = Report("eval", records=[*accuracies, Record("mine", "clip_score", 70.25), Record(VAE, "kid", 0.01)])
    rows = _figures(report, "mine").splitlines()
    assert rows[0].endswith("| .65 | 0.500 (0.400-0.600) | 0.700 (0.600-0.800) | 0.800 (0.700-0.900) |")
    assert "| CLIP score | not above real | 70.2 |  |  |" in rows
    assert rows[-1].endswith("| 0.050 |  | 0.010 |  |"), "the bar is three times what the latents lose, and a little"
    with pytest.raises(KeyError):
        _figures(Report("eval", records=accuracies), "mine")
