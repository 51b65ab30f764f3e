"""The report of an evaluation: figures, the splits, quality against cost, and the pictures side by side."""

from __future__ import annotations

from dataclasses import dataclass

from asdm_cli.measure.eval_plan import EvalPlan
from asdm_cli.measure.judging import Figures, columns, network_of
from asdm_cli.metrics.suite import METRICS, MetricSuite, against_real
from asdm_cli.records import Card, common, differences
from asdm_cli.report.document import Cell, Column, Grid, Interval, Part, Point, Report, Scatter, Table
from asdm_cli.sampling.image_set import ImageSet

CARD = "figures"
FEW_FOR_FRECHET = 2000
GIGA = 1e9


@dataclass(frozen=True)
class Row:
    """One set of pictures and its figures; real pictures have neither steps nor cost (UNet MACs per picture)."""

    name: str
    figures: Figures
    pictures: ImageSet
    steps: int | None = None
    macs: int | None = None

    def cells(self, split: str = "") -> dict[str, Cell | Interval]:
        """Table cells by column key: of all prompts, or of one split's."""
        if split:
            ending = f"/{split}"
            own = {key.removesuffix(ending): each for key, each in self.figures.items() if key.endswith(ending)}
            return {"name": self.name, "split": split, **own}
        own = {key: each for key, each in self.figures.items() if "/" not in key}
        cost = None if self.macs is None else self.macs / GIGA
        return {"name": self.name, "steps": self.steps, "macs_g": cost, **own}


def eval_report(
    plan: EvalPlan, judge: MetricSuite, rows: list[Row], contestants: dict[str, Card], protocol: Card
) -> Report:
    """`contestants` holds the card of each one's pictures, `protocol` that of the figures made from them."""
    parts: list[Part] = [_figures(plan, judge, rows, differences(contestants))]
    if len(_splits_of(plan)) > 1 and _of_captions(judge):
        parts.append(_splits(plan, judge, rows))
    if "kid" in plan.wanted:
        parts.append(_quality_by_cost(judge, rows))
    parts.append(_grid(plan, rows))
    cards = {CARD: common(contestants) | protocol}
    if differences(contestants):
        cards |= {f"pictures of {name}": card for name, card in contestants.items()}
    return Report("eval", f"Evaluation: {', '.join(contestants)}", _summary(plan, judge, rows), parts, cards)


def _figures(plan: EvalPlan, judge: MetricSuite, rows: list[Row], unlike: str) -> Table:
    shown = [
        Column("name", "pictures"),
        Column("steps", "steps", digits=0),
        Column("macs_g", "UNet GMACs per picture", "lower", 1),
        *columns(judge.settings.metrics, network_of(judge)),
    ]
    return Table("What the pictures are worth", shown, [row.cells() for row in rows], _note(plan, unlike), CARD)


def _note(plan: EvalPlan, unlike: str) -> str:
    notes = [unlike] if unlike else []
    if plan.has_baselines:
        notes.append(
            "Real pictures after the VAE are the best that its latents allow. The KID of the real pictures is that "
            "of one half of them from the other."
        )
    if "fd" in plan.wanted and plan.count < FEW_FOR_FRECHET:
        notes.append(f"FD is far too high below {FEW_FOR_FRECHET} pictures (here {plan.count}): trust KID.")
    if plan.wanted & {"psnr", "ssim", "perceptual"}:
        notes.append(f"PSNR, SSIM and perceptual distance are to the pictures of {plan.reference}.")
    if "psnr" in plan.wanted:
        notes.append("Equal pictures count as 100 dB.")
    return " ".join(notes)


def _splits(plan: EvalPlan, judge: MetricSuite, rows: list[Row]) -> Table:
    shown = [Column("name", "pictures"), Column("split", "part of the data"), *columns(_of_captions(judge), "")]
    cells = [row.cells(split) for split in _splits_of(plan) for row in rows]
    note = "Captions are retrieved among those of all parts."
    return Table("The parts of the data apart", shown, cells, note, CARD)


def _of_captions(judge: MetricSuite) -> tuple[str, ...]:
    """The wanted metrics that hold a picture against its own caption."""
    return tuple(metric for metric in judge.settings.metrics if against_real([metric]) and not METRICS[metric].whole)


def _splits_of(plan: EvalPlan) -> list[str]:
    return sorted({facts.get("split", "") for facts in plan.prompts.about})


def _quality_by_cost(judge: MetricSuite, rows: list[Row]) -> Scatter:
    title = columns(("kid",), network_of(judge))[0].title
    points = [
        Point(row.macs / GIGA, kid.value, row.name, y_low=kid.low, y_high=kid.high)
        for row in rows
        if row.macs is not None and (kid := row.figures.get("kid"))
    ]
    return Scatter("Quality against cost", "UNet GMACs per picture", title, points, "Lower is better on both axes.")


def _grid(plan: EvalPlan, rows: list[Row]) -> Grid:
    """Real pictures, where there are any, come first."""
    ordered = [row for row in rows if row.macs is None][::-1] + [row for row in rows if row.macs is not None]
    count = min(plan.recipe.grid, plan.count)
    return Grid(
        "The same prompts and seeds",
        [row.name for row in ordered],
        list(plan.prompts.prompts[:count]),
        [[row.pictures.path(index) for row in ordered] for index in range(count)],
    )


def _summary(plan: EvalPlan, judge: MetricSuite, rows: list[Row]) -> str:
    """The first wanted figure of every contestant, in a sentence."""
    column = columns(judge.settings.metrics, network_of(judge))[0]
    figures = [
        f"{row.name} {row.figures[column.key].value:.{column.digits}f}" for row in rows if column.key in row.figures
    ]
    return f"{plan.count} prompts from {plan.prompts.name}. {column.title}: {', '.join(figures)}."
