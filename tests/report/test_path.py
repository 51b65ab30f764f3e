"""Cost and quality of a pipeline's models, joined from several reports by what the models are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from asdm_cli.report.document import Column, Interval, Report, Scatter, Table
from asdm_cli.report.path import Measured, gain, path_parts

COST = Table(
    "Cost",
    [Column("name", "contestant"), Column("unet_params_m", "parameters", "lower"), Column("latent", "latent")],
    [{"name": "first", "unet_params_m": 8.0, "latent": "x"}, {"name": "small", "unet_params_m": 2.0, "latent": "x"}],
)
SPEED = Table(
    "Speed",
    [Column(key, key) for key in ("name", "what", "against", "speedup")],
    [
        {
            "name": "small",
            "what": what,
            "against": "first",
            "speedup": Interval(ratio, ratio - 1, ratio + 1, "quartiles"),
        }
        for what, ratio in (("UNet call", 3.0), ("whole image", 2.0))
    ],
)
WORTH = Table(
    "What the pictures are worth",
    [Column("name", "pictures"), Column("steps", "steps"), Column("kid", "KID", "lower"), Column("is", "IS", "higher")],
    [
        {"name": "original", "steps": 25, "kid": Interval(0.2, 0.1, 0.3, "95 %"), "is": 4.0},
        {"name": "little", "steps": 25, "kid": 0.4, "is": None},
        {"name": "real pictures", "steps": None, "kid": 0.0, "is": 5.0},
    ],
)
BENCH = Measured(Report("bench", "Cost of two", "", [COST, SPEED]), {"first": "pocket", "small": "$pruned"})
EVAL = Measured(Report("eval", "Worth of two", "", [WORTH]), {"original": "pocket", "little": "$pruned"})


def joined(*measured: Measured) -> tuple[Table, list[Any]]:
    table, *rest = path_parts(measured)
    assert isinstance(table, Table)
    return table, rest


@pytest.mark.parametrize("measured", [(BENCH, EVAL), (EVAL, BENCH)], ids=["bench first", "eval first"])
def test_models_are_joined_by_what_they_are_not_by_name(measured: tuple[Measured, ...]) -> None:
    table, _ = joined(*measured)
    keys = [column.key for column in table.columns]
    assert keys == ["name", "origin", "unet_params_m", "unet_speedup", "image_speedup", "kid", "is"]
    assert [row["origin"] for row in table.rows] == ["pocket", "$pruned"]
    first, small = table.rows
    assert (first["unet_params_m"], first["unet_speedup"], first["kid"]) == (8.0, 1.0, WORTH.rows[0]["kid"])
    assert (small["unet_params_m"], small["kid"], small["is"]) == (2.0, 0.4, None)
    assert isinstance(small["image_speedup"], Interval)
    assert small["image_speedup"].value == 2.0


def test_the_plot_has_those_with_both_figures() -> None:
    _, (plot,) = joined(BENCH, EVAL)
    assert isinstance(plot, Scatter)
    assert [(point.label, point.x, point.y) for point in plot.points] == [("first", 1.0, 0.2), ("small", 2.0, 0.4)]
    assert (plot.points[0].y_low, plot.points[0].y_high) == (0.1, 0.3)
    assert "lower is better" in plot.y_title
    assert not joined(BENCH)[1]


def test_other_ways_to_draw_one_model_stand_apart() -> None:
    fewer = Measured(replace(EVAL.report), {"original": "pocket", "little": "pocket, steps 16"})
    assert [row["origin"] for row in joined(BENCH, fewer)[0].rows] == ["pocket", "$pruned", "pocket, steps 16"]


def test_models_stand_in_the_order_of_the_stages_that_made_them() -> None:
    origins = {"original": "$later", "little": "$pruned"}
    table = path_parts([BENCH, Measured(EVAL.report, origins)], ["pruned", "later"])[0]
    assert isinstance(table, Table)
    assert [row["origin"] for row in table.rows] == ["pocket", "$pruned", "$later"]


def test_what_was_gained_is_said_in_a_sentence() -> None:
    said = gain(path_parts([BENCH, EVAL], ["pruned"]))
    assert said.startswith("small beside first: parameters 2.00 against 8.00; ")
    assert "image: speed-up 2.00; KID 0.40 against 0.20." in said
    assert gain([]) == ""
    strangers = Measured(BENCH.report, {"first": "random sd15", "small": "random sdxl"})
    assert gain(path_parts([strangers])) == "", "they need not have to do with each other"


def test_without_contestants_there_is_nothing() -> None:
    assert path_parts([Measured(Report("prune", "Pruning", "", [COST]), {})]) == []
