"""The table of figures: what each is called, its unit, which way is better, and how it reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from asdm_cli.records import Record

COST, QUALITY = "cost", "quality"
NOTHING = "–"
FIGURE_SPACE, POINT_SPACE = "\u2007", "\u2008"
"""Blanks as wide as a digit and as a point, so that points of a column stand below each other."""


@dataclass(frozen=True)
class Metric:
    """`digits` behind the point are shown of a figure without an interval, or with None three significant ones.
    `rank` 1 matters most; a table that has no room leaves out the highest. `alone` is the figure of a set-up beside
    itself, which nobody measures. `axis` is what is counted where there are figures along a way (`at`), and `log` how
    their heights are drawn."""

    title: str
    unit: str = ""
    better: str = ""
    digits: int | None = 2
    group: str = ""
    rank: int = 5
    alone: float | None = None
    axis: str = "UNet call"
    log: bool = False

    @property
    def label(self) -> str:
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def is_loss(self) -> bool:
        return "loss" in self.title


METRICS = {
    "steps": Metric("steps", digits=0, rank=6),
    "calls": Metric("UNet calls", digits=0, rank=7),
    "guided_calls": Metric("calls with guidance", digits=0, rank=8),
    "latents": Metric("latents in them", digits=0, rank=9),
    "layers": Metric("layers", digits=0, rank=6),
    "full_calls": Metric("calls in full", digits=0, rank=5),
    "params_m": Metric("parameters", "M", "lower", 2, COST, 2),
    "macs_g": Metric("UNet call", "GMACs", "lower", 2, COST, 3),
    "plain_macs_g": Metric("without attention matmuls", "GMACs", "lower", 2, COST, 8),
    "image_macs_g": Metric("UNet, whole image", "GMACs", "lower", 1, COST, 4),
    "plain_image_macs_g": Metric("whole image, without attention matmuls", "GMACs", "lower", 2, COST, 9),
    "error_alone": Metric("error without it alone", "", "lower", None, QUALITY, 3),
    "output_error": Metric("error of the output", "", "lower", None, QUALITY, 3),
    "feature_error": Metric("error of the blocks' outputs", "", "lower", None, QUALITY, 3),
    "label_accuracy_lost": Metric("label accuracy lost", "", "lower", 3, QUALITY, 3),
    "predicted_error": Metric("sum of its parts' errors", "", "", None, QUALITY, 6),
    "macs_share": Metric("share of the MACs", "", "lower", 3, COST, 6, 1.0),
    "time_share": Metric("share of the time", "", "lower", 3, COST, 6, 1.0),
    "unet_ms": Metric("UNet call", "ms", "lower", 2, COST, 4),
    "image_ms": Metric("image", "ms", "lower", 0, COST, 3),
    "unet_speedup": Metric("UNet speed-up", "", "higher", 2, COST, 4, 1.0),
    "image_speedup": Metric("image speed-up", "", "higher", 2, COST, 1, 1.0),
    "latency_cut_pct": Metric("latency cut", "%", "higher", 1, COST, 8),
    "throughput_gain_pct": Metric("throughput gain", "%", "higher", 1, COST, 8),
    "denoising_ms": Metric("UNet calls of an image", "ms", "lower", 0, COST, 7),
    "denoising_speedup": Metric("UNet's part: speed-up", "", "higher", 2, COST, 6, 1.0),
    "bound_share": Metric("share of the MACs bound", "", "higher", 2, COST, 6),
    "steps_per_s": Metric("UNet calls a second", "", "higher", 2, COST, 8),
    "images_per_s": Metric("images a second", "", "higher", 2, COST, 6),
    "weights_mb": Metric("weights", "MB", "lower", 1, COST, 6),
    "peak_memory_mb": Metric("peak memory", "MB", "lower", 0, COST, 3),
    "cache_mb": Metric("cache", "MB", "lower", 1, COST, 6),
    "kid": Metric("KID", "", "lower", 4, QUALITY, 1),
    "fd": Metric("FD", "", "lower", 1, QUALITY, 3),
    "is": Metric("IS", "", "higher", 2, QUALITY, 4),
    "clip_score": Metric("CLIP score", "", "higher", 2, QUALITY, 2),
    "recall_at_1": Metric("own caption first", "", "higher", 3, QUALITY, 4),
    "recall_at_5": Metric("among 5", "", "higher", 3, QUALITY, 6),
    "label_accuracy": Metric("label accuracy", "", "higher", 3, QUALITY, 1),
    "label_accuracy_change": Metric("label accuracy: change", "", "higher", 3, QUALITY, 4),
    "label_accuracy_top_5": Metric("label, top 5", "", "higher", 3, QUALITY, 6),
    "style_accuracy": Metric("style accuracy", "", "higher", 3, QUALITY, 5),
    "style_accuracy_change": Metric("style accuracy: change", "", "higher", 3, QUALITY, 7),
    "label_agreement": Metric("label as the original's", "", "higher", 3, QUALITY, 4),
    "psnr_db": Metric("PSNR", "dB", "higher", 1, QUALITY, 1),
    "ssim": Metric("SSIM", "", "higher", 3, QUALITY, 4),
    "perceptual": Metric("perceptual distance", "", "lower", 4, QUALITY, 4),
    "fd_original": Metric("FD to the original's pictures", "", "lower", 1, QUALITY, 4),
    "psnr_converged_db": Metric("PSNR to the converged", "dB", "higher", 1, QUALITY, 3),
    "loss": Metric("loss", "", "lower", None, QUALITY, 2, axis="step", log=True),
    "task": Metric("task loss", "", "lower", None, QUALITY, 3, axis="step", log=True),
    "output": Metric("output loss", "", "lower", None, QUALITY, 3, axis="step", log=True),
    "features": Metric("features loss", "", "lower", None, QUALITY, 3, axis="step", log=True),
    "task_held_out": Metric("held-out task loss", "", "lower", None, QUALITY, 2, axis="step"),
    "output_held_out": Metric("held-out output loss", "", "lower", None, QUALITY, 2, axis="step"),
    "lr": Metric("learning rate", digits=None, axis="step"),
    "gradient_norm": Metric("gradient norm", digits=None, axis="step", log=True),
    "step_ms": Metric("time of a step", "ms", "lower", 1, COST, 6),
    "samples_per_s": Metric("samples a second", "", "higher", 1, COST, 6),
    "early_error": Metric("error, first half of the calls", "", "lower", None, QUALITY, 6),
    "late_error": Metric("error, second half", "", "lower", None, QUALITY, 6),
    "best_fixed_db": Metric("best fixed schedule: PSNR", "dB", "higher", 1, "", 6),
    "schedules_tried": Metric("schedules tried", digits=0, rank=7),
    "call_error": Metric("error of the next latents", "", "lower", None, QUALITY, 4, log=True),
    "minutes": Metric("took", "minutes", digits=1),
}
"""Key of a figure -> what it is, in the order of table columns. Another key is shown as it is."""
SPEEDS = ("image_speedup", "unet_speedup", "image_ms", "unet_ms", "image_macs_g", "macs_g", "params_m")
"""What quality is plotted over: the first that tells set-ups apart."""


def metric(key: str) -> Metric:
    return METRICS.get(key) or Metric(key.replace("_", " "), digits=None)


def in_order(keys: Sequence[str]) -> list[str]:
    """Without repetition, as tables have them; unknown ones last."""
    places = {key: place for place, key in enumerate(METRICS)}
    return sorted(dict.fromkeys(keys), key=lambda key: places.get(key, len(places)))


def number(value: float, digits: int | None = None) -> str:
    """So many digits behind the point, more for a figure that would read as zero, or three significant ones; thousands
    apart, and one kind of minus sign."""
    if not math.isfinite(value):
        return "n/a" if math.isnan(value) else "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1e12 or (size and (size < 1e-4 or (digits is not None and size < 0.5 * 10**-digits))):
        return f"{value:.2g}".replace("-", "−")
    if digits is None:
        digits = 0 if value == int(value) else max(0, 2 - math.floor(math.log10(size)))
    return f"{round(value, digits):,.{max(0, digits)}f}".replace("-", "−")


def digits_of(record: Record) -> int | None:
    """As many as the interval supports, fewer than none before the point: half its width is told to one significant
    digit, or to two where it begins with a 1."""
    most = metric(record.metric).digits
    half = (record.high - record.low) / 2 if record.low is not None and record.high is not None else 0.0
    if 0 < half < math.inf:
        return min(math.ceil(-math.log10(half / 2) - 1e-6), 4 if most is None else most + 1)
    if most and 0 < abs(record.value) < 1:
        return min(max(most, 2 - math.floor(math.log10(abs(record.value)))), most + 2)
    return most


def shown(record: Record) -> str:
    return number(record.value, digits_of(record))


def spread(record: Record) -> str:
    """From low to high; nothing without an interval."""
    if record.low is None or record.high is None:
        return ""
    digits = digits_of(record)
    ends = [
        round(end, digits) if digits is not None and math.isfinite(end) else end for end in (record.low, record.high)
    ]
    low, high = (number(end + 0.0, digits) for end in ends)
    return f"{low} to {high}" if "−" in low + high else f"{low}–{high}"


def column(records: Sequence[Record | None]) -> list[str]:
    """The figures of a column, those without an interval with equally many digits, blanks behind the shorter ones."""
    exact = [digits for each in records if each and each.low is None and (digits := digits_of(each)) is not None]
    texts = [
        NOTHING if each is None else number(each.value, max(exact)) if each.low is None and exact else shown(each)
        for each in records
    ]
    behind = [len(text.rpartition(".")[2]) if "." in text else 0 for text in texts]
    most = max(behind, default=0)
    return [
        text + (POINT_SPACE * (most > 0 and not digits) + FIGURE_SPACE * (most - digits) if text != NOTHING else "")
        for text, digits in zip(texts, behind, strict=True)
    ]


def best(records: Sequence[Record | None]) -> set[int]:
    """Places of those that nothing else is told to be better than: intervals that overlap the best one's share the
    mark. Nothing where figures were not made alike, and nothing where nothing is told apart."""
    known = {place: each for place, each in enumerate(records) if each and math.isfinite(each.value)}
    if len(known) < 2 or len({each.against for each in known.values()}) > 1:
        return set()
    better = metric(next(iter(known.values())).metric).better
    if not better:
        return set()
    top = (min if better == "lower" else max)(known.values(), key=lambda each: each.value)
    winners = {place for place, each in known.items() if tied(each, top)}
    return winners if len(winners) < len(known) else set()


def better(one: Record, other: Record) -> bool:
    """By its value alone."""
    return (one.value < other.value) == (metric(one.metric).better == "lower") and one.value != other.value


def tied(one: Record, top: Record) -> bool:
    """Whether nothing tells them apart: their intervals overlap, or they read alike."""
    if (one.low is None or one.high is None) and (top.low is None or top.high is None):
        return shown(one) == shown(top)
    ends = [
        (each.value, each.value) if each.low is None or each.high is None else (each.low, each.high)
        for each in (one, top)
    ]
    return ends[0][0] <= ends[1][1] and ends[1][0] <= ends[0][1]
