"""What verbs that are not yet rewritten know of a metric suite: figures by key, and table columns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from asdm_cli.measure.eval_plan import EvalPlan
from asdm_cli.metrics.suite import RECALLS, MetricSuite, needed
from asdm_cli.models.load import device_and_dtype
from asdm_cli.records import Interval, Record
from asdm_cli.report.document import Column
from asdm_cli.sampling.image_set import ImageSet

Figures = dict[str, Interval]


def suite_of(plan: EvalPlan, folder: Path, reference: ImageSet, real: ImageSet | None) -> MetricSuite:
    device, _ = device_and_dtype(plan.recipe.device, "float32")
    return MetricSuite(plan.metrics, plan.prompts, plan.reference, reference, real, folder, device)


def figures_of(records: Iterable[Record]) -> Figures:
    """By key; of a part of the data, as `key/part`."""
    return {
        record.metric + record.of.removeprefix("split"): Interval(
            record.value, record.low or 0.0, record.high or 0.0, record.interval
        )
        for record in records
    }


def columns(wanted: tuple[str, ...], network: str) -> list[Column]:
    """The table columns of the wanted metrics, in a fixed order."""
    of = {
        "kid": [Column("kid", f"KID ({network})", "lower", 4)],
        "fd": [Column("fd", "FID" if network == "Inception v3" else f"FD ({network})", "lower", 1)],
        "is": [Column("is", f"IS ({network})", "higher", 2)],
        "clip_score": [Column("clip_score", "CLIP score", "higher", 2)],
        "clip_retrieval": [Column(f"recall_at_{k}", f"R@{k}", "higher", 3) for k in RECALLS],
        "label_accuracy": [
            Column("label_accuracy", "label accuracy", "higher", 3),
            Column("label_accuracy_top_5", "label, top 5", "higher", 3),
        ],
        "style_accuracy": [Column("style_accuracy", "style accuracy", "higher", 3)],
        "psnr": [Column("psnr_db", "PSNR, dB", "higher", 2)],
        "ssim": [Column("ssim", "SSIM", "higher", 4)],
        "perceptual": [Column("perceptual", "perceptual (EfficientNet-Lite0)", "lower", 4)],
    }
    return [column for metric, each in of.items() if metric in wanted for column in each]


def network_of(suite: MetricSuite) -> str:
    return suite.network(suite.settings.features).title if "features" in needed(suite.settings.metrics) else ""
