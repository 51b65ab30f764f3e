"""A whole benchmark of two tiny models and a bare UNet, and the report made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asdm_cli.measure import bench, bench_report
from asdm_cli.measure.bench import Measurement
from asdm_cli.measure.contestants import Contestant

from asdm_cli.errors import RunError
from asdm_cli.profiling.memory import Memory
from asdm_cli.report.document import Bars, Interval, Report, Table
from tests.measure.entrants import bare, drawing, protocol


@pytest.fixture(scope="module")
def measured(tiny_pipeline: Path) -> Measurement:
    entrants = [drawing(tiny_pipeline, "whole"), drawing(tiny_pipeline, "short", steps=2), bare("bare", "sdxl")]
    with pytest.MonkeyPatch.context() as patch:
        # test_memory has the real one; here three processes would only cost time
        patch.setattr(bench, "in_fresh_process", lambda *_: Memory(weights=1_000_000, peak=3_000_000))
        return bench.measure(entrants, protocol(batches=(2,), repeats=2))


@pytest.fixture(scope="module")
def report(measured: Measurement) -> Report:
    return bench_report.report(measured)


def table(report: Report, title: str) -> list[dict[str, Any]]:
    (found,) = [part for part in report.parts if isinstance(part, Table) and part.title == title]
    keys = {column.key for column in found.columns}
    assert all(keys <= set(row) for row in found.rows)
    return found.rows


def test_single_images_are_timed_whatever_the_batches(measured: Measurement) -> None:
    assert set(measured.unet_times) == set(measured.image_times) == {1, 2}
    assert set(measured.unet_times[1]) == {"whole", "short", "bare"}
    assert set(measured.image_times[2]) == {"whole", "short"}
    series = [times for batch in measured.unet_times.values() for times in batch.values()]
    assert [len(times) for times in series] == [2] * 6


def test_cost_has_a_row_per_contestant(report: Report) -> None:
    rows = table(report, "Cost")
    assert [row["name"] for row in rows] == ["whole", "short", "bare"]
    assert [isinstance(row["image_ms"], Interval) for row in rows] == [True, True, False]
    assert [row["peak_memory_mb"] for row in rows] == [3.0] * 3
    assert rows[0]["image_macs_g"] > rows[1]["image_macs_g"] > 0
    assert rows[2]["image_macs_g"] is None


def test_each_speedup_stands_in_three_words(report: Report) -> None:
    rows = table(report, "Speed, one image at a time")
    pairs = [(row["what"], row["against"], row["name"]) for row in rows]
    calls = [("UNet call", "whole", "short"), ("UNet call", "whole", "bare")]
    assert pairs == [*calls, ("whole image", "whole", "short")]
    for row in rows:
        ratio = row["speedup"].value
        assert row["latency_cut_pct"] == pytest.approx(100 - 100 / ratio)
        assert row["throughput_gain_pct"] == pytest.approx(100 * ratio - 100)


def test_throughput_has_the_batches_asked_for(report: Report, measured: Measurement) -> None:
    rows = table(report, "Throughput")
    assert [(row["name"], row["batch"]) for row in rows] == [("whole", 2), ("short", 2), ("bare", 2)]
    seconds = sum(measured.image_times[2]["whole"]) / 2  # the median of two
    assert rows[0]["images_per_s"] == pytest.approx(2 / seconds)
    assert rows[2]["images_per_s"] is None


def test_components_sum_to_the_whole_image(report: Report) -> None:
    rows = [row for row in table(report, "Components") if row["name"] == "whole"]
    *parts, whole = rows
    assert {row["component"] for row in parts} == {"vae", "text_encoder", "unet"}
    for key in ("params_m", "macs_g", "macs_without_attention_g"):
        assert sum(row[key] for row in parts) == pytest.approx(whole[key])
    assert [row["calls"] for row in parts if row["component"] == "unet"] == [4]


def test_blocks_sum_to_the_call(report: Report) -> None:
    calls = {row["name"]: row for row in table(report, "Cost")}
    rows = table(report, "UNet by block")
    assert len(rows) == 10 + 10 + 8
    for name, call in calls.items():
        own = [row for row in rows if row["name"] == name]
        assert sum(row["params_m"] for row in own) == pytest.approx(call["unet_params_m"])
        assert sum(row["macs_g"] for row in own) == pytest.approx(call["unet_macs_g"])
        without = sum(row["macs_without_attention_g"] for row in own)
        assert without == pytest.approx(call["unet_macs_without_attention_g"])


def test_bars_are_shares(report: Report) -> None:
    bars = [part for part in report.parts if isinstance(part, Bars)]
    assert len(bars) == 3
    for part in bars:
        assert set(part.values) == {"parameters", "MACs", "time"}
        assert [sum(shares) for shares in part.values.values()] == pytest.approx([100.0] * 3)


def test_every_table_names_the_card_that_tells_how(report: Report) -> None:
    tables = [part for part in report.parts if isinstance(part, Table)]
    assert len(tables) == 5
    assert {part.card for part in tables} == set(report.cards)
    card = report.cards["bench"]
    assert (card["rounds"], card["warmup_rounds"], card["dtype"]) == (2, 1, "float32")
    assert "4 UNet calls with 8 latents per image" in card["contestants"][0]  # type: ignore[index]


def test_a_contestant_that_breaks_in_the_middle_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Contestant, _: int) -> Callable[[], None]:
        def call() -> None:
            if self.name == "second":
                raise RuntimeError("kernel image is invalid")

        return call

    monkeypatch.setattr(bench, "in_fresh_process", lambda *_: Memory(1, 1))
    monkeypatch.setattr(bench, "block_seconds", lambda *_: {})
    monkeypatch.setattr(Contestant, "unet_call", broken)
    with pytest.raises(RunError, match=r"'second': timing UNet calls, batch 1 failed \(RuntimeError: kernel image"):
        bench.measure([bare("first"), bare("second", "sd21")], protocol())
