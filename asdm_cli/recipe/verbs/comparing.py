"""What verbs that hold ways to draw against each other have in common: with what, on how many prompts, how timed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from asdm_cli.recipe.schema import Distinct, Positive
from asdm_cli.recipe.verbs.drawing import Drawing, Metric


class Comparing(Drawing):
    """The recipe of a verb that compares ways to draw: fewer steps, the first thing to beat, always take part."""

    fewer_steps: Annotated[list[Positive], Distinct] | None = None
    """Steps at which the plain model draws too, the first thing to beat; about 0.8, 0.65, 0.5, 0.35 and 0.2 of
    `steps` if left out."""
    converged: Positive | None = None
    """Also compare with what DPM++ 2M draws in so many steps: near the solution that every sampler is after."""
    limit: Positive = 16
    """Use the first so many prompts only."""
    metrics: Annotated[list[Metric], Field(min_length=1), Distinct] = ["psnr", "ssim"]
    """psnr, ssim and perceptual compare with the plain model's pictures; kid, clip_score, ... as in `asdm eval`."""
    steps: Positive = 50
    """UNet steps per picture."""
    repeats: Positive = 5
    """Timed rounds; every round draws one image with everybody, in turn."""
    warmups: Positive = 1
    """Rounds before the timed ones, not counted."""


def free_series(series: str, taken: tuple[str, ...]) -> str:
    """ValueError for the name of a line that the plots draw themselves."""
    if series in taken:
        raise ValueError(f"'{series}' is drawn by what it is named after; choose another name")
    return series
