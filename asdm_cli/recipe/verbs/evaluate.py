"""The recipe of `asdm eval`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from asdm_cli.recipe.schema import READ, DistinctlyNamed, Guidance, Name, Positive, Strict, Text
from asdm_cli.recipe.verbs.drawing import Drawing


class EvalContestant(Strict):
    """One model of an evaluation."""

    name: Name
    """What tables and plots call it."""
    model: Annotated[Text, READ]
    """A model directory, a run directory, or `pocket`."""
    steps: Positive | None = None
    """UNet steps of this contestant, where it differs from the others'."""
    guidance: Guidance | None = None
    """Guidance scale of this contestant, where it differs from the others'."""


class EvalRecipe(Drawing):
    """What models' pictures are worth."""

    verb: Literal["eval"]
    """The command that this recipe is for."""
    models: Annotated[list[EvalContestant], Field(min_length=1), DistinctlyNamed]
    """Who takes part; order is the order of the tables."""
    clip: Annotated[Text, READ] = "own"
    """The CLIP behind clip_score: `own` (the first model's), or a directory."""
    probe: Annotated[Text, READ] = "own"
    """The probe behind label_accuracy and style_accuracy: `own` (the first model's), or a directory."""
    reference: Text | None = None
    """The contestant that psnr, ssim and perceptual compare with; the first if left out."""

    @field_validator("reference")
    @classmethod
    def _reference_takes_part(cls, reference: str | None, info: ValidationInfo) -> str | None:
        """Gate 2. Silent where `models` itself is wrong: that is told at its own place."""
        names = [model.name for model in info.data.get("models", [])]
        if reference is not None and names and reference not in names:
            raise ValueError(f"no contestant is called '{reference}'; there are {', '.join(names)}")
        return reference
